"""Who runs a cell: advisory locks on cells/.locks/DIGEST, which the processes of a run inherit.

Whoever runs a cell holds its lock alone; whoever looks only whether it runs shares it for a moment,
so that two who look do not take each other for a run. A lock is gone with its last holder, however
that ended. Some file systems have no locks; there nobody is seen, which is said once a command.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.notices import warn_once

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # as in doctor, a layer above


class CellLock:
    """A held lock; processes that inherit its descriptor hold it, too, until they end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def release(self) -> None:
        """Release the lock in this process."""
        os.close(self.fd)


def acquire_lock(folder: Path, cell: Cell) -> CellLock | None:
    """Return the lock of a cell, or None where another process holds it."""
    path = _lock_path(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if _try_lock(fd, fcntl.LOCK_EX, folder):
        return CellLock(fd)
    os.close(fd)
    return None


def is_locked(folder: Path, cell: Cell) -> bool:
    """Return whether a process runs the cell now; nothing is written."""
    try:
        fd = os.open(_lock_path(folder, cell), os.O_RDONLY)
    except OSError:  # never run, or somebody else's who lets nobody look
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_SH, folder)
    finally:
        os.close(fd)


def _lock_path(folder: Path, cell: Cell) -> Path:
    return folder / ".locks" / cell.digest


def _try_lock(fd: int, kind: int, folder: Path) -> bool:
    """Return whether nobody else is in the way; so it is where there are no locks."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn_once(
            f"{folder}: no locks ({error.strerror}): cells that another command runs are not seen"
        )
    return True
