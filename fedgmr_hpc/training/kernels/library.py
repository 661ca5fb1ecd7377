"""The library of compiled kernels: whether it is there, and its functions by variant."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from torch import Tensor

from fedgmr_hpc.training.kernels.build import LIBRARY, hash_sources

VARIANTS = ("avx512", "avx2", "neon", "plain")  # the fastest first


class Library:
    """The functions of one variant of the library.

    Attributes:
        variant: instruction set that its functions use; their bits are the same in all.
    """

    def __init__(self, loaded: ctypes.CDLL, variant: str) -> None:
        self._loaded, self.variant = loaded, variant

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that has variants: tensors by their memory, None for no memory."""
        self._call(f"{name}_{self.variant}", arguments)

    def call_plain(self, name: str, *arguments: Any) -> None:
        """Call a function that has no variants."""
        self._call(name, arguments)

    def _call(self, name: str, arguments: tuple[Any, ...]) -> None:
        self._loaded[name](*map(_as_c, arguments))


def _as_c(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    return argument if argument is None else ctypes.byref(argument)


@cache
def load() -> ctypes.CDLL | None:
    """Load the library; None if it was not built, or not from these sources."""
    if not LIBRARY.exists():
        return None
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError:  # of another architecture or C library
        return None
    loaded.sources.restype = ctypes.c_char_p
    return loaded if loaded.sources().decode() == hash_sources() else None


def variants(loaded: ctypes.CDLL) -> list[str]:
    """List the variants that this CPU runs, the fastest first."""
    return [name for name in VARIANTS if loaded.can_run(name.encode())]
