"""The parts that a process plays in a run: server, client rank, or both in one.

Rank 0 alone reads and checks the configuration and the data, and hands the resolved configuration
to the others, so a mistake is reported once and every rank ends with exit code 2. A failure while
running ends every rank with exit code 1.

What only the server needs is imported where it begins: on a thousand client ranks, every module is
a thousand times some files and memory.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from fedgmr_hpc.config.choices.failures import naming_plugins
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.reporting.console import print_error, say
from fedgmr_hpc.runtime.wall.worker import LiveWorker
from fedgmr_hpc.runtime.worker import Worker, report_failure
from fedgmr_hpc.training.numeric_settings import settle
from fedgmr_hpc.training.precision import refuse
from fedgmr_hpc.training.process_settings import keep_large_blocks, return_large_blocks
from fedgmr_hpc.training.sub_models import kernels_in_use
from fedgmr_hpc.transport.contract import Tag, Transport, make_inproc
from fedgmr_hpc.transport.ranks import choose_device, detect_launch
from fedgmr_hpc.transport.termination import STOP_REQUEST, StopRequest

if TYPE_CHECKING:
    from fedgmr_hpc.runtime.callbacks.contract import Callback
    from fedgmr_hpc.runtime.preparation import Experiment
    from fedgmr_hpc.storage.reader import Result

# Received arrays are read-only on purpose; torch only reads them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


EXIT_FAILED, EXIT_BAD_INPUT = 1, 2

START_TIMEOUT_S = 1200.0  # decoding a large data set on rank 0 keeps the others waiting


def lead(
    config: Config | ValueError,
    recorded: Result | None,
    transport: Transport,
    report: Callable[[Experiment, Result], int],
    resumes: bool = False,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Run rank 0 of several: prepare the run, hand out its configuration, serve, report.

    Args:
        report: tells a person how the run has ended; return the exit code.
        callbacks: are told what happens.
    """
    from fedgmr_hpc.runtime.experiment import serve

    return_large_blocks()
    experiment = _try_prepare(config, recorded, resumes)
    if isinstance(experiment, int):
        return _dismiss(transport, experiment)
    hello = {
        "config": experiment.config.model_dump(mode="json"),
        "run_id": experiment.run_id,
        "is_replay": experiment.recorded is not None,
        "data_xxh3": experiment.data.fingerprint,
        "kernels": experiment.kernels,
    }
    packed = json.dumps(hello).encode()  # once for all ranks
    for rank in range(1, transport.size):
        transport.send(rank, Tag.HELLO, packed)
    if experiment.config.train.precision != "fp32" and not _ranks_have_precision(transport):
        experiment.release()
        return _dismiss(transport, EXIT_BAD_INPUT)
    _begin(recorded is not None)
    return report(experiment, serve(experiment, transport, callbacks=callbacks))


def _dismiss(transport: Transport, code: int) -> int:
    """Have every rank end with an exit code before anything is trained; return it."""
    for rank in range(1, transport.size):
        transport.send(rank, Tag.STOP, json.dumps({"code": code}).encode())
    transport.flush(START_TIMEOUT_S)
    return code


def _ranks_have_precision(transport: Transport) -> bool:
    """Hear what ranks say of their devices; let all go on if each has the run's precision.

    Where one has not, say so; the others still wait to be told how to end.
    """
    ranks = range(1, transport.size)
    answers = [json.loads(bytes(transport.recv(START_TIMEOUT_S).payload)) for _ in ranks]
    refusals = sorted(answer["refusal"] for answer in answers if answer["refusal"])
    if refusals:
        print_error(refusals[0] + (f" ({len(refusals) - 1} more ranks)" if refusals[1:] else ""))
        return False
    for rank in ranks:
        transport.send(rank, Tag.HELLO, b"")
    return True


def check_device(config: Config) -> None:
    """Check the device of a run in one process.

    Raises:
        ValueError: there is none, or it does not have the run's precision.
    """
    device = choose_device(detect_launch(os.environ), torch.cuda.device_count(), config.device)
    if refusal := refuse(config.train.precision, device, "this process"):
        raise ValueError(refusal)


def _try_prepare(
    config: Config | ValueError,
    recorded: Result | None,
    resumes: bool,
    is_alone: bool = False,
) -> Experiment | int:
    """Return the run, or the exit code if there is nothing to run."""
    from fedgmr_hpc.runtime.preparation import DISK_FAULTS, prepare_experiment

    try:
        if isinstance(config, ValueError):
            raise config
        if is_alone:
            check_device(config)
        if resumes and config.results.path is None:
            raise ValueError(must_be("results.path", "the result file", None, when="resuming"))
        experiment = prepare_experiment(config, recorded, resumes)
    except (ValueError, OSError, RunError) as error:
        print_error(str(error))
        is_disk = isinstance(error, OSError) and error.errno in DISK_FAULTS
        return EXIT_FAILED if is_disk else EXIT_BAD_INPUT
    if experiment.plan is None:
        return experiment
    for note in experiment.plan.notes:
        say(note)
    return 0 if experiment.plan.is_finished else experiment


def _begin(is_replay: bool) -> None:
    """Begin the run: from now on Ctrl-C asks for a checkpoint, except of a replay."""
    if not is_replay:
        STOP_REQUEST.install_ctrl_c()


