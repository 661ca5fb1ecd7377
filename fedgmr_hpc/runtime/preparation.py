"""What is checked and claimed before a run: inputs, data, ranks, result file, owner.

Rank 0 prepares alone, so that a mistake is reported once (runtime/roles.py).
"""

from __future__ import annotations

import errno
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xxhash

from fedgmr_hpc.config.files import render_config
from fedgmr_hpc.config.identity import flat, method_slug
from fedgmr_hpc.config.rules import USED_WITH, is_used
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.restoration.restoring import TIME_FRACTIONS
from fedgmr_hpc.network.link_traces import trace_of
from fedgmr_hpc.runtime.checkpoints.plan import (
    ResumePlan,
    check_data,
    check_kernels,
    plan_finished,
    plan_resume,
    refuse_dangling,
    refuse_orphan,
)
from fedgmr_hpc.runtime.replay import ReplayClock
from fedgmr_hpc.runtime.server import load_availability
from fedgmr_hpc.storage.checkpoint import has_checkpoint
from fedgmr_hpc.storage.ownership import Owner, claim, describe_self
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.storage.run_files import checkpoint_path
from fedgmr_hpc.training.sub_models import kernels_in_use
from fedgmr_hpc.transport.termination import STOP_REQUEST

# Keys that are accepted where they have no effect, though whoever sets them may expect one.
MISSED_WHERE_UNUSED = (
    "data.alpha",
    "data.shards_per_client",
    "data.classes_per_client",
    "aggregation.staleness",
    "links.rank_down_bytes_per_s",
    "links.rank_up_bytes_per_s",
)
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True)
class Experiment:
    """A checked run: configuration, data, and where the results go."""

    config: Config
    data: FederatedData
    path: Path
    run_id: int
    recorded: Result | None = None  # the run to replay
    plan: ResumePlan | None = None  # of a run that may be a resumed one
    owner: Owner | None = None  # of its files, until `serve` returns
    kernels: str = ""  # which compute its compact layers; "" where no layer can be compact

    def release(self) -> None:
        """Give the run's files up before anything is served."""
        if self.owner is not None:
            self.owner.release()

    def check_owner(self) -> None:
        """Fail where another process has taken the run over.

        Raises:
            NotOwner: it has.
        """
        if self.owner is not None:
            self.owner.check()


def check_inputs(config: Config) -> FederatedData:
    """Read the files that a configuration names.

    Returns:
        Its data.

    Raises:
        ValueError: one is missing, damaged or not what the run began with, or does not fit the
            clients.
    """
    data = FederatedData(config)
    load_availability(config)
    trace_of(config.links, config.clients.count)
    return data


def prepare_experiment(
    config: Config, recorded: Result | None = None, resumes: bool = False
) -> Experiment:
    """Check whatever can be checked before any rank works: inputs, data, result file, owner.

    Args:
        recorded: the run to replay.
        resumes: whether to continue the run whose result file is there.

    Returns:
        The run, whose files belong to this process until `serve` returns.

    Raises:
        ValueError: data missing, damaged, too small for the clients or other than those of the
            run to go on with or to replay, its kernels likewise, the results file exists or its
            checkpoint does not fit, or the log to replay is damaged or of another configuration,
            or another process is the owner of the results.
        OSError: the disk is full or failing.
    """
    if recorded is not None:
        ReplayClock(config, recorded)
    data = check_inputs(config)
    kernels = kernels_in_use(config, _device(config))
    if recorded is not None:
        then = recorded.provenance.get("data_xxh3")
        check_data(then, data.fingerprint, config, recorded.path)
        then, kind = recorded.provenance.get("kernels", "none"), config.submodel.kind
        check_kernels(then, kernels, recorded.path, kind)
    text = render_config(config)
    run_id = xxhash.xxh3_64_intdigest(f"{text}{time.time_ns()}".encode())
    path = Path(config.results.path or _default_path(config, run_id)).expanduser()
    run = Experiment(config, data, path, run_id, recorded, kernels=kernels)
    finished = plan_finished(path, config, data.fingerprint, kernels) if resumes else None
    if finished is not None:
        return replace(run, plan=finished)
    _make_folder(path.parent)
    owner = claim(path, describe_self(f"{run_id:016x}"), lambda: STOP_REQUEST.should_stop)
    try:
        return replace(run, owner=owner, plan=_plan(run, resumes))
    except BaseException:
        owner.release()
        raise


