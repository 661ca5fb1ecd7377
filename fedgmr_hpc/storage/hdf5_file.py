"""How result files are opened and what HDF5's messages say; the superblock is read beforehand.

A file under a single writer and many readers (SWMR) carries a mark in its superblock, which stays
after a kill, so that only an SWMR reader gets in. Such a reader repeats a metadata read whose
checksum is wrong up to 100 times and doubles its wait from 1 ns on: on a damaged file it never
comes back. Here it repeats READ_ATTEMPTS times, about 0.3 s a read. A file that was closed properly
is opened plainly, which repeats nothing. Past the end of a file an SWMR reader gets zeros without a
word, so `num_readable_rows` says what a file that is too short still holds.

Readers take no file lock: a writer under SWMR holds none either.

A writer whose write failed lets go of its file by `abandon`: libhdf5 keeps what it could not write,
tries again when the file is closed and at the end of the process, and may crash there.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89HDF\r\n\x1a\n"
READ_ATTEMPTS = 28  # waits 2^28 ns in all
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError)  # what h5py raises for damage
LOCKING: dict[str, Any] = {
    "auto": "best-effort",
    "on": True,
    "off": False,
}  # results.locking as h5py has it
_SUPERBLOCK = struct.Struct("<8s4B4Q")  # versions 2 and 3 with addresses of 8 bytes


class Superblock(NamedTuple):
    """What counts of it. `is_marked`: a writer has the file, or was killed while it had it."""

    is_marked: bool
    end_bytes: int  # how long the file must be at least


def read_superblock(path: Path) -> Superblock | None:
    """Return the superblock of a file made by `ResultWriter`; None where it is of another kind."""
    with path.open("rb") as file:
        head = file.read(_SUPERBLOCK.size)
    if len(head) < _SUPERBLOCK.size:
        return None
    signature, version, *sizes, flags, _, _, end_bytes, _ = _SUPERBLOCK.unpack(head)
    if signature != SIGNATURE or version not in (2, 3) or sizes != [8, 8]:
        return None
    return Superblock(bool(flags), end_bytes)


def num_missing_bytes(path: Path) -> int:
    """By how much a file is shorter than its superblock says: cut off, or its disk was full."""
    block = read_superblock(path)
    return 0 if block is None else max(0, block.end_bytes - path.stat().st_size)


def open_for_reading(path: Path) -> h5py.File:
    """Open a finished, running or killed run's file.

    Raises:
        OSError: HDF5 cannot open it, or it is of a format that `ResultWriter` never writes: without
            checksums on its bookkeeping, a damaged file may keep HDF5 busy for ever.
    """
    block = read_superblock(path)
    if block is None and h5py.is_hdf5(path):
        raise OSError("HDF5 of an old format, which no result has")
    if block is not None and (block.is_marked or num_missing_bytes(path)):
        return open_marked(path)
    return _without_lock(lambda locking: h5py.File(path, "r", libver="latest", locking=locking))


def open_marked(path: Path) -> h5py.File:
    """Open a file as an SWMR reader sees it, whatever its superblock says of its length.

    Raises:
        OSError: HDF5 cannot open it.
    """
    return _without_lock(lambda locking: _open_swmr(path, bool(locking)))


def _without_lock(opened: Callable[[Any], h5py.File]) -> h5py.File:
    """Open without a lock, unless a writer of this process has locked the file already."""
    try:
        return opened(LOCKING["off"])
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return opened(LOCKING["auto"])


def _open_swmr(path: Path, locking: bool) -> h5py.File:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    access.set_file_locking(locking, True)
    _limit_attempts(access.id)
    flags = h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, fapl=access))


def _limit_attempts(access_id: int) -> None:
    """h5py has no call for it; the symbol is that of the HDF5 that h5py itself is linked to."""
    set_attempts = ctypes.CDLL(h5py.h5p.__file__).H5Pset_metadata_read_attempts
    set_attempts.argtypes, set_attempts.restype = (ctypes.c_int64, ctypes.c_uint), ctypes.c_int
    if set_attempts(access_id, READ_ATTEMPTS) < 0:
        raise OSError("HDF5 refuses a limit of metadata read attempts")


def own_member(group: h5py.Group, name: str) -> Any:
    """Return what lies under a name in this very file and group; None where there is nothing.

    Raises:
        ValueError: it leads elsewhere: a soft or external link, a virtual data set, or one whose
            values are in other files.
    """
    link, place = group.get(name, getlink=True), f"{group.name.rstrip('/')}/{name}"
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{place} is a link to another place ({type(link).__name__})")
    found = group[name]
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise ValueError(f"{place} keeps its values in other files")
    return found


def check_members(group: h5py.Group, depth: int = 3) -> None:
    """Fail unless all that a group holds lies right here.

    Raises:
        ValueError: something leads elsewhere, or lies in more groups than `depth`.
    """
    for name in group:
        if isinstance(found := own_member(group, name), h5py.Group):
            if not depth:
                raise ValueError(f"{found.name} is nested too deep")
            check_members(found, depth - 1)


def num_readable_rows(dataset: h5py.Dataset, num_rows: int, file_bytes: int) -> int:
    """Return how many of the first `num_rows` rows lie inside a file of `file_bytes`."""
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        is_inside = offset is not None and offset + dataset.id.get_storage_size() <= file_bytes
        return num_rows if is_inside else 0
    tail = (0,) * (dataset.ndim - 1)
    num_rows = min(num_rows, len(dataset))
    for start in range(0, num_rows, dataset.chunks[0]):
        try:
            chunk = dataset.id.get_chunk_info_by_coord((start, *tail))
        except UNREADABLE:
            return start
        if chunk.byte_offset is None or chunk.byte_offset + chunk.size > file_bytes:
            return start
    return num_rows


def put(group: h5py.Group, name: str, value: Any) -> None:
    """Return a new dataset. What is wrong is raised here: h5py drops an error of closing it.

    Raises:
        OSError, RuntimeError: it cannot be written.
    """
    dataset = group.create_dataset(name, data=value)  # kept by name, so that it outlives an error
    dataset.id.flush()


def force_to_disk(file: h5py.File) -> None:
    """Write what libhdf5 holds, and wait until it is on the disk.

    Raises:
        OSError, RuntimeError: it is not.
    """
    file.flush()
    os.fsync(file.id.get_vfd_handle())


def settle_closed(path: Path) -> None:
    """Wait until a closed file is on the disk; whoever reads it next asks the disk.

    Raises:
        OSError: it is not.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def abandon(file: h5py.File) -> None:
    """Close a file that could not be written to, without another byte to the disk: whatever
    libhdf5 still has goes to the null device, whose place the file's descriptor takes.
    """
    if not file:
        return
    handle, nowhere = file.id.get_vfd_handle(), os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, handle)
    os.close(nowhere)
    with suppress(OSError, RuntimeError):  # the null device has no length to be set
        file.close()


def fixed_text(text: str, num_bytes: int = 0) -> NDArray[Any]:
    """`text` as a fixed-size utf-8 scalar, cut to `num_bytes`; 0 means as long as it needs."""
    data = clip_text(text, num_bytes or sys.maxsize)
    return np.array(data, h5py.string_dtype("utf-8", max(1, num_bytes or len(data))))


def clip_text(text: str, num_bytes: int) -> bytes:
    """At most `num_bytes` of the utf-8 of `text`, never half a character."""
    data = text.encode("utf-8", errors="replace")[:num_bytes]
    return data.decode("utf-8", errors="ignore").encode()


def describe_error(error: BaseException) -> str:
    """Return the part of an HDF5 message that a user can act on."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "signature not found" in text:
        return "it is no HDF5 file"
    found = re.search(r"error message = '([^']*)'", text)
    return found.group(1) if found else (text or type(error).__name__).splitlines()[0]