def _line(error: BaseException) -> str:
    """Return what a user reads of an error; that of a run says all by itself."""
    return str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"


def guard(transport: Transport, part: Callable[[], int]) -> int:
    """Run a rank's part; whatever goes wrong ends all ranks, which would wait for ever."""
    try:
        with naming_plugins(rank=transport.rank):
            code = part()
        if transport.gone:
            lost = sorted(transport.gone)
            which = f"rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
            say(f"lost on the way: {which}; mpirun or torchrun may report a failure")
            transport.abort(code)
        transport.close()
        return code
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            print_error(_line(error))
        elif transport.rank == 0:
            print_error("interrupted")
        if not isinstance(error, (RunError, ValueError, OSError, KeyboardInterrupt)):
            traceback.print_exception(error)
        with suppress(OSError):
            sys.stderr.flush()
        transport.abort(EXIT_FAILED)
        return EXIT_FAILED


def follow(transport: Transport, device: str = "cpu", checks_data: bool = True) -> int:
    """Run a client rank: wait for the configuration, then work until the server says stop.

    Args:
        checks_data: whether this rank reads its node's whole data cache at the start.
    """
    with STOP_REQUEST.suspended():
        message = transport.recv(START_TIMEOUT_S)
    content = json.loads(bytes(message.payload))
    if message.tag == Tag.STOP:
        return int(content["code"])
    keep_large_blocks()
    config, run_id = make_config(content["config"]), content["run_id"]
    transport.allow(config.run.timeout_s)
    settle()  # whatever a plug-in has set
    if config.train.precision != "fp32":
        refusal = refuse(config.train.precision, device, f"rank {transport.rank}")
        transport.send(0, Tag.RESULT, json.dumps({"refusal": refusal}).encode())
        message = transport.recv(START_TIMEOUT_S)
        if message.tag == Tag.STOP:
            return int(json.loads(bytes(message.payload))["code"])
    is_replay, same = content["is_replay"], (content["data_xxh3"], content["kernels"])
    _begin(is_replay)
    return work(config, transport, run_id, *same, is_replay, device, checks_data)


def work(
    config: Config,
    transport: Transport,
    run_id: int,
    data_xxh3: str,
    kernels: str,
    is_replay: bool = False,
    device: str = "cpu",
    checks_data: bool = False,
) -> int:
    """Serve tasks on this rank; a replay is no matter of time, whatever clock the run had.

    Args:
        data_xxh3: the fingerprint of the server's data, which this rank must have, too.
        kernels: what computes compact layers on rank 0, likewise; "" for nothing.
        checks_data: see `follow`.

    Returns:
        The exit code that the server gave.
    """
    torch.set_num_threads(1)  # of this thread
    try:
        data = FederatedData(config, checks_all=checks_data)
        if data.fingerprint != data_xxh3:
            found = f"the data here have the fingerprint {data.fingerprint}"
            raise RunError(f"{found}, those of rank 0 {data_xxh3}: see data.root and data.cache")
        _check_kernels(kernels_in_use(config, device), kernels)
        kind = LiveWorker if config.clock == "wall" and not is_replay else Worker
        worker = kind(config, transport, data, run_id, device)  # may not fit into a GPU's memory
    except Exception as error:
        report_failure(transport, error, "receive")
        return 0
    worker.run()
    return worker.exit_code


def _check_kernels(here: str, on_rank_0: str) -> None:
    """Fail where the same sub-model would get other bits here than on another rank."""
    if here and on_rank_0 and here != on_rank_0:
        found = f"compact layers are computed here by the kernels {here}"
        raise RunError(f"{found}, on rank 0 by {on_rank_0}: see docs/compact-training.md")


def run_alone(
    config: Config | ValueError,
    recorded: Result | None,
    report: Callable[[Experiment, Result], int],
    resumes: bool = False,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Run server and clients in one process; return the exit code."""
    experiment = _try_prepare(config, recorded, resumes, is_alone=True)
    if isinstance(experiment, int):
        return experiment
    server_side, client_side = make_inproc(2)
    _begin(recorded is not None)
    say(
        f"one process: server and clients, pid {os.getpid()}, {torch.get_num_threads()} thread each"
    )

    def serve_here() -> int:
        result = serve_alone(experiment, server_side, client_side, callbacks=callbacks)
        return report(experiment, result)

    return guard(server_side, serve_here)


def serve_alone(
    experiment: Experiment,
    server_side: Transport,
    client_side: Transport,
    stop: StopRequest = STOP_REQUEST,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Run a prepared run in this process: the server here, the clients in a thread.

    Args:
        stop: as `serve` takes it, with `callbacks`.

    Returns:
        What the server wrote.

    Raises:
        RunError: the run has failed, or a callback.
    """
    from fedgmr_hpc.runtime.experiment import serve

    keep_large_blocks()
    is_replay = experiment.recorded is not None
    config = experiment.config
    device = choose_device(detect_launch(os.environ), torch.cuda.device_count(), config.device)
    same = experiment.data.fingerprint, experiment.kernels
    arguments = (config, client_side, experiment.run_id, *same, is_replay, device)
    thread = threading.Thread(target=work, args=arguments, name="clients", daemon=True)
    thread.start()
    try:
        return serve(experiment, server_side, stop, callbacks)
    finally:
        server_side.abort(EXIT_FAILED)  # wakes the clients' thread if the server failed
        thread.join(timeout=60.0)
