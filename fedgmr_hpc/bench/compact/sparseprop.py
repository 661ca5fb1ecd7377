"""SparseProp as kernels, to be measured beside ours (Nikdan et al., ICML 2023)."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgmr_hpc.training.kernels.contract import Pattern
from fedgmr_hpc.training.kernels.torch_csr import TorchKernels


@cache
def why_not() -> str | None:
    """Say why SparseProp cannot be measured; None if it can."""
    try:
        importlib.import_module("sparseprop.modules.functions")
    except ImportError as error:
        return str(error)
    return None


class SparsePropKernels:
    """`Kernels` of the package sparseprop; it has no embeddings, which torch computes."""

    name = "sparseprop"

    def __init__(self) -> None:
        self._functions: Any = importlib.import_module("sparseprop.modules.functions")
        self._places: WeakKeyDictionary[Pattern, tuple[Tensor, ...]] = WeakKeyDictionary()

    def linear(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor) -> Tensor:
        """Apply a linear layer: [..., I] -> [..., O]."""
        where = pattern.row_starts, pattern.columns
        apply = self._functions.SparseLinearFunction.apply
        product: Tensor = apply(x, values, where, bias, pattern.shape[0])
        return product

    def conv(
        self,
        x: Tensor,
        values: Tensor,
        pattern: Pattern,
        bias: Tensor | None,
        *,
        stride: int,
        padding: int,
    ) -> Tensor:
        """Apply a convolution: [B, I, H, W] -> [B, O, H / stride, W / stride]."""
        outputs, kernel = pattern.shape[0], pattern.shape[-1]
        apply = self._functions.SparseConvFunction.apply
        if pattern not in self._places:
            self._places[pattern] = self._find_places(pattern)
        where = self._places[pattern]
        # its forward pass leaves out the last samples of a batch that eight does not divide
        whole = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % 8)).contiguous()
        product: Tensor = apply(
            whole, values, where, bias, outputs, kernel, padding, stride, False, False
        )
        return product[: len(x)]

    def pooled_relu(self, x: Tensor) -> Tensor:
        """Take ReLU of the greatest of 2 x 2 pixels: [B, I, H, W] -> [B, I, H / 2, W / 2]."""
        return F.relu(F.max_pool2d(x, 2))

    def embedding(self, rows: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        """Look rows of a table up: int64 row numbers [...] -> [..., O]."""
        return TorchKernels().embedding(rows, values, pattern)

    def _find_places(self, pattern: Pattern) -> tuple[Tensor, ...]:
        """Return the places of a convolution's kept weights as SparseProp has them."""
        outputs, inputs, kernel, _ = pattern.shape
        whole, num_kept = torch.zeros(pattern.shape), len(pattern.positions)
        whole.view(-1)[pattern.positions.long()] = 1.0
        places = (
            torch.zeros(outputs + 1, dtype=torch.int32),
            torch.zeros((inputs + 1) * outputs, dtype=torch.int16),
            torch.zeros(num_kept, dtype=torch.uint8),
            torch.zeros(num_kept, dtype=torch.uint8),
        )
        ones = torch.zeros(num_kept)
        self._functions.sppb.sparsify_conv2d(outputs, inputs, kernel, whole, *places, ones)
        return places
