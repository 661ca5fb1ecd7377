"""Decoded data sets on disk, memory-mapped, so that all ranks of a node share one copy in memory.

A cache folder holds `{train,test}_{x,y,group}.npy` and `meta.json`. It appears by one rename, so it
is complete or absent; a lock keeps ranks that start together from decoding the same files at once.
Where the file system has no locks, each rank builds its own copy and the first rename wins.
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
from pathlib import Path
from typing import IO

import numpy as np

from fedgmr_hpc.data.formats import Split
from fedgmr_hpc.records import RunError

CACHE_VERSION = 1
PARTS = ("train", "test")
FIELDS = {"x": np.uint8, "y": np.int64, "group": np.int32}
LOCK_WAIT_S = 900.0  # a full LEAF download takes some minutes to decode

Build = Callable[[], tuple[Split, Split]]


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
    found = _open(folder)
    if found is None:
        with _writable(folder.parent), _lock(folder.with_name(folder.name + ".lock"), wait_s):
            found = _open(folder)  # another rank may have built it while this one waited
            if found is None:
                _build(folder, build)
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
    for field, dtype in FIELDS.items():
        path = folder / f"{part}_{field}.npy"
        array = np.lib.format.open_memmap(path, mode="r")  # np.load would also try other formats
        if array.dtype != dtype or list(array.shape) != shapes[field]:
            raise ValueError(f"{path}: {array.dtype} {array.shape} is not what meta.json says")
        arrays[field] = np.asarray(array)  # a plain view of the map indexes faster than np.memmap
    return Split(**arrays)


def _build(folder: Path, build: Build) -> None:
    """Decode into a private folder beside `folder`, then rename it there."""
    try:
        train, test = build()
    except OSError as error:  # told apart from a cache that cannot be written
        raise ValueError(f"data.root: a file cannot be read ({error})") from error
    private = folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}")
    shutil.rmtree(private, ignore_errors=True)
    private.mkdir()
    try:
        _write(private, {"train": train, "test": test})
        _publish(private, folder)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _write(folder: Path, splits: dict[str, Split]) -> None:
    meta: dict[str, object] = {"version": CACHE_VERSION}
    for part, split in splits.items():
        for field in FIELDS:
            np.save(folder / f"{part}_{field}.npy", getattr(split, field), allow_pickle=False)
        meta[part] = {field: list(getattr(split, field).shape) for field in FIELDS}
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


@contextmanager
def _lock(path: Path, wait_s: float) -> Iterator[None]:
    with path.open("a+") as handle:
        _acquire(handle, path, wait_s)
        yield  # closing the file releases the lock


def _acquire(handle: IO[str], path: Path, wait_s: float) -> None:
    """Wait for the lock; a file system without locks counts as locked (`_publish` stays safe)."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                holder = path.read_text().strip() or "unknown"
                raise RunError(
                    f"{path}: waited {wait_s:g} s for another process ({holder}) to decode the data"
                ) from None
            time.sleep(0.05)
        except OSError:
            return
    handle.truncate(0)
    handle.write(f"{socket.gethostname()} pid {os.getpid()}\n")
    handle.flush()
