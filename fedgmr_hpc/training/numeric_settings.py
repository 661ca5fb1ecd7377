"""The settings of torch on which the bits of a training depend, and what a run needs of them.

A process starts with most of them as they are wanted. A notebook, or a plug-in, may have set them
otherwise for models of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class _Setting:
    """One setting of this process: how to read and to write it, and the value that runs need."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    wanted: Any


def settle() -> None:
    """Set everything as runs need it; for CUDA devices, see also `prepare_device`."""
    for setting in _SETTINGS:
        setting.write(setting.wanted)


@contextmanager
def settled() -> Iterator[None]:
    """Set everything as runs need it, and at the end again as it was, whatever a run has set."""
    before = [setting.read() for setting in _SETTINGS]
    settle()
    try:
        with _on_cpu():
            yield
    finally:
        for setting, value in zip(_SETTINGS, before, strict=True):
            if value is not None:
                setting.write(value)


@contextmanager
def tf32() -> Iterator[None]:
    """Let CUDA devices round factors to TF32, and at the end again as before."""
    settings = [*_attributes("tf32", *_CUDA_PRECISIONS)]
    settings = settings or [*_attributes(True, "cuda.matmul.allow_tf32", "cudnn.allow_tf32")]
    before = [setting.read() for setting in settings]
    try:
        for setting in settings:
            setting.write(setting.wanted)
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.write(value)


def _on_cpu() -> AbstractContextManager[object]:
    """Make tensors that name no device in the memory of the CPU, in this thread."""
    is_cpu = torch.get_default_device().type == "cpu"
    return nullcontext() if is_cpu else torch.device("cpu")  # which takes time at every call


def _attributes(wanted: Any, *paths: str) -> Iterator[_Setting]:
    """Yield the settings that are attributes below `torch.backends`, where this torch has them."""
    for path in paths:
        *owners, name = path.split(".")
        owner: Any = torch.backends
        for part in owners:
            owner = getattr(owner, part, None)
        read = partial(_unless_mixed, partial(getattr, owner, name, None))
        if read() is not None:
            yield _Setting(read, partial(setattr, owner, name), wanted)


def _unless_mixed(read: Callable[[], Any]) -> Any:
    """Return what older programs set for all kinds of operations; None where they differ in it."""
    try:
        return read()
    except RuntimeError:
        return None


def _flushes_denormals() -> bool:
    """Return whether the processor takes numbers near 0 for 0."""
    return sys.float_info.min / 2 == 0.0


# How fp32 numbers are multiplied and folded: for each kind of operation, but not in older torch.
_CPU_PRECISIONS = (
    *("mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision", "mkldnn.rnn.fp32_precision"),
)
_CUDA_PRECISIONS = (
    *("cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision"),
)
_ATTENTION = torch.backends.cuda  # which kernels attention has, on the CPU, too
_SETTINGS = (
    _Setting(torch.get_num_threads, torch.set_num_threads, 1),
    _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    _Setting(_flushes_denormals, torch.set_flush_denormal, False),
    _Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, "default"),
    _Setting(
        partial(_unless_mixed, torch.get_float32_matmul_precision),
        torch.set_float32_matmul_precision,
        "highest",
    ),
    *_attributes(False, "cudnn.allow_tf32", "cudnn.benchmark"),
    *_attributes(
        "ieee", *_CPU_PRECISIONS, *_CUDA_PRECISIONS
    ),  # after those that set several of them
    *_attributes(True, "mkldnn.enabled", "cudnn.enabled"),
    _Setting(_ATTENTION.flash_sdp_enabled, _ATTENTION.enable_flash_sdp, True),
    _Setting(_ATTENTION.mem_efficient_sdp_enabled, _ATTENTION.enable_mem_efficient_sdp, True),
    _Setting(_ATTENTION.math_sdp_enabled, _ATTENTION.enable_math_sdp, True),
)
