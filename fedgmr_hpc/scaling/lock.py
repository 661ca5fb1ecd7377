"""Let one command at a time work in a study's folder: an advisory lock on DIR/.lock.

Launchers inherit it, so that it is held until the last of them has ended, however the command
itself did. Some file systems have no locks; there nobody is seen, which is said.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.study.locks import NO_LOCKS
from fedgmr_hpc.study.notices import warn_once


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a folder; yield its descriptor, for processes that are to hold it, too.

    Raises:
        ValueError: Another command holds it.
    """
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(fd, folder)
        yield fd
    finally:
        os.close(fd)


def _lock(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        reason = "the runs of another command are under way in this one"
        raise ValueError(must_be("--out", "another folder", folder, because=reason)) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn_once(f"{folder}: no locks ({error.strerror}): another command there is not seen")
