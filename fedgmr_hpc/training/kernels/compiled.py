"""Layers from their kept weights, by the compiled kernels (docs/compact-training.md).

Shapes: B batch, N samples, I input and O output units, K kept weights, H height, W width.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedgmr_hpc.training.kernels.contract import Pattern
from fedgmr_hpc.training.kernels.conv_plan import LANES, ConvPlan, Images, Weights, Window
from fedgmr_hpc.training.kernels.library import Library

MOST_LANES = 64  # that the linear kernels take at once
QUARTER = LANES // 4  # lanes for up to four samples beside sixteen


class CompiledKernels:
    """Kernels of one variant of the compiled library; they run on the calling thread alone."""

    name = "c1"  # another number for other bits

    def __init__(self, library: Library) -> None:
        self.library = library
        self._plans: WeakKeyDictionary[Pattern, dict[Window, ConvPlan]] = WeakKeyDictionary()

    def linear(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor) -> Tensor:
        """Apply a linear layer: [..., I] -> [..., O]."""
        _check(x, x.shape[-1], pattern)
        samples = x.reshape(-1, x.shape[-1]).contiguous()
        y = _apply(_Linear, samples, values.contiguous(), bias, pattern, self.library)
        return y.view(*x.shape[:-1], y.shape[-1])

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
        _check(x, x.shape[1], pattern)
        size = x.shape[2], x.shape[3]
        plan = self._plan(pattern, Window(size, pattern.shape[-1], stride, padding))
        return _apply(_Conv, _dense(x), values.contiguous(), bias, plan, self.library)

    def pooled_relu(self, x: Tensor) -> Tensor:
        """Take ReLU of the greatest of 2 x 2 pixels: [B, I, H, W] -> [B, I, H / 2, W / 2]."""
        if not _is_channels_last(x):
            return F.relu(F.max_pool2d(x, 2))
        return _apply(_PooledRelu, x, self.library)

    def embedding(self, rows: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        """Look rows of a table up: int64 row numbers [...] -> [..., O].

        Raises:
            IndexError: the table has no such row.
        """
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < pattern.shape[0]:
            raise IndexError(f"rows must be from 0 to {pattern.shape[0] - 1} of a table's")
        return _apply(
            _Embedding, values.contiguous(), rows.long().contiguous(), pattern, self.library
        )

    def _plan(self, pattern: Pattern, window: Window) -> ConvPlan:
        plans = self._plans.setdefault(pattern, {})
        if window not in plans:
            plans[window] = ConvPlan(pattern, window)
        return plans[window]


def _check(x: Tensor, inputs: int, pattern: Pattern) -> None:
    """Refuse what the library would read past the end of."""
    if x.dtype != torch.float32 or inputs != pattern.shape[1]:
        found = f"(got {inputs} of {x.dtype})"
        raise ValueError(f"the layer must have {pattern.shape[1]} float32 inputs {found}")


def _apply(function: Any, *arguments: Any) -> Tensor:
    """Apply a function that takes part in autograd; torch has no types for it."""
    y: Tensor = function.apply(*arguments)
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor, pattern: Pattern, library: Library
    ) -> Tensor:
        ctx.lanes = x.new_empty(_count_lanes(len(x)), x.shape[1])
        ctx.layer = len(x), *reversed(pattern.shape), pattern.row_starts, pattern.columns, values
        ctx.library = library
        y = x.new_empty(len(x), pattern.shape[0])
        library.call("linear_forward", x, *ctx.layer, bias, ctx.lanes, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        samples, inputs, outputs, _, _, values = ctx.layer
        dvalues, dbias = torch.empty_like(values), dy.new_empty(outputs)
        dx, room = None, None
        if ctx.needs_input_grad[0]:
            dx = dy.new_empty(samples, inputs)
            room = dy.new_empty(min(len(ctx.lanes), MOST_LANES), inputs)
        gradients = room, dx, dvalues, dbias
        ctx.library.call("linear_backward", dy.contiguous(), ctx.lanes, *ctx.layer, *gradients)
        return dx, dvalues, dbias, None, None


def _count_lanes(samples: int) -> int:
    """Return how many lanes hold the samples: blocks of 64, at last 16, 20, 32, 48 or 64."""
    whole, rest = divmod(samples, MOST_LANES)
    if LANES < rest <= LANES + QUARTER:
        return whole * MOST_LANES + LANES + QUARTER
    blocks = -(-rest // LANES)
    return whole * MOST_LANES + (MOST_LANES if blocks == 4 else blocks * LANES)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, plan: ConvPlan, library: Library
    ) -> Tensor:
        window = plan.window
        y = _empty_like(x, (len(x), plan.outputs, *window.out_size))
        of_x, of_y = Images.of(x), Images.of(y)
        ctx.planes = x.new_empty(-(-len(x) // LANES) * window.of_x.room(plan.inputs))
        room = x.new_empty(y[:1].numel() * LANES)
        weights = Weights.of(plan.starts, plan.offsets, values)
        library.call(
            "conv_forward", x, of_x, window.of_x, weights, bias, window.stride, ctx.planes, room,
            of_y, y,
        )  # fmt: skip
        ctx.plan, ctx.library, ctx.values = plan, library, values
        ctx.x, ctx.has_bias = x.detach(), bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        plan, window, values, dy = ctx.plan, ctx.plan.window, ctx.values, _dense(dy)
        dvalues, dbias = torch.empty_like(values), dy.new_empty(plan.outputs)
        dx, room, by_input = None, None, None
        if ctx.needs_input_grad[0]:
            dx = _empty_like(ctx.x, ctx.x.shape)
            room = dy.new_empty(dx[:1].numel() * LANES)
            turned = values[plan.order]
            by_input = Weights.of(plan.starts_by_input, plan.offsets_by_input, turned)
        of_x, of_dy = Images.of(ctx.x), Images.of(dy)
        weights = Weights.of(plan.starts, plan.offsets, values)
        planes_of_dy = dy.new_empty(window.of_dy.room(plan.outputs))
        ctx.library.call(
            "conv_backward", dy, of_dy, window.of_dy, ctx.planes, of_x, window.of_x, weights,
            by_input, window.stride, window.padding, planes_of_dy, room, dx, dvalues,
            dbias if ctx.has_bias else None,
        )  # fmt: skip
        return dx, dvalues, dbias if ctx.has_bias else None, None, None


def _is_channels_last(images: Tensor) -> bool:
    return images.stride(1) == 1 and images.is_contiguous(memory_format=torch.channels_last)


def _dense(images: Tensor) -> Tensor:
    return images if _is_channels_last(images) else images.contiguous()


def _empty_like(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return new images in the layout of others."""
    last = _is_channels_last(images)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=images.dtype, memory_format=layout)


class _PooledRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, library: Library) -> Tensor:
        batch, channels, height, width = x.shape
        y = _empty_like(x, (batch, channels, height // 2, width // 2))
        ctx.places, ctx.library = torch.empty(y.numel(), dtype=torch.uint8), library
        ctx.size = batch, height, width, channels
        library.call("pool_forward", x, *ctx.size, y, ctx.places)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        batch, height, width, channels = ctx.size
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = dy.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
        ctx.library.call("pool_backward", dy, ctx.places, *ctx.size, dx)
        return dx, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, rows: Tensor, pattern: Pattern, library: Library
    ) -> Tensor:
        y = values.new_empty(*rows.shape, pattern.shape[1])
        ctx.layer = rows, rows.numel(), pattern.shape[1], pattern.row_starts, pattern.columns
        ctx.library, ctx.kept = library, len(values)
        library.call_plain("embedding_forward", *ctx.layer, values, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dvalues = dy.new_empty(ctx.kept)
        ctx.library.call_plain("embedding_backward", *ctx.layer, ctx.kept, dy.contiguous(), dvalues)
        return dvalues, None, None, None
