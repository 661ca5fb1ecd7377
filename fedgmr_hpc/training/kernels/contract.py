"""What computes a layer from its kept weights: the contract of compiled and torch kernels.

A layer's kept weights are a vector of values; where they stand in the whole weight is a `Pattern`,
which lives as long as a mask. The functions of `Kernels` take part in autograd: the gradients of
their values are those of the kept weights, and no other weight has one.

Shapes: B batch, I input and O output units, K kept weights, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where a layer's kept weights stand.

    Attributes:
        shape: of the whole weight: [O, I], [O, I, kernel, kernel] or [rows, O].
        positions: int32 [K], ascending, each in the weight laid flat.
    """

    shape: tuple[int, ...]
    positions: Tensor

    @property
    def row_size(self) -> int:
        """Weights of one output unit, or of one row of a table."""
        return math.prod(self.shape[1:])

    @cached_property
    def row_starts(self) -> Tensor:
        """Where each row's weights begin among the kept ones, int32 [rows + 1]."""
        bounds = torch.arange(self.shape[0] + 1, dtype=torch.int64) * self.row_size
        return torch.searchsorted(self.positions.long(), bounds).int()

    @cached_property
    def columns(self) -> Tensor:
        """Where in its row each kept weight stands, int32 [K]."""
        return (self.positions % self.row_size).int()


class Kernels(Protocol):
    """Who computes layers from their kept weights, in float32 on the CPU.

    Attributes:
        name: what runs of the same bits have in common: the kind of kernels and their revision,
            such as `c1` or `torch1`. It is recorded, and part of a run's identity.
    """

    name: str

    def linear(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor) -> Tensor:
        """Apply a linear layer: [..., I] -> [..., O]."""
        ...

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
        ...

    def pooled_relu(self, x: Tensor) -> Tensor:
        """Take ReLU of the greatest of 2 x 2 pixels: [B, I, H, W] -> [B, I, H / 2, W / 2].

        Bits are those of torch's own functions.
        """
        ...

    def embedding(self, rows: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        """Look rows of a table up: int64 row numbers [...] -> [..., O]."""
        ...
