"""Layers from their kept weights by torch's sparse matrices, where no compiler is at hand.

A kept layer is a sparse matrix [rows, J] in CSR; a convolution multiplies it by the windows of the
images, a table is written out. With one thread torch adds in one order, so the same arguments give
the same bits on CPUs of one model.

Shapes: K kept weights, J weights of a row, N columns of the other factor; those of contract.py.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgmr_hpc.training.kernels.contract import Pattern

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


@dataclass(frozen=True)
class _Flipped:
    """A pattern's transpose [J, rows].

    Attributes:
        order: of the kept weights in the transpose, int64 [K].
        starts: where each of its rows begins among them, int32 [J + 1].
        columns: the row of the pattern in which each stands, int32 [K].
    """

    order: Tensor
    starts: Tensor
    columns: Tensor


_flipped: WeakKeyDictionary[Pattern, _Flipped] = WeakKeyDictionary()


class TorchKernels:
    """`Kernels` of torch alone."""

    name = "torch1"

    def linear(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor) -> Tensor:
        """Apply a linear layer: [..., I] -> [..., O]."""
        flat = x.reshape(-1, pattern.row_size)
        product: Tensor = _Product.apply(values, flat.t(), pattern)  # type: ignore[no-untyped-call]
        return (product.t().contiguous() + bias).view(*x.shape[:-1], -1)

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
        kernel = pattern.shape[-1]
        batch, height, width = (
            x.shape[0],
            *((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:]),
        )
        windows = F.unfold(x, kernel, padding=padding, stride=stride)  # [B, J, windows]
        columns = windows.transpose(0, 1).reshape(pattern.row_size, -1)
        product: Tensor = _Product.apply(values, columns, pattern)  # type: ignore[no-untyped-call]
        if bias is not None:
            product = product + bias[:, None]
        return product.view(-1, batch, height, width).transpose(0, 1)

    def pooled_relu(self, x: Tensor) -> Tensor:
        """Take ReLU of the greatest of 2 x 2 pixels: [B, I, H, W] -> [B, I, H / 2, W / 2]."""
        return F.relu(F.max_pool2d(x, 2))

    def embedding(self, rows: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        """Look rows of a table up: int64 row numbers [...] -> [..., O]."""
        table = values.new_zeros(pattern.shape[0] * pattern.row_size)
        table = table.scatter(0, pattern.positions.long(), values)
        return F.embedding(rows, table.view(pattern.shape[0], -1))


class _Product(torch.autograd.Function):
    """A sparse matrix [rows, J] times a dense one [J, N], and its gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, right: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(values, right)
        return _matrix(pattern, values) @ right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (values, right), pattern, gradient = ctx.saved_tensors, ctx.pattern, gradients[0]
        of_values = of_right = None
        if ctx.needs_input_grad[0]:
            kept = _matrix(pattern, torch.zeros_like(values))
            of_values = torch.sparse.sampled_addmm(kept, gradient, right.t(), beta=0.0).values()
        if ctx.needs_input_grad[1]:
            of_right = _transpose(pattern, values) @ gradient
        return of_values, of_right, None


def _matrix(pattern: Pattern, values: Tensor) -> Tensor:
    """Return the sparse matrix [rows, J]."""
    size = pattern.shape[0], pattern.row_size
    return _csr(pattern.row_starts, pattern.columns, values, size)


def _transpose(pattern: Pattern, values: Tensor) -> Tensor:
    """Return the sparse matrix [J, rows]."""
    if pattern not in _flipped:
        _flipped[pattern] = _flip(pattern)
    flipped, size = _flipped[pattern], (pattern.row_size, pattern.shape[0])
    return _csr(flipped.starts, flipped.columns, values[flipped.order], size)


_csr = partial(torch.sparse_csr_tensor, check_invariants=False)


def _flip(pattern: Pattern) -> _Flipped:
    columns, order = torch.sort(pattern.columns, stable=True)
    starts = torch.searchsorted(columns, torch.arange(pattern.row_size + 1, dtype=torch.int32))
    rows = pattern.positions // pattern.row_size
    return _Flipped(order, starts.int(), rows[order])
