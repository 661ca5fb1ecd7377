"""One copy of a long message for all ranks of a node, which each of them maps into its memory.

A copy is anonymous memory (memfd), which other processes of the same user open by the process and
the descriptor that hold it. It has no name, takes no room in /dev/shm, and the kernel frees it when
the last process closes or unmaps it, so a rank that is killed leaves nothing behind.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

_TOKEN_BYTES = 16


class NodeCopy(NamedTuple):
    """Where the ranks of a node find a copy."""

    pid: int
    descriptor: int
    num_bytes: int

    def open(self) -> memoryview:
        """Map the copy, read-only.

        Raises:
            OSError: this process cannot reach it.
        """
        path = f"/proc/{self.pid}/fd/{self.descriptor}"
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may be anything, see can_read
        try:
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            mapped = mmap.mmap(descriptor, self.num_bytes, flags=flags, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        return memoryview(mapped)

    def close(self) -> None:
        """Give up the copy, in the process that made it; those who have mapped it keep it."""
        os.close(self.descriptor)


def make_copy(num_bytes: int) -> tuple[NodeCopy, memoryview]:
    """Return a new copy and its bytes, to be filled.

    Raises:
        OSError: this system has no such memory, or no more of it.
    """
    descriptor = os.memfd_create("fedgmr_hpc")
    try:
        os.ftruncate(descriptor, num_bytes)
        mapped = mmap.mmap(descriptor, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except (OSError, ValueError):
        os.close(descriptor)
        raise
    return NodeCopy(os.getpid(), descriptor, num_bytes), memoryview(mapped)


def fill_copy(parts: Sequence[memoryview]) -> NodeCopy:
    """Return a new copy of the concatenation of `parts`."""
    copy, place = make_copy(sum(len(part) for part in parts))
    filled = 0
    for part in parts:
        place[filled : filled + len(part)] = part
        filled += len(part)
    return copy


def make_sample() -> tuple[NodeCopy, bytes] | None:
    """Return a copy and what is in it, for `can_read`; None where the system has none."""
    if not hasattr(os, "memfd_create") or not hasattr(mmap, "MAP_POPULATE"):
        return None
    token = os.urandom(_TOKEN_BYTES)
    try:
        return fill_copy([memoryview(token)]), token
    except OSError:
        return None


def can_read(copy: NodeCopy, token: bytes) -> bool:
    """Whether this process reads a sample as it was made.

    Where ranks are in containers of their own, the same numbers can name another process, and
    whatever that has open.
    """
    try:
        return bytes(copy.open()) == token
    except (OSError, ValueError):  # not there, or a file that is shorter
        return False
