"""The files of a study's cells, and the states they show: done, running, failed and others.

A trial may have diverged, which is final; a cell whose values trials have yet to choose is waiting
(tuning.py).

    cells/NAME.h5       the result; NAME is slug-digest, found again by its digest alone
    cells/NAME.log      the run's log
    cells/NAME.yaml     its configuration: python -m fedgmr_hpc.launch --config NAME.yaml
    cells/NAME.error    what it printed, where it failed; the first line says what went wrong
    cells/NAME.ckpt     its checkpoint, until it has finished
    cells/.jobs/        what was submitted to Slurm (job_states.py)
    cells/.locks/DIGEST held by whoever runs the cell (locks.py)

A result that cannot be read, or is of another configuration, is never removed: NAME.h5.kept-1 and
so on is where it goes, with its checkpoints and log, when the cell runs again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from fedgmr_hpc.config.errors import DIVERGED
from fedgmr_hpc.config.identity import CELL, differences, identity
from fedgmr_hpc.storage.checkpoint import has_checkpoint, read_checkpoint, remove_checkpoints
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.storage.run_files import (
    checkpoint_path,
    error_path,
    log_path,
    older,
    output_path,
    timeline_path,
)
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.locks import is_locked

Status = Literal[
    "done", "diverged", "queued", "running", "failed", "interrupted", "missing", "waiting"
]
ENDED = ("done", "diverged")  # nothing of it is left to do
EXIT_REFUSED = 2  # of a run that has begun nothing
STUCK = "it failed again without a newer checkpoint: the next run starts from the beginning"


@dataclass(frozen=True)
class CellState:
    """What is known of a cell.

    `progress_frac`: of its rounds or virtual time; `error`: a line; `result`: of this cell, never
    of another; `job`: what Slurm says of it.
    """

    status: Status
    path: Path
    progress_frac: float = 0.0
    error: str = ""
    result: Result | None = None
    job: str = ""


def result_path(folder: Path, cell: Cell) -> Path:
    """Return the path of a cell's result file.

    It is the file with the cell's digest, else one of its slug and configuration whose digest an
    earlier release has made; where there is neither, the file to be written.
    """
    found = sorted(folder.glob(f"*-{cell.digest}.h5"))
    if not found:
        older = sorted(folder.glob(f"{cell.slug}-*.h5"))
        found = [path for path in older if (result := _try_read(path)) and _is_of(cell, result)]
    return found[0] if found else folder / f"{cell.name}.h5"


def read_state(folder: Path, cell: Cell, lock_held: bool = False) -> CellState:
    """Return the state of a cell from its files.

    Args:
        lock_held: The caller holds its lock, for a run that has ended or not begun.
    """
    path = result_path(folder, cell)
    is_running = not lock_held and is_locked(folder, cell)  # before the file, which may end then
    result, fault = _read_own(path, cell)
    if result is not None and is_done(cell, result):
        return CellState("done", path, 1.0, result=result)
    error, progress = error_path(path), _progress(cell, result)
    first = error.read_text(errors="replace").partition("\n")[0] if error.exists() else ""
    if cell.is_trial and DIVERGED in first:
        return CellState("diverged", path, progress, first, result)
    if is_running:
        return CellState("running", path, progress, result=result)
    if fault or error.exists():
        what = "; ".join(filter(None, (first, fault)))
        return CellState("failed", path, progress, what, result)
    if result is not None:
        return CellState("interrupted", path, progress, result=result)
    return CellState("missing", path)


def is_done(cell: Cell, result: Result) -> bool:
    """Return whether a result is this cell's, and finished."""
    return result.status == "finished" and _is_of(cell, result)


def can_resume(state: CellState) -> bool:
    """Return whether a cell's run was cut short or has failed, and left a checkpoint of this cell
    that is worth another try.
    """
    if state.result is None or not has_checkpoint(checkpoint_path(state.path)):
        return False
    if state.status == "failed":
        return DIVERGED not in state.error and not _is_stuck(state.path)
    return state.status == "interrupted"


