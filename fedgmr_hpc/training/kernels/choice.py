"""Choose who computes compact layers: the compiled kernels, or torch where there are none."""

from __future__ import annotations

from functools import cache

from fedgmr_hpc.training.kernels import library
from fedgmr_hpc.training.kernels.compiled import CompiledKernels
from fedgmr_hpc.training.kernels.contract import Kernels


@cache
def make_kernels() -> Kernels:
    """Return the compiled kernels where the library was built, else those of torch.

    Example:
        >>> make_kernels().name  # doctest: +SKIP
        'c1'
    """
    loaded = library.load()
    if loaded is not None:
        return CompiledKernels(library.Library(loaded, library.variants(loaded)[0]))
    from fedgmr_hpc.training.kernels.torch_csr import TorchKernels

    return TorchKernels()
