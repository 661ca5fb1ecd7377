"""Where the kept weights of a convolution stand in planes of lanes (conv.c).

Shapes: B batch, I input and O output channels, K kept weights, H height, W width.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgmr_hpc.training.kernels.contract import Pattern

LANES = 16  # of the library's


class Images(ctypes.Structure):
    """`struct images`: shape and strides of a batch [B, channels, H, W], in numbers."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in "samples channels height width sample channel row column".split()
    ]

    @staticmethod
    def of(images: Tensor) -> Images:
        """Describe a batch that is contiguous or channels_last."""
        strides = images.stride()
        if images.shape[1] == 1:  # both layouts are the same bytes: rows are longer than channels
            height, width = images.shape[2:]
            strides = (height * width, height * width, width, 1)
        return Images(*images.shape, *strides)


class Planes(ctypes.Structure):
    """`struct planes`: the border before an image, and the image's size with both borders."""

    before: int
    rows: int
    columns: int
    _fields_ = [(name, ctypes.c_int64) for name in ("before", "rows", "columns")]

    def room(self, channels: int) -> int:
        """Return how many numbers the planes of sixteen samples are."""
        return channels * self.rows * self.columns * LANES


class Weights(ctypes.Structure):
    """`struct weights`: kept weights in groups that are summed together."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("starts", "offsets", "values")]

    @staticmethod
    def of(starts: Tensor, offsets: Tensor, values: Tensor) -> Weights:
        """Point to tensors, which the caller keeps."""
        return Weights(starts.data_ptr(), offsets.data_ptr(), values.data_ptr())


@dataclass(frozen=True)
class Window:
    """How a convolution's window moves over images of one size.

    Attributes:
        size: H, W of the images.
        kernel: side of the window.
    """

    size: tuple[int, int]
    kernel: int
    stride: int
    padding: int

    @property
    def out_size(self) -> tuple[int, int]:
        """H, W of what it gives."""
        height, width = (
            (side + 2 * self.padding - self.kernel) // self.stride + 1 for side in self.size
        )
        return height, width

    @property
    def of_x(self) -> Planes:
        """Planes of the input, with its padding as borders."""
        height, width = (side + 2 * self.padding for side in self.size)
        return Planes(self.padding, height, width)

    @property
    def of_dy(self) -> Planes:
        """Planes of the output's gradient, with borders as far as an input meets outputs."""
        before = -min(0, (self.padding - self.kernel + 1) // self.stride)
        ends = ((side - 1 + self.padding) // self.stride + 1 for side in self.size)
        height, width = (
            before + max(end, out) for end, out in zip(ends, self.out_size, strict=True)
        )
        return Planes(before, height, width)


class ConvPlan:
    """The kept weights of a convolution as offsets into planes, in lanes.

    Attributes:
        offsets: int32 [K] into planes of the input, in the pattern's order.
        order: int64 [K] of the kept weights by input channel and phase.
        starts_by_input: int32 [I x stride^2 + 1] of these groups.
        offsets_by_input: int32 [K] into planes of the output's gradient, in that order.
    """

    def __init__(self, pattern: Pattern, window: Window) -> None:
        kernel, stride = window.kernel, window.stride
        self.window, self.starts = window, pattern.row_starts
        self.outputs, self.inputs = pattern.shape[:2]
        channel, place = _divide(pattern.columns, kernel * kernel)
        down, right = _divide(place, kernel)
        self.offsets = _offsets(channel, down, right, window.of_x)
        back, phase_down = _divide(down, stride)
        left, phase_right = _divide(right, stride)
        group = (channel * stride + phase_down) * stride + phase_right
        self.order = torch.argsort(group, stable=True)
        bounds = torch.arange(self.inputs * stride**2 + 1, dtype=torch.int32)
        self.starts_by_input = torch.searchsorted(group[self.order], bounds).int()
        output = torch.repeat_interleave(
            torch.arange(self.outputs).int(), pattern.row_starts.diff()
        )
        before = window.of_dy.before
        by_input = _offsets(output, before - back, before - left, window.of_dy)
        self.offsets_by_input = by_input[self.order]


def _divide(numbers: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    quotient = torch.div(numbers, divisor, rounding_mode="floor")
    return quotient, numbers - quotient * divisor


def _offsets(channel: Tensor, row: Tensor, column: Tensor, planes: Planes) -> Tensor:
    offsets: Tensor = (channel * planes.rows + row) * planes.columns + column
    return offsets.int()
