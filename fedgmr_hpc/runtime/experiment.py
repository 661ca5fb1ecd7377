"""A prepared run from its first event to its last byte: the server's part.

Where a run is resumed (runtime/checkpoints/), its result file is begun anew, with the rows up to
the checkpoint.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.choices.failures import naming_plugins
from fedgmr_hpc.config.files import render_config
from fedgmr_hpc.models import run_layout
from fedgmr_hpc.runtime.callbacks.contract import Callback
from fedgmr_hpc.runtime.callbacks.teller import Teller
from fedgmr_hpc.runtime.checkpoints.manager import CheckpointManager
from fedgmr_hpc.runtime.checkpoints.plan import (
    adopt_checkpoint,
    move_aside,
    resumed_provenance,
)
from fedgmr_hpc.runtime.preparation import Experiment, cautions
from fedgmr_hpc.runtime.progress import Progress
from fedgmr_hpc.runtime.provenance import collect_provenance, rank_software
from fedgmr_hpc.runtime.server import Server
from fedgmr_hpc.runtime.timeline import write_timeline
from fedgmr_hpc.storage.checkpoint import Tree, remove_checkpoints
from fedgmr_hpc.storage.process import resident_bytes
from fedgmr_hpc.storage.reader import Result, kept_rows, read_result
from fedgmr_hpc.storage.run_files import checkpoint_path, log_path, timeline_path
from fedgmr_hpc.storage.schema import RankRow
from fedgmr_hpc.storage.writer import ResultWriter
from fedgmr_hpc.training.kernels.torch_csr import TorchKernels
from fedgmr_hpc.transport.contract import Transport
from fedgmr_hpc.transport.termination import STOP_REQUEST, StopRequest

log = logging.getLogger("fedgmr_hpc")
SLOW_KERNELS = (
    "compact layers are computed by torch's sparse matrices, several times as slowly as by the "
    "compiled kernels, which are missing or older than their sources: `make kernels` builds them"
)


def serve(
    experiment: Experiment,
    transport: Transport,
    stop: StopRequest = STOP_REQUEST,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Run the server of a prepared run.

    Args:
        stop: asks it to stop; by default the signals that this process gets.
        callbacks: are told what happens.

    Returns:
        What it wrote. Where it was asked to stop, the run is checkpointed, not finished.

    Raises:
        RunError: the run has failed, or a callback.
    """
    with experiment.owner or nullcontext(), Teller(callbacks, stop.ask) as tell:
        return _serve(experiment, transport, stop, tell)


def _serve(experiment: Experiment, transport: Transport, stop: StopRequest, tell: Teller) -> Result:
    config, path = experiment.config, experiment.path
    saved = _saved_state(experiment)
    writer = _make_writer(experiment, transport.size, saved)
    manager = CheckpointManager(path, config, stop, experiment.check_owner, experiment.kernels)
    with writer, make_progress(experiment) as progress, naming_plugins(rank=transport.rank):
        for caution in cautions(config, transport.size):
            log.warning("warning: %s", caution)
        if experiment.kernels == TorchKernels.name:
            log.warning("warning: %s", SLOW_KERNELS)
        server = Server(
            config,
            transport,
            experiment.data,
            writer,
            progress,
            experiment.run_id,
            experiment.recorded,
            tell,
        )
        if saved is not None:
            manager.restore(server, saved)
        tell.start(config, path, manager.resumed_version, server.coordinator.round)
        weights = server.run(None if experiment.recorded is not None else manager.should_stop)
        if weights is None and tell.error is not None:
            raise tell.error
        tell.status = "finished" if weights is not None else manager.describe_stop()
        writer.finish(tell.status, weights=weights, ranks=_rank_rows(server))
        if config.trace:
            _write_timeline(path, server)
    if weights is not None:
        experiment.check_owner()
        remove_checkpoints(checkpoint_path(path))
    return read_result(path)


def _write_timeline(path: Path, server: Server) -> None:
    """Write the timeline, without which the results are whole."""
    traces = server.pool.rank_traces()
    for rank in sorted({*range(server.transport.size)} - {trace.rank for trace in traces}):
        log.warning("warning: the timeline has no spans of rank %d, which was lost", rank)
    try:
        write_timeline(timeline_path(path), traces)
    except OSError as error:
        log.warning("no timeline: %s: %s", timeline_path(path), error.strerror)


def _saved_state(experiment: Experiment) -> Tree | None:
    """Return the checkpoint to resume from; without one, clear away what an earlier try left."""
    path, plan = experiment.path, experiment.plan
    if plan is not None and plan.checkpoint is not None:
        return adopt_checkpoint(path, plan.checkpoint)
    remove_checkpoints(checkpoint_path(path))
    if plan is not None:
        move_aside(path)
    return None


def _make_writer(experiment: Experiment, num_ranks: int, saved: Tree | None) -> ResultWriter:
    """Make the result file, of a resumed run with the rows up to its checkpoint."""
    config, kept = experiment.config, None
    layout = run_layout(config, experiment.data.num_classes)
    provenance = collect_provenance(Path(__file__).resolve().parents[2])
    provenance["data_xxh3"] = experiment.data.fingerprint
    provenance["kernels"] = experiment.kernels
    provenance["plugins"] = json.dumps(config.plugin_digests)
    provenance["num_ranks"] = str(num_ranks)
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
    """Show the run on the terminal and in the log file beside the results."""
    config = experiment.config
    return Progress(
        config.progress,
        total_rounds=config.run.max_rounds,
        total_s=config.run.max_time_s,
        log_path=log_path(experiment.path),
    )


def _rank_rows(server: Server) -> list[RankRow]:
    """Return what each rank did, after the run; client ranks since the last resume."""
    sent_bytes, received_bytes = server.moved_bytes
    mine: dict[str, Any] = {
        "host": socket.gethostname(),
        "device": "cpu",
        "num_tasks": server.coordinator.version,
        "train_s": 0.0,
        "wait_s": server.pool.wait_s,
        "rss_bytes": resident_bytes(),
        "sent_bytes": sent_bytes,
        "received_bytes": received_bytes,
        **rank_software(server.transport),
    }
    charged_bytes = server.ledger.server_up_bytes + server.ledger.server_down_bytes
    overhead_bytes = sent_bytes + received_bytes - charged_bytes
    if server.config.links.size == "nominal":
        overhead_bytes = 0  # charges are no frame lengths, so a difference means nothing
    return [
        RankRow(rank=0, overhead_bytes=overhead_bytes, **mine),
        *(
            RankRow(rank=rank, overhead_bytes=0, **stats)
            for rank, stats in sorted(server.pool.goodbyes.items())
        ),
    ]
