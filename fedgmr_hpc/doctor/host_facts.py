"""What a host says of itself: file systems and their locks, memory, the MPI library, time left."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import accumulate
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def try_lock(folder: Path) -> bool:
    """Return whether files there can be locked as HDF5 locks them; OSError where they cannot be
    written.

    Plain calls come before HDF5's: one that hangs lets this process's other threads go on.
    """
    path = folder / f".doctor-{os.getpid()}.lock"
    try:
        with path.open("wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return False
                raise
        return True
    finally:
        path.unlink(missing_ok=True)


def file_system(folder: Path, mounts: str = "/proc/self/mounts") -> str:
    """Return the type of the file system that holds a folder, `ext4`; `unknown` outside Linux."""
    try:
        lines = [line.split() for line in Path(mounts).read_text().splitlines()]
    except OSError:
        return "unknown"
    places = [(fields[1].replace(r"\040", " "), fields[2]) for fields in lines]
    inside = [place for place in places if folder.resolve().is_relative_to(place[0])]
    longest = max((len(place) for place, _ in inside), default=0)
    return next((kind for place, kind in reversed(inside) if len(place) == longest), "unknown")


def mpi_is_cuda_aware() -> bool | None:
    """Return what the MPI library of this process says; None without one, or where it does not
    say.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    names = {line.split()[-1] for line in lines if "/libmpi" in line}
    for name in sorted(names):
        library = ctypes.CDLL(name)
        if hasattr(library, "MPIX_Query_cuda_support"):
            return bool(library.MPIX_Query_cuda_support())
    return None


def free_memory_bytes(root: str = "/") -> int:
    """Memory that this process may still take: the host's, or less where a cgroup has a limit.

    Args:
        root: of the file system with proc/ and sys/.
    """
    lines = Path(root, "proc/meminfo").read_text().splitlines()
    known = {name: int(rest.split()[0]) << 10 for name, rest in (x.split(":") for x in lines)}
    limits = [known["MemAvailable"], *_cgroup_rooms(Path(root))]
    return max(0, min(limits))


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Return what each limit of this process's cgroups, version 1 or 2, and of their parents
    leaves.
    """
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        if controllers:
            base = base / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if controllers in ("", "memory"):
            for folder in accumulate(Path(path).parts[1:], Path.__truediv__, initial=base):
                yield from _room(folder, *names)


def _room(folder: Path, limit: str, usage: str) -> Iterator[int]:
    """Cached files count as used there, but make room when it is needed."""
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return
    cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    if most != "max":
        yield int(most) - used + cached


def slurm_left_s(env: Mapping[str, str]) -> float | None:
    """Return the wall time until Slurm ends this job; None outside a job or without a limit."""
    job, end_s = env.get("SLURM_JOB_ID"), env.get("SLURM_JOB_END_TIME", "")
    if job is None:
        return None
    return float(end_s) - time.time() if end_s.isdigit() else _ask_slurm(job)


def _ask_slurm(job: str) -> float | None:
    """By EndTime=2026-05-01T12:00:00, or Unknown, of `scontrol show job`."""
    command = ["scontrol", "show", "job", job]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"EndTime=(\d\S+)", ran.stdout)
    return datetime.fromisoformat(found.group(1)).timestamp() - time.time() if found else None
