"""The models and the flat view of their weights.

All weights of a model live in one float32 vector [P + D]: first the P prunable entries (weights of
masked layers, in forward order), then the dense part of D entries (biases, the output layer).
Masks, frames and merges know only offsets into it. Parameter counts, prunable layers, initial
bounds: spec section 8; layer costs kappa: spec section 3.2 (missing ones are 1).

Shapes: B batch, P prunable entries, D dense entries.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgmr_hpc.records import Floats, make_rng

HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of a model table. `pool` halves the image after the layer; `bound` of the weights'
    uniform start: `fan_in` is 1/sqrt(fan_in), `relu_in`/`relu_out` Kaiming for ReLU, or a number a
    for Kaiming fan-in with that leaky slope."""

    name: str
    kind: Literal["conv", "linear"]
    inputs: int
    outputs: int
    kernel: int = 1
    pool: bool = False
    prunable: bool = True
    bound: Literal["fan_in", "relu_in", "relu_out"] | float = "fan_in"
    cost: float = 1.0


def _conv(
    name: str, inputs: int, outputs: int, kernel: int, pool: bool, cost: float = 1.0
) -> Layer:
    return Layer(name, "conv", inputs, outputs, kernel, pool, cost=cost)


def _linear(name: str, inputs: int, outputs: int, bound: str | float, cost: float = 1.0) -> Layer:
    return Layer(name, "linear", inputs, outputs, bound=bound, cost=cost)  # type: ignore[arg-type]


def _output(name: str, inputs: int, outputs: int, bound: str | float) -> Layer:
    return Layer(name, "linear", inputs, outputs, prunable=False, bound=bound)  # type: ignore[arg-type]


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


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor's place in the flat vector. `gated_by` names the weight that gates this bias."""

    name: str
    shape: tuple[int, ...]
    offset: int
    prunable: bool
    cost: float
    gated_by: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> slice:
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, shapes and offsets of the flat vector: prunable entries first, then the dense part."""

    entries: tuple[Entry, ...]

    @property
    def num_prunable(self) -> int:
        return sum(entry.size for entry in self.entries if entry.prunable)

    @property
    def num_weights(self) -> int:
        return sum(entry.size for entry in self.entries)

    def __getitem__(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)

    def to_json(self) -> str:
        """What the result file says about the vector."""
        rows = [[e.name, list(e.shape), e.offset, e.prunable] for e in self.entries]
        return json.dumps({"columns": ["name", "shape", "offset", "prunable"], "tensors": rows})


def _weight_shape(layer: Layer) -> tuple[int, ...]:
    square = (layer.kernel, layer.kernel) if layer.kind == "conv" else ()
    return (layer.outputs, layer.inputs, *square)


def make_layout(model: str) -> Layout:
    """The flat layout of a model of `TABLES`."""
    _, layers = TABLES[model]
    rows = [
        (f"{la.name}.weight", _weight_shape(la), la.prunable, la.cost, None) for la in layers
    ] + [
        (f"{la.name}.bias", (la.outputs,), False, 1.0, f"{la.name}.weight" if la.prunable else None)
        for la in layers
    ]
    rows.sort(key=lambda row: not row[2])  # stable: prunable tensors first, in forward order
    entries, offset = [], 0
    for name, shape, prunable, cost, gate in rows:
        entries.append(Entry(name, shape, offset, prunable, cost, gate))
        offset += math.prod(shape)
    return Layout(tuple(entries))


def input_shape(model: str) -> tuple[int, int, int]:
    """[channels, height, width] of the model's images."""
    return TABLES[model][0]


def num_outputs(model: str) -> int:
    """Classes the model tells apart."""
    return TABLES[model][1][-1].outputs


def initial_weights(model: str, seed: int) -> Floats:
    """The initial flat vector [P + D], float32, a function of the seed alone."""
    layout, flat = make_layout(model), np.empty(make_layout(model).num_weights, np.float32)
    for index, layer in enumerate(TABLES[model][1]):
        rng = make_rng(seed, "init", step=index)
        for part, bound in (("weight", _bound(layer)), ("bias", 1 / math.sqrt(_fan_in(layer)))):
            entry = layout[f"{layer.name}.{part}"]
            flat[entry.span] = rng.uniform(-bound, bound, entry.size)
    return flat


def _fan_in(layer: Layer) -> int:
    return layer.inputs * layer.kernel**2


def _bound(layer: Layer) -> float:
    if layer.bound == "fan_in":
        return 1 / math.sqrt(_fan_in(layer))
    if layer.bound == "relu_in":
        return math.sqrt(6 / _fan_in(layer))
    if layer.bound == "relu_out":
        return math.sqrt(6 / (layer.outputs * layer.kernel**2))
    return math.sqrt(6 / ((1 + layer.bound**2) * _fan_in(layer)))


class FlatNet:
    """A model whose parameters are views of one flat vector: writing the vector is loading the
    model.

    Args:
        model: a name in `TABLES`.
        device: where the vector lies; images must lie there too.
    """

    def __init__(self, model: str, device: torch.device | str = "cpu") -> None:
        self.layout = make_layout(model)
        self.layers = TABLES[model][1]
        self.flat = torch.zeros(self.layout.num_weights, device=device)
        self.views = self.split(self.flat)
        self.parameters_by_name = {
            name: nn.Parameter(view) for name, view in zip(self._names(), self.views, strict=True)
        }

    def _names(self) -> list[str]:
        return [entry.name for entry in self.layout.entries]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector [P + D], shaped as the layout's tensors."""
        return [flat[e.span].view(e.shape) for e in self.layout.entries]

    def trainable(self) -> list[nn.Parameter]:
        """The parameters in layout order; they share memory with `flat`."""
        return list(self.parameters_by_name.values())

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width]."""
        x = _as_channels_last(images)
        last = self.layers[-1].name
        for layer in self.layers:
            weight = self.parameters_by_name[f"{layer.name}.weight"]
            bias = self.parameters_by_name[f"{layer.name}.bias"]
            if layer.kind == "conv":
                x = F.conv2d(x, weight, bias, padding=layer.kernel // 2)
                x = F.max_pool2d(x, 2) if layer.pool else x
            else:
                x = _affine(x.flatten(1), weight, bias)
            x = x if layer.name == last else F.relu(x)
        return x


def _as_channels_last(images: Tensor) -> Tensor:
    """The same images in the layout in which CPUs convolve and pool about twice as fast."""
    batch, channels, height, width = images.shape
    if channels == 1:  # both layouts are the same bytes; only these strides say which is meant
        return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))
    return images.contiguous(memory_format=torch.channels_last)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`; in evaluation on CPUs through oneDNN, about twice as fast as the BLAS."""
    if torch.is_inference_mode_enabled() and x.device.type == "cpu" and HAS_ONEDNN_LINEAR:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def loss_function(kind: Literal["bce", "cross_entropy"], logits: Tensor, labels: Tensor) -> Tensor:
    """Per-sample loss [B] of logits [B, classes] and integer labels [B] (spec section 1.3)."""
    if kind == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction="none")
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
