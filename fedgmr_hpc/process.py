"""What the operating system says about this process."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import sys
from pathlib import Path

import torch


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
    """Keeps this process on one of the cores it may use, another for each rank of the node; nothing
    where the node has fewer cores than ranks, or the system has no such call (outside Linux)."""
    cores = own_cores()
    if num_local is not None and num_local <= len(cores):
        os.sched_setaffinity(0, {cores[local_rank]})


def own_cores() -> list[int]:
    """The cores that this process may use, which under a scheduler are fewer than the node has;
    none where the system does not tell (outside Linux)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def num_cores() -> int:
    """How many cores this process may use."""
    return len(own_cores()) or os.cpu_count() or 1


def describe_cores() -> str:
    """The cores that this process may use, `0 1`; `any` where the system does not tell."""
    return " ".join(map(str, own_cores())) or "any"


def own_python() -> str:
    """What to type for this Python: `python` where that is it, else its path."""
    found = shutil.which("python")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "python"  # not where they only lead to the same: a venv's is a link
    here = os.path.relpath(sys.executable)
    return sys.executable if here.startswith("..") else here


def compute_repeatably() -> None:
    """Makes CUDA devices add in one order and multiply in full fp32, so that the same training
    gives the same bits however often it runs, on any GPU of one model.

    Left to themselves, cuDNN and cuBLAS choose algorithms that add in the order in which threads
    come, and convolutions round their inputs to TF32. An operation without a repeatable algorithm
    warns on stderr.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def return_large_blocks() -> None:
    """Makes the C library give freed model-sized blocks back at once: for a server's memory.

    glibc moves its threshold up to the size of what is freed, after which a few long-lived arrays
    pin many times their size.
    """
    _set_malloc(_MMAP_THRESHOLD, 4 << 20)


def keep_large_blocks() -> None:
    """Makes the C library keep freed model-sized blocks: for a worker's speed.

    Every local step allocates gradients as large as the model; fresh pages for each of them cost a
    tenth of the step.
    """
    _set_malloc(_MMAP_THRESHOLD, 32 << 20)  # the most that glibc allows
    _set_malloc(_TRIM_THRESHOLD, 1 << 30)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def _set_malloc(parameter: int, value: int) -> None:
    """glibc's `mallopt`; other C libraries are left alone."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(parameter, value)


def machine_id() -> str:
    """Names the running system and the space in which process ids mean something; empty where
    that is not told (outside Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """When a process of this machine began, in ticks since the boot; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # from the third on; a name may hold anything
    return "" if fields[0] in "ZX" else fields[19]