def _device(config: Config) -> str:
    """Return what clients train on, as far as rank 0 can tell."""
    sees_gpus = config.device == "auto" and torch.cuda.is_available()
    return "cuda" if sees_gpus or config.device == "cuda" else "cpu"


def _plan(run: Experiment, resumes: bool) -> ResumePlan | None:
    """Plan how the run begins; None for one that needs a new file.

    Raises:
        ValueError: there is a file, or it cannot be gone on with, or its link leads nowhere.
    """
    refuse_dangling(run.path)
    if resumes:
        return plan_resume(run.path, run.config, run.data.fingerprint, run.kernels)
    if run.path.exists():
        can_resume = has_checkpoint(checkpoint_path(run.path))
        hint = "; name another" + (", or continue it with --resume" if can_resume else "")
        raise ValueError(f"results.path: {run.path} exists and is never overwritten{hint}")
    refuse_orphan(run.path)
    return None


def _make_folder(folder: Path) -> None:
    """Make the folder of the results, and check that files can be made in it.

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
    """Return the error to raise: a full disk is no wrong input."""
    text = f"results.path: {what}: {error.strerror}"
    return OSError(error.errno, text) if error.errno in DISK_FAULTS else ValueError(text)


def _default_path(config: Config, run_id: int) -> str:
    """Return a path that no other run has, also of those that begin in the same second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return (
        f"results/{config.data.name}-{method_slug(config)}-{config.clients.level}"
        f"-s{config.seed}-{stamp}-{run_id >> 32:08x}.h5"
    )


def cautions(config: Config, num_ranks: int) -> list[str]:
    """Return a line for all that a run on `num_ranks`, the server's included, may do but hardly
    anybody wants.
    """
    found = (
        _idle_ranks(config, num_ranks),
        _narrow_level(config),
        _late_restoration(config),
        _nothing_trimmed(config),
    )
    return [*filter(None, found), *_unused(config)]


def _idle_ranks(config: Config, num_ranks: int) -> str:
    count = config.clients.count
    num_idle = num_ranks - 1 - count
    if num_idle <= 0:
        return ""
    return (
        f"{num_ranks - 1} client ranks for clients.count = {count}: {num_idle} more than can "
        f"train; {count + 1} ranks are enough"
    )


def _narrow_level(config: Config) -> str:
    """Return that no client has the whole bandwidth, which a level gives to a tenth or more of
    them, rounded down.
    """
    clients, most = config.clients, max(config.clients.bandwidth_shares())
    if clients.shares is not None or most == 1:
        return ""
    return (
        f"clients.level = {clients.level} gives none of {clients.count} clients a bandwidth share "
        f"above {most:g}; use 10 or more clients, or clients.shares"
    )


def _unused(config: Config) -> Iterator[str]:
    values, defaults = (flat(each.model_dump()) for each in (config, Config()))
    for key in MISSED_WHERE_UNUSED:
        if values[key] != defaults[key] and not is_used(key, values):
            value, other = values[key], USED_WITH[key].other
            text = value if isinstance(value, str) else f"{value:g}"
            yield f"{key} = {text} has no effect when {other} is {values[other]!r}"


def _late_restoration(config: Config) -> str:
    trigger, total_s = config.restoration.trigger, config.restoration.total_time_s
    first_s, end_s = TIME_FRACTIONS[0] * total_s, config.run.max_time_s
    if trigger not in ("time", "both") or end_s is None or end_s >= first_s:
        return ""
    return (
        f"restoration.total_time_s = {total_s:g} restores at {first_s:g} s at the earliest, after "
        f"run.max_time_s = {end_s:g}"
    )


def _nothing_trimmed(config: Config) -> str:
    """Return that a trimmed mean is a plain one: it leaves out a share of the values, rounded
    down.
    """
    share, most = config.aggregation.trim_frac, config.clients.sampled or config.clients.count
    if config.aggregation.buffered:
        most = config.aggregation.max_entries or config.clients.count
    if config.aggregation.rule != "trimmed_mean" or int(share * most):
        return ""
    least = math.ceil(1000 / most) / 1000
    hint = f"use {least:g} or more" if least < 0.5 else "use more clients"
    return (
        f"aggregation.trim_frac = {share:g} leaves out none of {most} values, rounded down, so "
        f"the trimmed mean is a plain one; {hint}"
    )
