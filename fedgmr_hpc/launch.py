"""One rank from start to finish: who am I, which configuration, serve or work, tear down.

    python -m fedgmr_hpc.launch [--config FILE | --replay RESULT] [dotted.key=value ...]

The same under plain python (server and clients in one process), mpirun, srun and torchrun. Rank 0
alone reads and checks the configuration and the data, and hands the resolved configuration to the
others, so a mistake is reported once and every rank ends with exit code 2. A failure while running
ends every rank with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from fedgmr_hpc.comm.linktrace import load_trace
from fedgmr_hpc.comm.ranks import (
    Launch,
    check_world,
    choose_device,
    detect_launch,
    make_identity,
)
from fedgmr_hpc.comm.transport import Tag, Transport, make_inproc
from fedgmr_hpc.config import Config
from fedgmr_hpc.configfile import load_config, make_config, render_config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.liveworker import LiveWorker
from fedgmr_hpc.models import make_layout
from fedgmr_hpc.process import (
    describe_cores,
    keep_large_blocks,
    pin_core,
    return_large_blocks,
)
from fedgmr_hpc.progress import Progress
from fedgmr_hpc.provenance import collect_provenance
from fedgmr_hpc.records import RunError
from fedgmr_hpc.replay import ReplayClock, check_versions, replayed_config
from fedgmr_hpc.server import Server, load_availability
from fedgmr_hpc.store import Result, ResultWriter, read_result
from fedgmr_hpc.study.report import render_summary
from fedgmr_hpc.trace import timeline_path, write_timeline
from fedgmr_hpc.worker import Worker, report_failure

# Received arrays are read-only on purpose; torch only reads them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2
START_TIMEOUT_S = 1200.0  # decoding a large data set on rank 0 keeps the others waiting


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this rank; returns its exit code."""
    parser = argparse.ArgumentParser("python -m fedgmr_hpc.launch", description="Run one training.")
    parser.add_argument(
        "--config", help="YAML file, or the name of one in configs/runs (default: digits)"
    )
    parser.add_argument("--replay", metavar="RESULT", help="do over the events of a result file")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    arguments = parser.parse_intermixed_args(argv)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _interrupt)  # what schedulers send before they kill
    logging.raiseExceptions = False  # a terminal that has gone away is no reason to stop
    try:
        launch = detect_launch(os.environ)
        config, recorded = _try_load(arguments.config, arguments.overrides, arguments.replay)
        kind, device = "auto", "cpu"
        if isinstance(config, Config):
            kind, device = config.transport, config.device
            if config.run.pin_cores:
                pin_core(launch.local_rank, launch.local_size)
        transport = make_transport(kind, launch, device)
        chosen = choose_device(launch, torch.cuda.device_count(), device)
    except ValueError as error:
        _print_error(str(error))
        return EXIT_BAD_INPUT
    if transport is None:
        return _run_alone(config, recorded)
    _print_identity(launch, transport, device)
    return guard(
        transport,
        lambda: (
            lead(config, recorded, transport) if transport.rank == 0 else follow(transport, chosen)
        ),
    )


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt("terminated")


def _try_load(
    source: str | None, overrides: Sequence[str], replayed: str | None
) -> tuple[Config | ValueError, Result | None]:
    try:
        if replayed is None:
            return load_config(source, overrides), None
        recorded = read_result(replayed)
        return replayed_config(recorded, source, overrides), recorded
    except ValueError as error:
        return error, None


def make_transport(kind: str, launch: Launch, device: str = "auto") -> Transport | None:
    """The transport of this process; None for server and clients in one process.

    Raises:
        ValueError: the launcher and the transport do not fit, or the device is not there.
    """
    if launch.size == 1:
        if kind not in ("auto", "inproc"):
            raise ValueError(f"transport: got {kind} for one rank, allowed: auto, inproc")
        return None
    if kind == "auto":
        kind = "gloo" if launch.launcher == "torchrun" else "mpi"
    if kind == "inproc":
        raise ValueError(
            f"transport: got inproc for {launch.size} ranks, allowed: auto, mpi, gloo, nccl"
        )
    if kind in ("gloo", "nccl") and launch.launcher != "torchrun":
        raise ValueError(f"transport: got {kind} under {launch.launcher}, allowed under torchrun")
    if kind == "gloo":
        from fedgmr_hpc.comm.torchdist import GlooTransport

        return GlooTransport()
    if kind == "nccl":
        from fedgmr_hpc.comm.nccl import NcclTransport

        chosen = choose_device(launch, torch.cuda.device_count(), device)
        return NcclTransport(chosen if chosen.startswith("cuda") else "cuda:0")
    from fedgmr_hpc.comm.mpi import MpiTransport

    transport = MpiTransport()
    check_world(launch, transport.size, transport.library)
    return transport


