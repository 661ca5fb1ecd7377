"""The files of a study's cells, and the states they show: done, running, failed and others.

A trial may have diverged, which is final; a cell whose values trials have yet to choose is waiting
(tuning.py).

    cells/NAME.h5       the result; NAME is slug-digest, found again by its digest alone
    cells/NAME.log      the run's log
    cells/NAME.yaml     its configuration: python -m fedgmr_hpc.launch --config NAME.yaml
    cells/NAME.error    what it printed, where it failed; the first line says what went wrong
    cells/NAME.ckpt     its checkpoint, until it has finished
    cells/.jobs/        what was submitted to Slurm (job_states.py)
    cells/.locks/DIGEST held by whoever runs the cell, and inherited by its processes

A lock is an advisory file lock, so it is gone with its last holder, however that ended.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedgmr_hpc.config.errors import DIVERGED
from fedgmr_hpc.config.identity import identity
from fedgmr_hpc.storage.checkpoint import has_checkpoint, remove_checkpoints
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.storage.run_files import checkpoint_path, error_path, log_path, timeline_path
from fedgmr_hpc.study.cells import Cell

Status = Literal[
    "done", "diverged", "queued", "running", "failed", "interrupted", "missing", "waiting"
]
ENDED = ("done", "diverged")  # nothing of it is left to do


@dataclass(frozen=True)
class CellState:
    """What is known of a cell.

    `progress_frac`: of its rounds or virtual time; `error`: a line; `job`: what Slurm says of it.
    """

    status: Status
    path: Path
    progress_frac: float = 0.0
    error: str = ""
    result: Result | None = None
    job: str = ""


class CellLock:
    """A held lock; processes that inherit its descriptor hold it, too, until they end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def release(self) -> None:
        """Release the lock in this process."""
        os.close(self.fd)


def acquire_lock(folder: Path, cell: Cell) -> CellLock | None:
    """Return the lock of a cell, or None where another process holds it."""
    path = folder / ".locks" / cell.digest
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return CellLock(fd)


def is_locked(folder: Path, cell: Cell) -> bool:
    """Return whether a process runs the cell now."""
    if not (folder / ".locks" / cell.digest).exists():
        return False
    lock = acquire_lock(folder, cell)
    if lock is not None:
        lock.release()
    return lock is None


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
    result = _try_read(path)
    if not lock_held and is_locked(folder, cell):
        return CellState("running", path, _progress(cell, result), result=result)
    if result is not None and is_done(cell, result):
        return CellState("done", path, 1.0, result=result)
    error = error_path(path)
    if error.exists():
        first = error.read_text(errors="replace").partition("\n")[0]
        status: Status = "diverged" if cell.is_trial and DIVERGED in first else "failed"
        return CellState(status, path, _progress(cell, result), first, result)
    if path.exists():
        return CellState("interrupted", path, _progress(cell, result), result=result)
    return CellState("missing", path)


def is_done(cell: Cell, result: Result) -> bool:
    """Return whether a result is this cell's, and finished."""
    return result.status == "finished" and _is_of(cell, result)


def can_resume(state: CellState, cell: Cell) -> bool:
    """Return whether a cell's run was cut short and left a checkpoint of this cell."""
    is_own = state.result is not None and _is_of(cell, state.result)
    return state.status == "interrupted" and is_own and has_checkpoint(checkpoint_path(state.path))


def _is_of(cell: Cell, result: Result) -> bool:
    return identity(result.config) == identity(cell.config)


def remove_leftovers(path: Path) -> None:
    """Remove the files of a run that failed or cannot be resumed."""
    for each in (path, log_path(path), error_path(path), timeline_path(path)):
        each.unlink(missing_ok=True)
    remove_checkpoints(checkpoint_path(path))


def write_error(path: Path, output: str, code: int) -> None:
    """Save what a failed run printed, beside its result and below its error line."""
    lines = [line for line in output.splitlines() if line.strip()]
    own = [line for line in lines if "fedgmr_hpc: error: " in line]
    first = own[0].partition("fedgmr_hpc: error: ")[2] if own else (lines or ["no output"])[-1]
    error_path(path).write_text(f"{first} (exit code {code})\n\n{output}")


def _try_read(path: Path) -> Result | None:
    """Return the result, or None while the file is missing, incomplete or damaged."""
    try:
        return read_result(path)
    except ValueError:
        return None


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
