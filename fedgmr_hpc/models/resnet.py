"""ResNet-18 for ImageNet-100, with batch norms (docs/method.md#models).

All convolutions but the three 1x1 shortcuts, and the output layer, are prunable. The width methods
use the same norms as the others, where the released code gives them group norms
(docs/method.md#deviations, 35); the residual stream of a stage is one axis, so its units are cut
alike.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from fedgmr_hpc.fl.widths import Axis
from fedgmr_hpc.models.layers import (
    Forward,
    LayerSpec,
    Start,
    batch_norm,
    channels_last,
    conv,
    kaiming_start,
    linear,
)

INPUT_SHAPE = (3, 168, 168)
MIN_SIZE = 32  # pixels a side
NUM_CLASSES = 100
STAGE_CHANNELS = (64, 128, 256, 512)
BLOCKS = tuple((stage, block) for stage in range(1, 5) for block in (1, 2))
CONV1_COST, OUTPUT_COST = 5.56e-6, 3.62e-5
BLOCK_COSTS = (  # kappa of both convolutions of each block
    (1.73e-5, 5.57e-5),
    (5.84e-5, 2.68e-5),
    (3.39e-5, 1.62e-5),
    (1.72e-5, 8.93e-6),
    (3.87e-5, 8.13e-6),
    (6.55e-6, 5.75e-6),
    (1.05e-5, 1.30e-5),
    (9.30e-6, 9.92e-6),
)


def resnet18_layers() -> tuple[LayerSpec, ...]:
    """Build the layers in forward order; a block's shortcut follows its convolutions."""
    image = Axis(INPUT_SHAPE[0], cut="whole")
    streams = [Axis(channels) for channels in STAGE_CHANNELS]
    layers = [*_conv_and_norm("conv1", "norm1", image, streams[0], 7, CONV1_COST)]
    stream = streams[0]
    for (stage, block), costs in zip(BLOCKS, BLOCK_COSTS, strict=True):
        out = streams[stage - 1]
        layers += _block(f"stage{stage}.block{block}", stream, out, costs)
        stream = out
    classes = Axis(NUM_CLASSES, cut="whole")
    start = kaiming_start(stream.units, slope=1.5)
    return (*layers, linear("fc", stream, classes, start, cost=OUTPUT_COST))


def _block(name: str, into: Axis, out: Axis, costs: tuple[float, float]) -> Iterator[LayerSpec]:
    yield from _conv_and_norm(f"{name}.conv1", f"{name}.norm1", into, out, 3, costs[0])
    yield from _conv_and_norm(f"{name}.conv2", f"{name}.norm2", out, out, 3, costs[1])
    if into != out:
        yield from _conv_and_norm(f"{name}.shortcut", f"{name}.shortcut_norm", into, out, 1, None)


def _conv_and_norm(
    name: str, norm: str, into: Axis, out: Axis, kernel: int, cost: float | None
) -> tuple[LayerSpec, LayerSpec]:
    """Build a convolution without bias, prunable if it has a cost, and its norm."""
    start = Start("normal", math.sqrt(2 / (out.units * kernel**2)))  # Kaiming fan out
    is_prunable = cost is not None
    filters = conv(
        name, into, out, kernel, start, bias=False, prunable=is_prunable, cost=cost or 1.0
    )
    return filters, batch_norm(norm, out)


def resnet18_logits(net: Forward, images: Tensor) -> Tensor:
    """Compute the logits [B, 100] of square images [B, 3, H, H], H at least 32."""
    x = net.conv("conv1", channels_last(images), padding=3, stride=2)
    x = F.max_pool2d(F.relu(net.batch_norm("norm1", x)), 3, stride=2, padding=1)
    for stage, block in BLOCKS:
        x = _block_output(net, f"stage{stage}.block{block}", x, 2 if block == 1 < stage else 1)
    return net.linear("fc", x.mean((2, 3)))


def _block_output(net: Forward, name: str, x: Tensor, stride: int) -> Tensor:
    y = net.conv(f"{name}.conv1", x, padding=1, stride=stride)
    y = F.relu(net.batch_norm(f"{name}.norm1", y))
    y = net.batch_norm(f"{name}.norm2", net.conv(f"{name}.conv2", y, padding=1))
    if stride != 1:
        x = net.conv(f"{name}.shortcut", x, padding=0, stride=stride)
        x = net.batch_norm(f"{name}.shortcut_norm", x)
    return F.relu(y + x)


def resnet18_misfit(input_shape: tuple[int, ...]) -> str | None:
    """Say what is wrong with images of this shape; None if nothing is."""
    channels, height, width = input_shape if len(input_shape) == 3 else (0, 0, 0)
    if channels == INPUT_SHAPE[0] and height == width >= MIN_SIZE:
        return None
    return f"takes square images (3, size, size) of size {MIN_SIZE} or more"