def _is_of(cell: Cell, result: Result) -> bool:
    return identity(result.config) == identity(cell.config)


def make_room(path: Path, is_leftover: bool) -> Path | None:
    """Clear the way for a run from the beginning.

    Args:
        is_leftover: The result there is an unfinished one of this run, which may go.

    Returns:
        Where another result went; None where there was none.

    Raises:
        OSError: It cannot be moved; nothing has changed then.
    """
    kept = None if is_leftover or not path.exists() else _set_aside(path)
    remove_leftovers(path)
    return kept


def _set_aside(path: Path) -> Path:
    """Give a result, its checkpoints, log, timeline and output names that nothing uses."""
    checkpoint = checkpoint_path(path)
    texts = (log_path(path), timeline_path(path), output_path(path))
    files = (path, checkpoint, older(checkpoint), *texts)
    ending = next(
        f".kept-{number}"
        for number in count(1)
        if not any(os.path.lexists(f"{each}.kept-{number}") for each in files)
    )
    for each in files:  # the result first: where it must stay, so must all of it
        if os.path.lexists(each):
            os.rename(each, f"{each}{ending}")
    return Path(f"{path}{ending}")


def remove_leftovers(path: Path) -> None:
    """Remove the files of a run that failed or cannot be resumed."""
    for each in (path, log_path(path), error_path(path), timeline_path(path)):
        each.unlink(missing_ok=True)
    remove_checkpoints(checkpoint_path(path))


def saved_version(path: Path) -> int | None:
    """Return the version of the newest checkpoint of a result that can be read; None without."""
    newest = checkpoint_path(path)
    for each in (newest, older(newest)):
        try:
            return int(read_checkpoint(each)["version"])
        except (ValueError, KeyError):
            continue
    return None


def write_error(path: Path, output: str, code: int, resumed_version: int | None = None) -> None:
    """Save what a failed run printed, beside its result and below its error line.

    Args:
        resumed_version: Of the checkpoint from which it went on after an earlier failure.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    own = [line for line in lines if "fedgmr_hpc: error: " in line]
    first = own[0].partition("fedgmr_hpc: error: ")[2] if own else (lines or ["no output"])[-1]
    if code == EXIT_REFUSED:  # of other refusals, such as data that are not there, none is its own
        is_stuck = first.startswith("checkpoint ")
    else:
        is_stuck = resumed_version is not None and (saved_version(path) or 0) <= resumed_version
    note = STUCK if is_stuck else ""
    error_path(path).write_text(f"{first} (exit code {code})\n{note}\n{output}")


def _is_stuck(path: Path) -> bool:
    """Return whether a failed run is not to go on from its checkpoint once more."""
    error = error_path(path)
    return error.exists() and error.read_text(errors="replace").splitlines()[1:2] == [STUCK]


def _try_read(path: Path) -> Result | None:
    """Return the result, or None while the file is missing, incomplete or damaged."""
    try:
        return read_result(path)
    except ValueError:
        return None


def _read_own(path: Path, cell: Cell) -> tuple[Result | None, str]:
    """Return the result of a cell, or None and what keeps a file that is there from being it."""
    if not path.exists():
        return None, ""
    try:
        result = read_result(path)
    except ValueError as error:
        return None, str(error).partition("\n")[0]
    if _is_of(cell, result):
        return result, ""
    keys = ", ".join(differences(result.config, cell.config, CELL))
    return None, f"results {path}: of another configuration, in {keys}"


def _progress(cell: Cell, result: Result | None) -> float:
    """Return the share of its rounds that is done, or of its virtual time where that is more."""
    if result is None or not len(result.merges["round"]):
        return 0.0
    return progress_of(cell, int(result.merges["round"][-1]), float(result.merges["now_s"][-1]))


def progress_of(cell: Cell, num_rounds: int, now_s: float) -> float:
    """Return the share that is done at a round and a virtual time."""
    run = cell.config.run
    parts = [num_rounds / run.max_rounds]
    if run.max_time_s is not None:
        parts.append(now_s / run.max_time_s)
    return min(1.0, max(parts))
