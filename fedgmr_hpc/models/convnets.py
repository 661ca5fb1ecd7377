"""The plain convolutional networks, as tables (docs/method.md#models).

Every layer but the last is followed by ReLU, after its pooling if it has one. Layer costs kappa:
docs/method.md#layer-costs (missing ones are 1). Width cuts keep the ceiling of the share of a
layer's units.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from fedgmr_hpc.fl.widths import Axis
from fedgmr_hpc.models.layers import (
    Forward,
    LayerSpec,
    Start,
    channels_last,
    conv,
    fan_in_start,
    kaiming_start,
    linear,
)

Bound = Literal["fan_in", "relu_in", "relu_out"] | float


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of a model table.

    Attributes:
        name: of the layer.
        kind: convolution or linear layer.
        inputs: input channels or units.
        outputs: output channels or units.
        kernel: side of the convolution's window.
        pool: whether the image is halved after the layer.
        prunable: whether masks may cut its weights.
        bound: of the weights' uniform start: `fan_in` is 1/sqrt(fan_in), `relu_in` and `relu_out`
            are Kaiming for ReLU, a number is the leaky slope of Kaiming fan-in.
        cost: kappa of one weight.
    """

    name: str
    kind: Literal["conv", "linear"]
    inputs: int
    outputs: int
    kernel: int = 1
    pool: bool = False
    prunable: bool = True
    bound: Bound = "fan_in"
    cost: float = 1.0


def _conv(
    name: str, inputs: int, outputs: int, kernel: int, pool: bool, cost: float = 1.0
) -> Layer:
    return Layer(name, "conv", inputs, outputs, kernel, pool, cost=cost)


def _linear(name: str, inputs: int, outputs: int, bound: Bound, cost: float = 1.0) -> Layer:
    return Layer(name, "linear", inputs, outputs, bound=bound, cost=cost)


def _output(name: str, inputs: int, outputs: int, bound: Bound) -> Layer:
    return Layer(name, "linear", inputs, outputs, prunable=False, bound=bound)


TABLES: dict[str, tuple[tuple[int, int, int], tuple[Layer, ...]]] = {
    "digits_cnn": (
        (1, 8, 8),
        (
            _conv("conv1", 1, 16, 3, False),
            _conv("conv2", 16, 32, 3, True),
            _linear("fc1", 512, 128, "relu_in"),
            _output("fc2", 128, 10, "fan_in"),
        ),
    ),
    "cifar_cnn": (
        (3, 32, 32),
        (
            Layer("conv1", "conv", 3, 32, 3, True, bound="relu_in"),
            Layer("conv2", "conv", 32, 64, 3, True, bound="relu_in"),
            Layer("conv3", "conv", 64, 64, 3, True, bound="relu_in"),
            _linear("fc1", 1024, 128, "relu_in"),
            _output("fc2", 128, 10, "fan_in"),
        ),
    ),
    "conv2": (
        (1, 28, 28),
        (
            _conv("conv1", 1, 32, 5, True, 5.56e-6),
            _conv("conv2", 32, 64, 5, True, 4.106e-5),
            _linear("fc1", 3136, 2048, "relu_out", 6.525e-6),
            _output("fc2", 2048, 62, "relu_out"),
        ),
    ),
    "conv2_small": (
        (1, 28, 28),
        (
            _conv("conv1", 1, 8, 5, True, 5.56e-6),
            _conv("conv2", 8, 16, 5, True, 4.106e-5),
            _linear("fc1", 784, 128, "relu_out", 6.525e-6),
            _output("fc2", 128, 62, "relu_out"),
        ),
    ),
    "vgg11": (
        (3, 32, 32),
        (
            _conv("conv1", 3, 64, 3, True, 5.56e-6),
            _conv("conv2", 64, 128, 3, True, 5.03e-5),
            _conv("conv3", 128, 256, 3, False, 1.80e-5),
            _conv("conv4", 256, 256, 3, True, 1.95e-5),
            _conv("conv5", 256, 512, 3, False, 1.07e-5),
            _conv("conv6", 512, 512, 3, True, 1.20e-5),
            _conv("conv7", 512, 512, 3, False, 1.48e-5),
            _conv("conv8", 512, 512, 3, True, 9.60e-6),
            _linear("fc1", 512, 512, "relu_in", 8.13e-6),
            _linear("fc2", 512, 512, "relu_in", 6.78e-6),
            _output("fc3", 512, 10, 1.5),
        ),
    ),
}


def convnet_layers(table: tuple[Layer, ...]) -> tuple[LayerSpec, ...]:
    """Build the layers of a table, each with the axes of the one before it."""
    specs, channels = [], Axis(table[0].inputs, cut="whole")
    for row in table:
        specs.append(_layer(row, channels, is_last=row is table[-1]))
        channels = specs[-1].out
    return tuple(specs)


def _layer(row: Layer, channels: Axis, *, is_last: bool) -> LayerSpec:
    out = Axis(row.outputs, cut="whole" if is_last else "ceil")
    if row.kind == "conv":
        return conv(
            row.name,
            channels,
            out,
            row.kernel,
            _start(row),
            prunable=row.prunable,
            cost=row.cost,
        )
    num_pixels = row.inputs // channels.units
    flat = Axis(channels.units, num_pixels, cut=channels.cut)
    return linear(row.name, flat, out, _start(row), prunable=row.prunable, cost=row.cost)


def _start(row: Layer) -> Start:
    window = row.kernel**2
    if row.bound == "fan_in":
        return fan_in_start(row.inputs * window)
    if isinstance(row.bound, float):
        return kaiming_start(row.inputs * window, row.bound)
    return kaiming_start((row.inputs if row.bound == "relu_in" else row.outputs) * window)


def convnet_logits(table: tuple[Layer, ...], net: Forward, images: Tensor) -> Tensor:
    """Compute the logits [B, classes] of images [B, channels, H, W]."""
    x, last = channels_last(images), table[-1]
    for row in table:
        if row.kind == "conv":
            x = net.conv(row.name, x, padding=row.kernel // 2)
        else:
            x = net.linear(row.name, x.flatten(1))
        if row is not last:
            x = net.pooled_relu(x) if row.pool else F.relu(x)
    return x
