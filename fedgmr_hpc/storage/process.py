"""What the operating system says about this process and its machine."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def resident_bytes() -> int:
    """Resident memory now; its peak where the system does not tell (outside Linux)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def private_bytes() -> int:
    """Resident memory that is neither files nor shared: what the program itself holds."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return resident_bytes()
    _, resident, shared = statm.read_text().split()[:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def pin_core(local_rank: int, num_local: int | None) -> None:
    """Keep this process on one of the cores it may use, another for each rank of the node; nothing
    where the node has fewer cores than ranks, or the system has no such call (outside Linux)."""
    cores = own_cores()
    if num_local is not None and num_local <= len(cores):
        os.sched_setaffinity(0, {cores[local_rank]})


def own_cores() -> list[int]:
    """Return the cores that this process may use, which under a scheduler are fewer than the node
    has; none where the system does not tell (outside Linux).
    """
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(own_cores()) or os.cpu_count() or 1


def describe_cores() -> str:
    """Return the cores that this process may use, `0 1`; `any` where the system does not tell."""
    return " ".join(map(str, own_cores())) or "any"


def machine_id() -> str:
    """Name the running system and the space in which process ids mean something; empty where
    that is not told (outside Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Return when a process of this machine began, in ticks since the boot; empty where there is
    none.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # from the third on; a name may hold anything
    return "" if fields[0] in "ZX" else fields[19]