def _print_identity(launch: Launch, transport: Transport, device: str) -> None:
    identity = make_identity(
        launch,
        rank=transport.rank,
        size=transport.size,
        transport=transport.name,
        num_visible=torch.cuda.device_count(),
        threads=torch.get_num_threads(),
        requested=device,
    )
    say(f"{identity}, cores {describe_cores()}")


def say(text: str) -> None:
    """Prints in one piece, since ranks share the terminal; a reader that has left stops nothing."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _print_error(text: str) -> None:
    with suppress(BrokenPipeError):
        for line in text.splitlines():
            sys.stderr.write(f"fedgmr_hpc: error: {line}\n")
        sys.stderr.flush()


@dataclass(frozen=True)
class Experiment:
    """A checked run: configuration, data, and where the results go."""

    config: Config
    data: FederatedData
    path: Path
    run_id: int
    recorded: Result | None = None  # the run to replay


def check_inputs(config: Config) -> FederatedData:
    """Reads the files that a configuration names; returns its data.

    Raises:
        ValueError: one is missing or damaged, or does not fit the clients.
    """
    data, links = FederatedData(config), config.links
    load_availability(config)
    if links.trace is not None:
        load_trace(links.trace, config.clients.count, links.trace_period_s)
    return data


def prepare_experiment(config: Config, recorded: Result | None = None) -> Experiment:
    """Checks what can be checked before any rank works.

    Raises:
        ValueError: data missing, damaged or too small for the clients, the results file exists, or
            the log to replay is damaged or of another configuration.
    """
    if recorded is not None:
        ReplayClock(config, recorded)
    data = check_inputs(config)
    path = Path(config.results.path or _default_path(config)).expanduser()
    if path.exists():
        raise ValueError(f"results.path: {path} exists and is never overwritten")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"results.path: cannot make {path.parent}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"results.path: cannot write in {path.parent}")
    text = render_config(config)
    run_id = xxhash.xxh3_64_intdigest(f"{text}{time.time_ns()}".encode())
    return Experiment(config, data, path, run_id, recorded)


def _default_path(config: Config) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return (
        f"results/{config.data.name}-{config.method}-{config.clients.level}"
        f"-s{config.seed}-{stamp}-{os.getpid()}.h5"
    )


def lead(config: Config | ValueError, recorded: Result | None, transport: Transport) -> int:
    """Rank 0 of several."""
    try:
        if isinstance(config, ValueError):
            raise config
        experiment = prepare_experiment(config, recorded)
    except (ValueError, OSError, RunError) as error:
        _print_error(str(error))
        for rank in range(1, transport.size):
            transport.send(rank, Tag.STOP, json.dumps({"code": EXIT_BAD_INPUT}).encode())
        transport.flush(START_TIMEOUT_S)
        return EXIT_BAD_INPUT
    for rank in range(1, transport.size):
        hello = {
            "config": config.model_dump(mode="json"),
            "run_id": experiment.run_id,
            "is_replay": experiment.recorded is not None,
        }
        transport.send(rank, Tag.HELLO, json.dumps(hello).encode())
    say(render_summary(serve(experiment, transport)))
    return 0


def guard(transport: Transport, part: Callable[[], int]) -> int:
    """Runs a rank's part; whatever goes wrong ends all ranks, which would wait for ever."""
    try:
        code = part()
        if transport.gone:
            transport.abort(code)
        transport.close()
        return code
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            _print_error(f"{type(error).__name__}: {error}")
        elif transport.rank == 0:
            _print_error("interrupted")
        if not isinstance(error, (RunError, ValueError, OSError, KeyboardInterrupt)):
            traceback.print_exception(error)
        sys.stderr.flush()
        transport.abort(EXIT_FAILED)
        return EXIT_FAILED


