"""Open a data cache, or build it first, once for all ranks of a node.

A cache is filled in a private folder, forced to the disk, and then renamed, so it is complete or
absent. A lock keeps ranks that start together from decoding the same files at once; where the file
system has no locks, each rank builds its own copy and the first rename wins. One rank of a node
checks all rows at the start, every rank checks each row that it reads. A damaged cache is decoded
again, with a warning.

A small data set is decoded in memory and then written. A large one is appended to a private folder
that belongs to the cache's name and survives a kill, so that the next start continues it.
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
from typing import IO

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache.files import (
    CACHE_VERSION,
    CacheUnusable,
    finish,
    open_cache,
    write_splits,
)
from fedgmr_hpc.data.splits import Splits

log = logging.getLogger("fedgmr_hpc")
LOCK_WAIT_S = 900.0  # without a sign of life; a full LEAF download takes minutes to decode
POLL_S = 0.05  # between two tries to take the lock
DEFAULT_CACHE = str(DataConfig.model_fields["cache"].default)
HOME_BYTES = 1 << 30  # the most that a job writes to the home folder without being told to
JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")

Build = Callable[[], Splits]
Alive = Callable[[str], None]  # tells waiting ranks how far the work is
Fill = Callable[[Path, Alive], None]  # writes the arrays to a folder that may hold some of them


def make_cache_key(facts: Iterable[object]) -> str:
    """Return 16 hex digits that identify what the content of a cache depends on."""
    text = json.dumps([CACHE_VERSION, *map(str, facts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_facts(paths: Iterable[Path]) -> list[str]:
    """Return name, size and time of each file, so that a changed download gets a new cache."""
    stats = [(path, path.stat()) for path in paths]
    return [
        f"{path.parent.name}/{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats
    ]


@dataclass(frozen=True)
class Reader:
    """How a rank opens caches.

    Attributes:
        owner: a user whose files are trusted, too.
        checks_all: whether to check every row at once, as one rank of a node does.
        wait_s: how long another process may decode without a sign of life.
    """

    owner: str | None = None
    checks_all: bool = True
    wait_s: float = LOCK_WAIT_S


ALONE = Reader()


def open_or_build(folder: Path, build: Build, reader: Reader = ALONE) -> Splits:
    """Open the cached splits of `folder`, decoding them with `build` if absent or damaged.

    Raises:
        ValueError: a file cannot be read, or the cache cannot be written or trusted.
        RunError: another process that decodes the data shows no sign of life.
    """

    def fill(private: Path, _: Alive) -> None:
        try:
            train, test = build()
        except OSError as error:  # told apart from a cache that cannot be written
            raise ValueError(f"data.root: a file cannot be read ({error})") from error
        check_room(private.parent, sum(each.x.nbytes + each.y.nbytes for each in (train, test)))
        write_splits(private, {"train": train, "test": test})

    return _open_or_fill(folder, fill, reader, resumable=False)


def open_or_fill(folder: Path, fill: Fill, reader: Reader = ALONE) -> Splits:
    """Open the cached splits of `folder`; `fill` continues what an interrupted build has left.

    Raises:
        ValueError: a file cannot be read, or the cache cannot be written or trusted.
        RunError: another process that decodes the data shows no sign of life.
    """
    return _open_or_fill(folder, fill, reader, resumable=True)


def _open_or_fill(folder: Path, fill: Fill, reader: Reader, *, resumable: bool) -> Splits:
    with suppress(CacheUnusable):
        return _open(folder, reader)
    path = folder.with_name(folder.name + ".lock")
    with _writable(folder.parent), _lock(path, reader.wait_s) as lock:
        try:
            return _open(folder, reader)  # another rank may have built it while this one waited
        except CacheUnusable as fault:
            if folder.exists():
                log.warning("data cache %s: %s; decoding the data again", folder, fault)
            # without a lock, two ranks could append to the same folder: build a private copy
            _make(folder, fill, reader, lock, keep=resumable and lock.is_held)
    try:
        return _open(folder, reader)
    except CacheUnusable as fault:
        raise RunError(f"{folder}: the data cache just written cannot be used: {fault}") from None


def _open(folder: Path, reader: Reader) -> Splits:
    return open_cache(folder, reader.owner, checks_all=reader.checks_all)


def _make(folder: Path, fill: Fill, reader: Reader, lock: _Lock, *, keep: bool) -> None:
    """Fill a private folder beside `folder`, then rename it; `keep` leaves it on a failure."""
    own = "partial" if keep else f"{socket.gethostname()}-{os.getpid()}"
    private = folder.with_name(f".{folder.name}.{own}")
    if not keep:
        shutil.rmtree(private, ignore_errors=True)
    private.mkdir(exist_ok=keep)
    try:
        fill(private, lock.tell)
        finish(private, folder.name)
        _publish(private, folder, reader)
    except BaseException:
        if not keep:
            shutil.rmtree(private, ignore_errors=True)
        raise
    shutil.rmtree(private, ignore_errors=True)  # still there where another rank was first


def _publish(private: Path, folder: Path, reader: Reader) -> None:
    """Give the folder its name, unless another rank's intact one has it; replace anything else."""
    with suppress(CacheUnusable):
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


def check_room(cache: Path, need_bytes: int) -> None:
    """Refuse a cache folder that is too small, or a home folder that a job would fill unasked.

    Args:
        cache: the folder `data.cache`, which exists.
        need_bytes: what remains to be written.

    Raises:
        ValueError: there is too little room, or the folder was not named.
    """
    free_bytes, need = shutil.disk_usage(cache).free, f"{need_bytes / 1e9:.1f} GB"
    if need_bytes > free_bytes:
        found = f"{free_bytes / 1e9:.1f} GB in {cache}"
        advice = "choose another folder, or a smaller data.image_size or data.max_train"
        raise ValueError(f"{must('data.cache', f'have {need} free', found=found)}; {advice}")
    in_job = any(name in os.environ for name in JOB_VARIABLES)
    if need_bytes > HOME_BYTES and is_default(cache) and in_job:
        when = f"a job caches {need} (default: {cache})"
        advice = "the site's scratch or the node's, or the default one if you name it"
        raise ValueError(f"{must_be('data.cache', 'set to a folder', when=when)}: {advice}")


def is_default(cache: Path) -> bool:
    """Tell whether this is the default folder, below the user's home."""
    return cache == Path(DEFAULT_CACHE).expanduser()


@contextmanager
def _writable(cache: Path) -> Iterator[None]:
    """Create the cache folder; name the key if it cannot be created or written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        need, found = "a writable folder", repr(str(cache))
        message = must_be("data.cache", need, found=found, because=str(error))
        raise ValueError(message) from error


@dataclass(frozen=True)
class _Lock:
    """An open lock file; not held where the file system has no locks."""

    handle: IO[str]
    is_held: bool

    def tell(self, text: str) -> None:
        """Write to the file who holds the lock and how far the work is."""
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
    """Take the lock, waiting while its holder shows signs of life; False if there are no locks.

    The holder writes to the file as it works, so the file's time is the sign of life.
    """
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
            time.sleep(POLL_S)
        except OSError:
            return False


def _waited(path: Path, wait_s: float) -> RunError:
    holder = path.read_text().strip() or "unknown"
    return RunError(
        f"{path}: waited {wait_s:g} s for another process ({holder}) to decode the data"
    )
