"""A checked run: what is looked at before any rank works, and the server's part from start to end.

Where a run is resumed (resume.py), its result file is begun anew, with the rows up to the
checkpoint.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from fedgmr_hpc.config.files import render_config
from fedgmr_hpc.config.identity import method_slug
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.models import run_layout
from fedgmr_hpc.network.link_traces import load_trace
from fedgmr_hpc.runtime.progress import Progress
from fedgmr_hpc.runtime.provenance import collect_provenance
from fedgmr_hpc.runtime.rank_rows import rank_rows
from fedgmr_hpc.runtime.replay import ReplayClock
from fedgmr_hpc.runtime.resume import Keeper
from fedgmr_hpc.runtime.server import Server, load_availability
from fedgmr_hpc.runtime.start import (
    Start,
    check_data,
    find_finished,
    find_start,
    resumed_provenance,
    set_aside,
    take_checkpoint,
)
from fedgmr_hpc.runtime.timeline import write_timeline
from fedgmr_hpc.storage.checkpoint import Tree, has_checkpoint, remove_checkpoints
from fedgmr_hpc.storage.ownership import Owner, claim, describe_self
from fedgmr_hpc.storage.reader import Result, kept_rows, read_result
from fedgmr_hpc.storage.run_files import checkpoint_path, log_path, timeline_path
from fedgmr_hpc.storage.writer import ResultWriter
from fedgmr_hpc.training.process_settings import return_large_blocks
from fedgmr_hpc.transport.contract import Transport
from fedgmr_hpc.transport.termination import STOP_REQUEST

log = logging.getLogger("fedgmr_hpc")
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True)
class Experiment:
    """A checked run: configuration, data, and where the results go."""

    config: Config
    data: FederatedData
    path: Path
    run_id: int
    recorded: Result | None = None  # the run to replay
    start: Start | None = None  # of a run that may be a resumed one
    owner: Owner | None = None  # of its files, until `serve` returns

    def check_owner(self) -> None:
        """Fails where another process has taken the run over.

        Raises:
            NotOwner: it has.
        """
        if self.owner is not None:
            self.owner.check()


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


def prepare_experiment(
    config: Config, recorded: Result | None = None, resumes: bool = False
) -> Experiment:
    """Checks what can be checked before any rank works.

    Args:
        resumes: whether the run goes on with its result file, where that was begun.

    Raises:
        ValueError: data missing, damaged, too small for the clients or other than those of the
            run to go on with or to replay, the results file exists or its checkpoint does not fit,
            or the log to replay is damaged or of another configuration, or another process is
            the owner of the results.
        OSError: the disk is full or failing.
    """
    if recorded is not None:
        ReplayClock(config, recorded)
    data = check_inputs(config)
    if recorded is not None:
        then = recorded.provenance.get("data_xxh3")
        check_data(then, data.fingerprint, config, recorded.path)
    path = Path(config.results.path or _default_path(config)).expanduser()
    text = render_config(config)
    run_id = xxhash.xxh3_64_intdigest(f"{text}{time.time_ns()}".encode())
    run = Experiment(config, data, path, run_id, recorded)
    finished = find_finished(path, config, data.fingerprint) if resumes else None
    if finished is not None:
        return replace(run, start=finished)
    _make_folder(path.parent)
    owner = claim(path, describe_self(f"{run_id:016x}"), lambda: STOP_REQUEST.should_stop)
    try:
        return replace(run, owner=owner, start=_find_place(run, resumes))
    except BaseException:
        owner.release()
        raise


def _find_place(run: Experiment, resumes: bool) -> Start | None:
    """How a run that may be a resumed one begins; None for one that needs a new file.

    Raises:
        ValueError: there is a file, or it cannot be gone on with.
    """
    if resumes:
        return find_start(run.path, run.config, run.data.fingerprint)
    if run.path.exists():
        hint = "; --resume goes on with it" if has_checkpoint(checkpoint_path(run.path)) else ""
        raise ValueError(f"results.path: {run.path} exists and is never overwritten{hint}")
    return None


def _make_folder(folder: Path) -> None:
    """Makes the folder of the results, and sees that files can be made in it.

    Raises:
        ValueError: they cannot.
        OSError: the disk is full or failing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(error, f"cannot make {folder}") from None
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _refused(error, f"cannot write in {folder}") from None