def follow(transport: Transport, device: str = "cpu") -> int:
    """A client rank: waits for the configuration, then works until the server says stop."""
    message = transport.recv(START_TIMEOUT_S)
    content = json.loads(bytes(message.payload))
    if message.tag == Tag.STOP:
        return int(content["code"])
    keep_large_blocks()
    config, run_id = make_config(content["config"]), content["run_id"]
    work(config, transport, run_id, content["is_replay"], device)
    return 0


def work(
    config: Config,
    transport: Transport,
    run_id: int,
    is_replay: bool = False,
    device: str = "cpu",
) -> None:
    """Serves tasks on this rank; a replay is no matter of time, whatever clock the run had."""
    torch.set_num_threads(1)
    try:
        data = FederatedData(config)
    except Exception as error:
        report_failure(transport, error, "receive")
        return
    kind = LiveWorker if config.clock == "wall" and not is_replay else Worker
    kind(config, transport, data, run_id, device).run()


def serve(experiment: Experiment, transport: Transport) -> Result:
    """Runs the server; returns what it wrote."""
    config = experiment.config
    layout = make_layout(config.model.name, config.submodel.kind)
    return_large_blocks()
    writer = ResultWriter(
        experiment.path,
        config_yaml=render_config(config),
        provenance=collect_provenance(Path(__file__).resolve().parent.parent),
        num_clients=config.clients.count,
        num_weights=layout.num_weights,
        layout_json=layout.to_json(),
        num_ranks=transport.size,
        flush_s=config.results.flush_s,
        locking=config.results.locking,
    )
    with writer, make_progress(experiment) as progress:
        server = Server(
            config,
            transport,
            experiment.data,
            writer,
            progress,
            experiment.run_id,
            experiment.recorded,
        )
        weights = server.run()
        if config.trace:
            write_timeline(timeline_path(experiment.path), server.pool.rank_traces())
        writer.finish("finished", weights=weights, ranks=server.rank_rows())
    result = read_result(experiment.path)
    if experiment.recorded is not None:
        say(check_versions(experiment.recorded, result))
    return result


def make_progress(experiment: Experiment) -> Progress:
    """Shows the run on the terminal and in the log file beside the results."""
    config = experiment.config
    return Progress(
        config.progress,
        total_rounds=config.run.max_rounds,
        total_s=config.run.max_time_s,
        log_path=log_path(experiment.path),
    )


def log_path(results: Path) -> Path:
    """The log beside a result file: run.h5 -> run.log, any other name -> name.log."""
    stem = results.stem if results.suffix == ".h5" else results.name
    return results.with_name(f"{stem}.log")


def _run_alone(config: Config | ValueError, recorded: Result | None) -> int:
    """Server and clients in one process."""
    try:
        if isinstance(config, ValueError):
            raise config
        experiment = prepare_experiment(config, recorded)
    except (ValueError, OSError, RunError) as error:
        _print_error(str(error))
        return EXIT_BAD_INPUT
    server_side, client_side = make_inproc(2)
    say(
        f"one process: server and clients, pid {os.getpid()}, {torch.get_num_threads()} thread each"
    )

    def part() -> int:
        say(render_summary(_run_threads(experiment, server_side, client_side)))
        return 0

    return guard(server_side, part)


def _run_threads(experiment: Experiment, server_side: Transport, client_side: Transport) -> Result:
    is_replay = experiment.recorded is not None
    config = experiment.config
    device = choose_device(detect_launch(os.environ), torch.cuda.device_count(), config.device)
    arguments = (config, client_side, experiment.run_id, is_replay, device)
    thread = threading.Thread(target=work, args=arguments, name="clients", daemon=True)
    thread.start()
    try:
        return serve(experiment, server_side)
    finally:
        server_side.abort(EXIT_FAILED)  # wakes the clients' thread if the server failed
        thread.join(timeout=60.0)


def run(config: Config) -> Result:
    """Runs a training in this process: the server here, the clients in a thread.

    Args:
        config: from `load_config` or `make_config`.

    Returns:
        The result file's content: tables as arrays, final weights, and the file's path.

    Raises:
        ValueError: the data or the results path do not fit the configuration.
        RunError: the run failed; says where.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run_threads(prepare_experiment(config), *make_inproc(2))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
