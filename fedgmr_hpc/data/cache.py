"""Decoded data sets on disk, memory-mapped, so that all ranks of a node share one copy in memory.

A cache folder holds `{train,test}_{x,y,group}.npy` and `meta.json`. It appears by one rename, so it
is complete or absent; a lock keeps ranks that start together from decoding the same files at once.
Where the file system has no locks, each rank builds its own copy and the first rename wins.

A small data set is built in memory and then written. A large one is filled into a private folder
that belongs to the cache's name, outlives a kill, and is gone on with at the next start.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fedgmr_hpc.data.formats import Split
from fedgmr_hpc.records import RunError

CACHE_VERSION = 1
PARTS = ("train", "test")
FIELDS: dict[str, tuple[type, ...]] = {
    "x": (np.uint8, np.uint16),
    "y": (np.int64,),
    "group": (np.int32,),
}
LOCK_WAIT_S = 900.0  # without a sign of life; a full LEAF download takes some minutes to decode

Build = Callable[[], tuple[Split, Split]]
Alive = Callable[[str], None]  # tells the ranks that wait how far this one is
Fill = Callable[[Path, Alive], None]  # writes the six arrays to a folder that may hold some of them


def make_fingerprint(facts: Iterable[object]) -> str:
    """16 hex digits of what the content of a cache depends on."""
    text = json.dumps([CACHE_VERSION, *map(str, facts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_facts(paths: Iterable[Path]) -> list[str]:
    """Name, size and time of each file: a changed download gets a new cache."""
    stats = [(path, path.stat()) for path in paths]
    return [
        f"{path.parent.name}/{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats
    ]


def open_or_build(
    folder: Path, build: Build, *, wait_s: float = LOCK_WAIT_S
) -> tuple[Split, Split]:
    """The cached (train, test) of `folder`, decoded by `build` first if absent or damaged."""

    def fill(private: Path, _: Alive) -> None:
        try:
            train, test = build()
        except OSError as error:  # told apart from a cache that cannot be written
            raise ValueError(f"data.root: a file cannot be read ({error})") from error
        _write(private, {"train": train, "test": test})

    return _open_or_fill(folder, fill, wait_s=wait_s, resumable=False)


def open_or_fill(folder: Path, fill: Fill, *, wait_s: float = LOCK_WAIT_S) -> tuple[Split, Split]:
    """The cached (train, test) of `folder`; `fill` goes on with what an interrupted one left."""
    return _open_or_fill(folder, fill, wait_s=wait_s, resumable=True)


def _open_or_fill(
    folder: Path, fill: Fill, *, wait_s: float, resumable: bool
) -> tuple[Split, Split]:
    found = _open(folder)
    if found is None:
        path = folder.with_name(folder.name + ".lock")
        with _writable(folder.parent), _lock(path, wait_s) as lock:
            found = _open(folder)  # another rank may have built it while this one waited
            if found is None:
                _make(folder, fill, lock, keep=resumable and lock.is_held)
                found = _open(folder)
    if found is None:
        raise RunError(f"{folder}: the data cache just written cannot be read back")
    return found


def _open(folder: Path) -> tuple[Split, Split] | None:
    """The memory-mapped splits, or None for anything absent, short or of another version."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["version"] != CACHE_VERSION:
            return None
        train, test = (_map_split(folder, part, meta[part]) for part in PARTS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return train, test


def _map_split(folder: Path, part: str, shapes: dict[str, list[int]]) -> Split:
    arrays = {}
    for field, dtypes in FIELDS.items():
        path = folder / f"{part}_{field}.npy"
        array = np.lib.format.open_memmap(path, mode="r")  # np.load would also try other formats
        if array.dtype not in dtypes or list(array.shape) != shapes[field]:
            raise ValueError(f"{path}: {array.dtype} {array.shape} is not what meta.json says")
        arrays[field] = np.asarray(array)  # a plain view of the map indexes faster than np.memmap
    return Split(**arrays)


def _make(folder: Path, fill: Fill, lock: _Lock, *, keep: bool) -> None:
    """Fill a private folder beside `folder`, then rename it; `keep` leaves it on a failure."""
    own = "partial" if keep else f"{socket.gethostname()}-{os.getpid()}"
    private = folder.with_name(f".{folder.name}.{own}")
    if not keep:
        shutil.rmtree(private, ignore_errors=True)
    private.mkdir(exist_ok=keep)
    try:
        fill(private, lock.tell)
        _write_meta(private)
        _publish(private, folder)
    except BaseException:
        if not keep:
            shutil.rmtree(private, ignore_errors=True)
        raise
    shutil.rmtree(private, ignore_errors=True)  # still there where another rank was first


def _write(folder: Path, splits: dict[str, Split]) -> None:
    for part, split in splits.items():
        for field in FIELDS:
            np.save(folder / f"{part}_{field}.npy", getattr(split, field), allow_pickle=False)


def _write_meta(folder: Path) -> None:
    """Last of all: version and the shape of every array."""
    meta: dict[str, object] = {"version": CACHE_VERSION}
    for part in PARTS:
        paths = {field: folder / f"{part}_{field}.npy" for field in FIELDS}
        arrays = {f: np.lib.format.open_memmap(path, mode="r") for f, path in paths.items()}
        meta[part] = {field: list(array.shape) for field, array in arrays.items()}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _publish(private: Path, folder: Path) -> None:
    if folder.exists() and _open(folder) is None:
        damaged = private.with_name(private.name + ".damaged")
        os.replace(folder, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        os.replace(private, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # these: another rank was first
            raise


@contextmanager
def _writable(cache: Path) -> Iterator[None]:
    """Names the config key when the cache folder cannot be made or written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ValueError(
            f"data.cache: got {str(cache)!r}, expected a folder that can be written ({error})"
        ) from error


@dataclass(frozen=True)
class _Lock:
    """An open lock file; it is not held where the file system has no locks."""

    handle: IO[str]
    is_held: bool

    def tell(self, text: str) -> None:
        """Puts who holds the lock, and how far the work is, into the file."""
        self.handle.seek(0)
        self.handle.truncate()
        self.handle.write(f"{socket.gethostname()} pid {os.getpid()}{text and ': ' + text}\n")
        self.handle.flush()


@contextmanager
def _lock(path: Path, wait_s: float) -> Iterator[_Lock]:
    with path.open("a+") as handle:
        lock = _Lock(handle, _acquire(handle, path, wait_s))
        if lock.is_held:
            lock.tell("")
        yield lock  # closing the file releases the lock


def _acquire(handle: IO[str], path: Path, wait_s: float) -> bool:
    """Wait for the lock while its holder gives signs of life; False where there are no locks."""
    seen_s, deadline_s = 0.0, 0.0
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            changed_s, now_s = path.stat().st_mtime, time.monotonic()
            if changed_s != seen_s:
                seen_s, deadline_s = changed_s, now_s + wait_s
            elif now_s > deadline_s:
                raise _waited(path, wait_s) from None
            time.sleep(0.05)
        except OSError:
            return False


def _waited(path: Path, wait_s: float) -> RunError:
    holder = path.read_text().strip() or "unknown"
    return RunError(
        f"{path}: waited {wait_s:g} s for another process ({holder}) to decode the data"
    )
