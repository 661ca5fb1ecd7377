"""How `--resume` begins a run: from the beginning, from a checkpoint, or not at all.

    result file   checkpoint   what `launch --resume` does
    none          none         starts from the beginning
    unfinished    none         starts from the beginning; the file becomes NAME.old
    unfinished    whole        resumes from the newest generation that is whole and fits the rows
    finished      any          nothing, with exit code 0
    none          any          an error: its rows are missing

A file is taken for finished where its weights are those that its last evaluation has seen
(`result.doubt`), whatever its status says. A checkpoint fits where the file has all of its rows
and the event log has, at its last one, the hash that the checkpoint has.

A configuration that is not of the same run (identity.py) is an error that names the keys; from that
of a finished run the limits may not differ either.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.choices.plugins import other_plugins
from fedgmr_hpc.config.choices.section import Mark
from fedgmr_hpc.config.identity import CELL, RESUMED, differences
from fedgmr_hpc.config.messages import must, must_be, shown
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.storage.checkpoint import (
    Tree,
    has_checkpoint,
    read_checkpoint,
    remove_checkpoints,
    remove_unfinished,
)
from fedgmr_hpc.storage.reader import Result, doubt, kept_rows, read_result
from fedgmr_hpc.storage.run_files import checkpoint_path, damaged_path, moved_aside_path, older

log = logging.getLogger("fedgmr_hpc")
_SAME_BITS = ("cpu_model", "cpu_capability", "version_torch", "version_numpy", "git_commit")


@dataclass(frozen=True)
class ResumePlan:
    """How a run begins that may be a resumed one.

    Attributes:
        is_finished: whether there is nothing left to do.
        checkpoint: the generation to resume from, None where the run begins anew.
        notes: what the user should know.
    """

    is_finished: bool = False
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()


def plan_finished(
    results: Path, config: Config, data_xxh3: str | None = None, kernels: str = ""
) -> ResumePlan | None:
    """Plan for a finished run, and remove what a kill left of its checkpoints.

    Args:
        data_xxh3: the fingerprint of the data that the run would be resumed with, if that counts.
        kernels: what would compute its compact layers; "" if nothing.

    Returns:
        None where the run is not finished.

    Raises:
        ValueError: it is of another configuration, of other data or of other kernels.
    """
    begun = _read_begun(results)
    if begun is None or begun.status != "finished":
        return None
    _check_config(begun.config, config, f"{results}, which is finished", CELL)
    check_data(begun.provenance.get("data_xxh3"), data_xxh3, config, results)
    check_kernels(begun.provenance.get("kernels"), kernels, results)
    if doubt(begun):
        return None
    remove_checkpoints(checkpoint_path(results))
    return ResumePlan(is_finished=True, notes=(f"{results} is finished: nothing to resume",))


def plan_resume(
    results: Path, config: Config, data_xxh3: str | None = None, kernels: str = ""
) -> ResumePlan:
    """Plan from what the result file and its checkpoints say.

    Args:
        data_xxh3: as for `plan_finished`.
        kernels: likewise.

    Raises:
        ValueError: no checkpoint is whole and fits, or it is of another configuration, of other
            data or of other kernels.
    """
    finished = plan_finished(results, config, data_xxh3, kernels)
    if finished is not None:
        return finished
    path, begun = checkpoint_path(results), _read_begun(results)
    doubts: tuple[str, ...] = ()
    if begun is not None and begun.status == "finished":
        doubts = (f"{results} says that it is finished, but {doubt(begun)}",)
    if not has_checkpoint(path):
        note = f"no checkpoint {path} yet: starts from the beginning"
        if begun is not None:
            _check_config(begun.config, config, results, RESUMED)
        if results.exists():
            note += f"; {results} as it was becomes {moved_aside_path(results)}"
        return ResumePlan(notes=(*doubts, note))
    refuse_orphan(results)
    file, wrong = _fitting_checkpoint(path, read_result(results), config, data_xxh3, kernels)
    notes = (f"{wrong}; resumes from the older {file}",) if wrong else ()
    return ResumePlan(checkpoint=file, notes=(*doubts, *notes))


def refuse_dangling(results: Path) -> None:
    """Refuse a link to a file that is not there: a new file would take the link's place.

    Raises:
        ValueError: it is one.
    """
    if results.is_symlink() and not results.exists():
        because = f"it leads to {results.readlink()}"
        need = "not be a link to a file that is not there"
        raise ValueError(must("results.path", need, results, because=because))


def refuse_orphan(results: Path) -> None:
    """Refuse a checkpoint without its result file: whoever moved that away would lose the state.

    Raises:
        ValueError: there is a checkpoint, and no result file.
    """
    path = checkpoint_path(results)
    if has_checkpoint(path) and not results.exists():
        raise ValueError(
            f"results.path: got {results}, which is not there, but its checkpoint is: "
            f"bring it back, or remove {path}*"
        )


def _read_begun(results: Path) -> Result | None:
    """Return the result file, None if there is none that can be read (killed while it was made)."""
    try:
        return read_result(results) if results.exists() else None
    except ValueError:
        return None


def _fitting_checkpoint(
    path: Path, result: Result, config: Config, data_xxh3: str | None, kernels: str
) -> tuple[Path, str]:
    """Return the newest generation from which a result goes on, and why no newer one.

    Raises:
        ValueError: there is none, or one is of another configuration, data or kernels.
    """
    wrong: list[str] = []
    for each in (path, older(path)):
        try:
            saved = read_checkpoint(each)
        except ValueError as error:
            wrong.append(str(error))
            continue
        _check_config(saved["config"], config, f"the checkpoint {each}", RESUMED)
        check_data(saved.get("data_xxh3"), data_xxh3, config, each)
        check_kernels(saved.get("kernels"), kernels, each, config.submodel.kind)
        try:
            _check_fit(result, saved)
            return each, "; ".join(wrong)
        except ValueError as error:
            wrong.append(f"checkpoint {each}: {error}")
    raise ValueError("; ".join(wrong))


def _check_fit(result: Result, saved: Tree) -> None:
    """Fail where a checkpoint is of other rows than a result holds."""
    kept = kept_rows(result, saved["num_rows"])
    chain = kept["events"]["chain_xxh3"]
    if len(chain) and int(chain[-1]) != saved["server"]["log"]["chain"]:
        raise ValueError(f"its events are not those of {result.path}, by events/chain_xxh3")


def _check_config(
    saved: Mapping[str, Any], config: Config, of: str | Path, counting: tuple[Mark, ...]
) -> None:
    different, when = differences(saved, config, counting), f"continuing {of}"
    wrong = other_plugins(*different.pop("plugin_digests", ({}, {})), when)
    wrong += [must_be(key, shown(then), now, when=when) for key, (then, now) in different.items()]
    if wrong:
        raise ValueError("\n".join(wrong))


def check_data(then: str | None, now: str | None, config: Config, of: Path) -> None:
    """Fail if the data of a run are not those of `of`; files older than fingerprints have none.

    Raises:
        ValueError: names both fingerprints.
    """
    if None not in (then, now) and then != now:
        root = config.data.root
        need, because = f"hold data with fingerprint {then}", f"its data have {now}"
        raise ValueError(must("data.root", need, root, when=f"continuing {of}", because=because))


def check_kernels(then: str | None, now: str, of: Path, kind: str = "") -> None:
    """Fail if other kernels would compute the compact layers of a run than those of `of`; where
    nothing is compact there are none.

    Args:
        then: those of `of`; None if that does not matter.
        kind: of the sub-models; those of `magnitude` had no compact layers at first.

    Raises:
        ValueError: names both.
    """
    had_none = then == "" and kind == "magnitude"
    if now and then != now and (then or had_none):
        because = "others round otherwise, see docs/compact-training.md"
        what = "the kernels of compact layers"
        raise ValueError(
            must_be(what, then or "none", now, when=f"continuing {of}", because=because)
        )


def adopt_checkpoint(results: Path, file: Path) -> Tree:
    """Read the generation to resume from, and make it the newest by name.

    Raises:
        ValueError: it is damaged.
    """
    path = checkpoint_path(results)
    remove_unfinished(path)
    saved = read_checkpoint(file)
    if file != path:
        if path.exists():
            os.replace(path, damaged_path(path))
        os.replace(file, path)
    return saved


def move_aside(results: Path) -> None:
    """Move an unfinished result file without a checkpoint out of the way, to NAME.old."""
    if results.exists():
        os.replace(results, moved_aside_path(results))


def resumed_provenance(before: Result, now: Mapping[str, str], version: int) -> dict[str, str]:
    """Return the provenance of a resumed run: that of its start, and what changed since."""
    then = before.provenance
    number = 1 + sum(key.startswith("resume_") for key in then)
    different = {key: value for key, value in now.items() if then.get(key) != value}
    if other := [key for key in _SAME_BITS if key in different and key in then]:
        log.warning("resumed with another %s: the last bits may differ", ", ".join(other))
    at_utc = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"version": version, "utc": at_utc, **different}
    return {**then, f"resume_{number}": json.dumps(entry)}
