"""Settings of CUDA and of the C library for a process that trains or serves."""

from __future__ import annotations

import ctypes
import os

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # of mallopt


def prepare_device(device: str, deterministic: bool = True) -> None:
    """Choose the algorithms of a CUDA device before anything is computed on it.

    Args:
        device: others need nothing.
        deterministic: add in one order, so that the same training gives the same bits however often
            it runs, on any GPU of one model. Left to themselves, cuDNN and cuBLAS choose algorithms
            that add in the order in which threads come. An operation without a repeatable algorithm
            warns on stderr.
    """
    if torch.device(device).type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS begins
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def return_large_blocks() -> None:
    """Make the C library give freed model-sized blocks back at once: for a server's memory.

    glibc moves its threshold up to the size of what is freed, after which a few long-lived arrays
    pin many times their size.
    """
    _set_malloc(_MMAP_MAX, 1 << 16)  # what glibc begins with
    _set_malloc(_MMAP_THRESHOLD, 4 << 20)


def keep_large_blocks() -> None:
    """Make the C library keep freed model-sized blocks: for the speed of whoever trains.

    Every task allocates weights, gradients and positions as large as the model; fresh pages for
    each of them cost a third of a local step. So nothing is mapped by itself, and all threads share
    one heap: that of another thread is given back whenever it is empty. Call it before the process
    has other threads.
    """
    _set_malloc(_ARENA_MAX, 1)
    _set_malloc(_MMAP_MAX, 0)
    _set_malloc(_TRIM_THRESHOLD, 1 << 30)


def _set_malloc(parameter: int, value: int) -> None:
    """Call glibc's `mallopt`; other C libraries are left alone."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(parameter, value)