def _refused(error: OSError, what: str) -> ValueError | OSError:
    """A full disk is no wrong input."""
    text = f"results.path: {what}: {error.strerror}"
    return OSError(error.errno, text) if error.errno in DISK_FAULTS else ValueError(text)


def _default_path(config: Config) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return (
        f"results/{config.data.name}-{method_slug(config)}-{config.clients.level}"
        f"-s{config.seed}-{stamp}-{os.getpid()}.h5"
    )


def serve(experiment: Experiment, transport: Transport) -> Result:
    """Runs the server; returns what it wrote. The run may end before its end, checkpointed."""
    with experiment.owner or nullcontext():
        return _serve(experiment, transport)


def _serve(experiment: Experiment, transport: Transport) -> Result:
    config, path = experiment.config, experiment.path
    return_large_blocks()
    saved = _saved_state(experiment)
    writer = _make_writer(experiment, transport.size, saved)
    keeper = Keeper(path, config, STOP_REQUEST, experiment.check_owner)
    with writer, make_progress(experiment) as progress:
        if idle := describe_idle_ranks(config.clients.count, transport.size):
            log.warning("warning: %s", idle)
        server = Server(
            config,
            transport,
            experiment.data,
            writer,
            progress,
            experiment.run_id,
            experiment.recorded,
        )
        if saved is not None:
            keeper.restore(server, saved)
        weights = server.run(None if experiment.recorded is not None else keeper.ends_here)
        status = "finished" if weights is not None else keeper.describe_end()
        writer.finish(status, weights=weights, ranks=rank_rows(server))
        if config.trace:
            _write_timeline(path, server)
    if weights is not None:
        experiment.check_owner()
        remove_checkpoints(checkpoint_path(path))
    return read_result(path)


def describe_idle_ranks(num_clients: int, num_ranks: int) -> str:
    """What a run on `num_ranks`, the server's included, wastes; "" where each has a client."""
    num_idle = num_ranks - 1 - num_clients
    if num_idle <= 0:
        return ""
    return (
        f"{num_ranks - 1} client ranks for clients.count = {num_clients}: {num_idle} more than can "
        f"train; {num_clients + 1} ranks are enough"
    )


def _write_timeline(path: Path, server: Server) -> None:
    """The results are whole without it."""
    try:
        write_timeline(timeline_path(path), server.pool.rank_traces())
    except OSError as error:
        log.warning("no timeline: %s: %s", timeline_path(path), error.strerror)


def _saved_state(experiment: Experiment) -> Tree | None:
    """The checkpoint to go on from; without one, what an earlier try left is moved away."""
    path, start = experiment.path, experiment.start
    if start is not None and start.checkpoint is not None:
        return take_checkpoint(path, start.checkpoint)
    remove_checkpoints(checkpoint_path(path))
    if start is not None:
        set_aside(path)
    return None


def _make_writer(experiment: Experiment, num_ranks: int, saved: Tree | None) -> ResultWriter:
    """The result file, of a resumed run with the rows up to its checkpoint."""
    config, kept = experiment.config, None
    layout = run_layout(config)
    provenance = collect_provenance(Path(__file__).resolve().parents[2])
    provenance["data_xxh3"] = experiment.data.fingerprint
    if saved is not None:
        before = read_result(experiment.path)
        kept = kept_rows(before, saved["num_rows"])
        provenance = resumed_provenance(before, provenance, saved["version"])
    return ResultWriter(
        experiment.path,
        config_yaml=render_config(config),
        provenance=provenance,
        num_clients=config.clients.count,
        num_weights=layout.num_weights + layout.num_statistics,
        layout_json=layout.to_json(),
        num_ranks=num_ranks,
        flush_s=config.results.flush_s,
        locking=config.results.locking,
        kept=kept,
        may_write=experiment.check_owner,
    )


def make_progress(experiment: Experiment) -> Progress:
    """Shows the run on the terminal and in the log file beside the results."""
    config = experiment.config
    return Progress(
        config.progress,
        total_rounds=config.run.max_rounds,
        total_s=config.run.max_time_s,
        log_path=log_path(experiment.path),
    )
