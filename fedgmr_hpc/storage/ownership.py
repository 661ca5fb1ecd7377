"""Who writes a run's files: one process at a time, recorded beside the result as RUN.owner-EPOCH.

A process claims a run by making the record of the next epoch, a name that only one can make, and
then removes the older ones. Whoever finds the record gone that it has made is no longer the owner:
it looks before it writes rows, a checkpoint or a status, and stops. All of it is names and small
files, so it works on NFS, where locks may not.

    the owner that is found                          a process that wants the run
    of the same Slurm job, requeued since            takes over
    on the same machine, its process gone            takes over
    on the same machine, its process there           is refused
    elsewhere: its record was touched meanwhile      is refused
    elsewhere: silent for `STALE_S`                  takes over

The owner touches its record every `BEAT_S`. Times are compared on the file system's clock alone.
The record goes when the run ends, however it ends; only a kill leaves it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.storage.process import machine_id, process_start
from fedgmr_hpc.storage.run_files import owner_prefix

log = logging.getLogger("fedgmr_hpc")
BEAT_S, STALE_S, LOOK_S = 10.0, 60.0, 1.0
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system


class NotOwner(RunError):
    """Another process has taken the run over, or somebody has removed the record."""


@dataclass(frozen=True)
class Record:
    """What an owner says of itself. `machine`: where `pid` means something; empty if unknown."""

    run: str
    host: str
    machine: str
    pid: int
    process_start: str
    job: str
    restart: int
    since: str

    def __str__(self) -> str:
        job = f", Slurm job {self.job}, start {self.restart + 1}" if self.job else ""
        return f"run {self.run} (pid {self.pid} on {self.host}{job}) since {self.since}"


class Found(NamedTuple):
    """A record of a run. `record` is None where it cannot be understood."""

    path: Path
    epoch: int
    text: str
    touched_s: float  # by the file system's clock
    record: Record | None

    def __str__(self) -> str:
        return str(self.record) if self.record else "an unknown owner"


def describe_self(run: str, env: Mapping[str, str] = os.environ) -> Record:
    """Describe this process as an owner; a Slurm job keeps its number when it is requeued."""
    return Record(
        run=run,
        host=os.uname().nodename,
        machine=machine_id(),
        pid=os.getpid(),
        process_start=process_start(os.getpid()),
        job=env.get("SLURM_JOB_ID", ""),
        restart=int(env.get("SLURM_RESTART_COUNT") or 0),
        since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


class Owner:
    """The owner of a run, until `release`. A context manager."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self._text = path, text
        self._is_released = threading.Event()
        threading.Thread(target=self._beat, name="owner", daemon=True).start()

    def _beat(self) -> None:
        while not self._is_released.wait(BEAT_S):
            with suppress(OSError):  # `check` tells who writes next
                if self.path.read_text() == self._text:
                    os.utime(self.path)

    def check(self) -> None:
        """To be asked before anything is written.

        Raises:
            NotOwner: this process is no longer the owner.
            OSError: that cannot be found out.
        """
        with suppress(FileNotFoundError):
            if self.path.read_text() == self._text:
                return
        others = find_owners(self.path.parent, _prefix_of(self.path))
        who = f"{others[-1]} has taken over" if others else f"{self.path} was removed"
        raise NotOwner(f"no longer the owner of its files: {who}; nothing more is written")

    def release(self) -> None:
        """End ownership; what another process has made stays."""
        self._is_released.set()
        with suppress(OSError):
            if self.path.read_text() == self._text:
                self.path.unlink()

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _prefix_of(path: Path) -> str:
    return path.name.rstrip("0123456789")


def claim(results: Path, record: Record, should_stop: Callable[[], bool]) -> Owner:
    """Make `record` the owner of a run's files, waiting for a sign of life of one before it.

    Args:
        results: the result file, whose folder is there.
        should_stop: asked while waiting.

    Raises:
        ValueError: another process is the owner; says which, and what to do.
        RunError: a signal has asked this process to stop while it waited.
        OSError: no record can be made.
    """
    text = json.dumps(asdict(record))
    while True:
        others = find_owners(results.parent, owner_prefix(results))
        if others and not _is_gone(others[-1], record, should_stop):
            raise ValueError(
                f"results.path: {results} is being written by {others[-1]}; wait for it or end it, "
                f"or, if it is known to be dead, remove {others[-1].path}"
            )
        epoch = 1 + (others[-1].epoch if others else 0)
        path = results.with_name(f"{owner_prefix(results)}{epoch}")
        if _make(path, text) and _is_newest(path, epoch, results):
            for other in others:
                other.path.unlink(missing_ok=True)
            return Owner(path, text)


def find_owners(folder: Path, prefix: str) -> list[Found]:
    """Return the records of a run, oldest first."""
    names = re.compile(rf"{re.escape(prefix)}(\d+)")
    matches = [match for name in os.listdir(folder) if (match := names.fullmatch(name))]
    found = (_read(folder / match[0], int(match[1])) for match in matches)
    return sorted((each for each in found if each), key=lambda each: each.epoch)


def _read(path: Path, epoch: int) -> Found | None:
    try:
        with path.open() as file:  # opening asks a network file system's server
            text, touched_s = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        return Found(path, epoch, text, touched_s, Record(**json.loads(text)))
    except (ValueError, TypeError):
        return Found(path, epoch, text, touched_s, None)


def _is_newest(path: Path, epoch: int, results: Path) -> bool:
    """Return whether a claim counts; one that came too late is taken back."""
    if find_owners(results.parent, owner_prefix(results))[-1].epoch == epoch:
        return True
    path.unlink()
    return False


def _make(path: Path, text: str) -> bool:
    """Return whether this process has made a new record, which has its content from the first
    moment on.

    Raises:
        OSError: nobody can.
    """
    with _written(path, text) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            return part.stat().st_nlink == 2  # made, and NFS has lost the answer
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _make_without_links(path, text)
    return True


@contextmanager
def _written(path: Path, text: str) -> Iterator[Path]:
    """Yield a file with a text, for a while, beside `path`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w") as file:
            os.fchmod(handle, 0o644)
            file.write(text)
            file.flush()
            os.fsync(handle)
        yield Path(name)
    finally:
        os.unlink(name)


def _make_without_links(path: Path, text: str) -> bool:
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _is_gone(found: Found, own: Record, should_stop: Callable[[], bool]) -> bool:
    """Return whether an owner writes no more, if need be by waiting for what it does."""
    then = found.record
    if then is not None and own.job and then.job == own.job and then.restart != own.restart:
        return then.restart < own.restart
    if then is not None and own.machine and then.machine == own.machine:
        return process_start(then.pid) != then.process_start
    with _written(found.path, "") as now:
        left_s = STALE_S - (now.stat().st_mtime - found.touched_s)
    if left_s <= 0:
        return True
    log.warning("%s may be alive: waiting up to %.0f s for a sign of life", found, left_s)
    return _stays_silent(found, time.monotonic() + left_s, should_stop)


def _stays_silent(found: Found, deadline_s: float, should_stop: Callable[[], bool]) -> bool:
    while time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
        if should_stop():
            raise RunError(f"stopped by a signal while waiting for a sign of life of {found}")
        now = _read(found.path, found.epoch)
        if now != found:
            return now is None
    return True
