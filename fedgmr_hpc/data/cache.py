"""Decoded data sets on disk, memory-mapped, so that all ranks of a node share one copy in memory.

A cache folder holds `{train,test}_{x,sums,y,group}.npy` and `meta.json`. It is forced to the disk
and then appears by one rename, so it is complete or absent; a lock keeps ranks that start together
from decoding the same files at once. Where the file system has no locks, each rank builds its own
copy and the first rename wins.

Every byte is under a checksum: `sums` has the xxh3 of each row of `x` (digests.py), `meta.json`
that of the small arrays and its own. One rank of a node reads all rows once at the start; every
rank checks each row that it reads. What is damaged is decoded anew, with a warning.

A small data set is built in memory and then written. A large one is filled into a private folder
that belongs to the cache's name, outlives a kill, and is gone on with at the next start.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.data.digests import Guard, array_digest, first_wrong, row_sums
from fedgmr_hpc.data.formats import Split
from fedgmr_hpc.data.ownership import find_intruder, keep_others_out
from fedgmr_hpc.data.room import check_room

log = logging.getLogger("fedgmr_hpc")
CACHE_VERSION = 2
PARTS = ("train", "test")
FIELDS: dict[str, tuple[type, ...]] = {
    "x": (np.uint8, np.uint16),
    "sums": (np.uint64,),  # xxh3 of each row of x
    "y": (np.int64,),
    "group": (np.int32,),
}
LOCK_WAIT_S = 900.0  # without a sign of life; a full LEAF download takes some minutes to decode

Build = Callable[[], tuple[Split, Split]]
Alive = Callable[[str], None]  # tells the ranks that wait how far this one is
Fill = Callable[[Path, Alive], None]  # writes the six arrays to a folder that may hold some of them


def make_cache_key(facts: Iterable[object]) -> str:
    """16 hex digits of what the content of a cache depends on."""
    text = json.dumps([CACHE_VERSION, *map(str, facts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_facts(paths: Iterable[Path]) -> list[str]:
    """Name, size and time of each file: a changed download gets a new cache."""
    stats = [(path, path.stat()) for path in paths]
    return [
        f"{path.parent.name}/{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats
    ]


@dataclass(frozen=True)
class Reader:
    """Who opens a cache.

    Attributes:
        owner: a user whose files are believed, too (ownership.py).
        checks_all: whether every row is read and checked at once: one rank of a node does, and
            the others check the rows that they read.
        wait_s: how long another process may decode without a sign of life.
    """

    owner: str | None = None
    checks_all: bool = True
    wait_s: float = LOCK_WAIT_S


ALONE = Reader()


class _Unusable(Exception):
    """What is wrong with a cache folder, or that there is none."""


def open_or_build(folder: Path, build: Build, reader: Reader = ALONE) -> tuple[Split, Split]:
    """The cached (train, test) of `folder`, decoded by `build` first if absent or damaged."""

    def fill(private: Path, _: Alive) -> None:
        try:
            train, test = build()
        except OSError as error:  # told apart from a cache that cannot be written
            raise ValueError(f"data.root: a file cannot be read ({error})") from error
        _write(private, {"train": train, "test": test})

    return _open_or_fill(folder, fill, reader, resumable=False)


def open_or_fill(folder: Path, fill: Fill, reader: Reader = ALONE) -> tuple[Split, Split]:
    """The cached (train, test) of `folder`; `fill` goes on with what an interrupted one left."""
    return _open_or_fill(folder, fill, reader, resumable=True)


def _open_or_fill(
    folder: Path, fill: Fill, reader: Reader, *, resumable: bool
) -> tuple[Split, Split]:
    with suppress(_Unusable):
        return _open(folder, reader)
    path = folder.with_name(folder.name + ".lock")
    with _writable(folder.parent), _lock(path, reader.wait_s) as lock:
        try:
            return _open(folder, reader)  # another rank may have built it while this one waited
        except _Unusable as fault:
            if folder.exists():
                log.warning("data cache %s: %s; the data are decoded anew", folder, fault)
            _make(folder, fill, reader, lock, keep=resumable and lock.is_held)
    try:
        return _open(folder, reader)
    except _Unusable as fault:
        raise RunError(f"{folder}: the data cache just written cannot be used: {fault}") from None


def _open(folder: Path, reader: Reader) -> tuple[Split, Split]:
    """The memory-mapped splits of a cache that is whole, and closed to others.

    Raises:
        ValueError: it is another user's, who is not trusted.
    """
    try:
        fault = find_intruder(folder, reader.owner)
    except OSError as error:
        fault = str(error)
    if fault:
        raise _Unusable(fault)
    try:
        train, test = _map(folder, reader.checks_all)
    except Exception as error:  # damage to a header or to JSON raises nearly anything
        reason = " ".join(str(error).split())
        raise _Unusable(f"damaged ({reason or type(error).__name__})") from error
    return train, test


def _map(folder: Path, checks_all: bool) -> Iterator[Split]:
    meta = _read_meta(folder)
    for part in PARTS:
        arrays = {field: _map_array(folder, f"{part}_{field}", meta) for field in FIELDS}
        sums, path = arrays.pop("sums"), folder / f"{part}_x.npy"
        if not len(sums) == len(arrays["x"]) == len(arrays["y"]) == len(arrays["group"]):
            raise ValueError(f"{part}: arrays of several lengths")
        wrong = first_wrong(arrays["x"], sums) if checks_all else None
        if wrong is not None:
            raise ValueError(f"{path.name}: sample {wrong} fails its checksum")
        yield Split(**arrays, guard=Guard(sums, str(path)))


def _map_array(folder: Path, name: str, meta: dict[str, Any]) -> NDArray[Any]:
    # np.load would also try other formats
    array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")
    if _describe(name, array) != meta["arrays"][name]:
        raise ValueError(f"{name}.npy is not what meta.json says")
    return np.asarray(array)  # a plain view of the map indexes faster than np.memmap


def _describe(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """What `meta.json` says of an array: its content, too, where no other array guards that."""
    part, field = name.split("_", 1)
    if array.dtype not in FIELDS[field] or not array.flags.c_contiguous:
        raise ValueError(f"{name}.npy has {array.dtype}, in an order that is not expected")
    facts: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    return facts if field == "x" else facts | {"xxh3": array_digest(array)}


def _read_meta(folder: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
    if meta != _sealed(meta) or meta["version"] != CACHE_VERSION or meta["name"] != folder.name:
        raise ValueError("meta.json fails its checksum, or is of another cache")
    return meta


def _sealed(meta: dict[str, Any]) -> dict[str, Any]:
    """`meta` with the checksum of the rest of it."""
    content = {key: value for key, value in meta.items() if key != "xxh3"}
    text = json.dumps(content, sort_keys=True).encode()
    return content | {"xxh3": xxhash.xxh3_64_hexdigest(text)}


def _make(folder: Path, fill: Fill, reader: Reader, lock: _Lock, *, keep: bool) -> None:
    """Fill a private folder beside `folder`, then rename it; `keep` leaves it on a failure."""
    own = "partial" if keep else f"{socket.gethostname()}-{os.getpid()}"
    private = folder.with_name(f".{folder.name}.{own}")
    if not keep:
        shutil.rmtree(private, ignore_errors=True)
    private.mkdir(exist_ok=keep)
    try:
        fill(private, lock.tell)
        _write_meta(private, folder.name)
        keep_others_out(private)
        _sync(private)
        _publish(private, folder, reader)
    except BaseException:
        if not keep:
            shutil.rmtree(private, ignore_errors=True)
        raise
    shutil.rmtree(private, ignore_errors=True)  # still there where another rank was first


def _write(folder: Path, splits: dict[str, Split]) -> None:
    check_room(folder.parent, sum(split.x.nbytes + split.y.nbytes for split in splits.values()))
    for part, split in splits.items():
        arrays = {"x": split.x, "sums": row_sums(split.x), "y": split.y, "group": split.group}
        for field, array in arrays.items():
            np.save(folder / f"{part}_{field}.npy", array, allow_pickle=False)


def _write_meta(folder: Path, name: str) -> None:
    """Last of all: what every array is, and whose cache this is."""
    names = [f"{part}_{field}" for part in PARTS for field in FIELDS]
    arrays = {n: np.lib.format.open_memmap(folder / f"{n}.npy", mode="r") for n in names}
    facts = {n: _describe(n, array) for n, array in arrays.items()}
    meta = _sealed({"version": CACHE_VERSION, "name": name, "arrays": facts})
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _sync(folder: Path) -> None:
    """Forces a folder's files and their names to the disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _publish(private: Path, folder: Path, reader: Reader) -> None:
    """Gives the folder its name; another rank's that is whole stays, anything else goes."""
    with suppress(_Unusable):
        _open(folder, reader)
        return
    if folder.exists():
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
            must_be("data.cache", "a writable folder", cache, because=str(error))
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
