"""Layers: the tensors each has and how they start, and what it computes from them.

Layers are described at full width. Their axes say what the width methods cut, so
that the same description gives the flat layout, the initial weights and every narrower network.

Shapes: B batch, O output and I input units, H height, W width, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.fl.widths import Axis

HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)
NORM_EPSILON = 1e-5
NormUse = Literal["given", "tracked", "batch", "measured"]
WeightKind = Literal["linear", "conv", "embedding"]
NORM_MOMENTUM = {"given": 0.0, "tracked": 0.1, "measured": 1.0}  # of running mean and variance
DROPOUT_FRAC = 0.1


@dataclass(frozen=True, slots=True)
class Start:
    """How a tensor starts: uniform within +-`size`, normal of deviation `size`, or all `size`."""

    kind: Literal["uniform", "normal", "constant"]
    size: float

    def draw(self, rng: np.random.Generator, num_entries: int) -> Floats:
        """[num_entries] float32."""
        if self.kind == "constant":
            return np.full(num_entries, self.size, np.float32)
        if self.kind == "normal":
            return rng.normal(0.0, self.size, num_entries).astype(np.float32)
        return rng.uniform(-self.size, self.size, num_entries).astype(np.float32)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a layer.

    Attributes:
        part: `weight`, `bias`, `running_mean` or `running_var`.
        axes: its dimensions at full width.
        kernel: side of a convolution's window, the last two dimensions; 0 without one.
        prunable: whether masks of single weights may cut it.
        cost: kappa of one entry (docs/method.md#layer-costs).
        trainable: False for running statistics.
        kind: what a weight computes; None for other tensors.
    """

    part: str
    axes: tuple[Axis, ...]
    start: Start
    kernel: int = 0
    prunable: bool = False
    cost: float = 1.0
    trainable: bool = True
    kind: WeightKind | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer's name, its tensors, and its output units."""

    name: str
    tensors: tuple[TensorSpec, ...]
    out: Axis


def fan_in_start(fan_in: int) -> Start:
    """Return the default start of weights and biases of convolutions and linear layers."""
    return Start("uniform", 1 / math.sqrt(fan_in))


def kaiming_start(fan: int, slope: float = 0.0) -> Start:
    """Kaiming-uniform for a leaky ReLU of this slope."""
    return Start("uniform", math.sqrt(6 / ((1 + slope**2) * fan)))


def with_kaiming_convolutions(layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """Return layers of which the convolutions with the default start have Kaiming's for ReLU."""
    return tuple(
        replace(layer, tensors=tuple(_kaiming_if_default(tensor) for tensor in layer.tensors))
        for layer in layers
    )


def _kaiming_if_default(tensor: TensorSpec) -> TensorSpec:
    fan = tensor.axes[-1].units * tensor.axes[-1].inner
    if tensor.kind != "conv" or tensor.start != fan_in_start(fan):
        return tensor
    return replace(tensor, start=kaiming_start(fan))


def conv(
    name: str,
    into: Axis,
    out: Axis,
    kernel: int,
    start: Start,
    *,
    bias: bool = True,
    prunable: bool = True,
    cost: float = 1.0,
) -> LayerSpec:
    """Convolution [O, I, kernel, kernel]."""
    axes = (out, Axis(into.units, kernel**2, into.heads, into.cut))
    weight = TensorSpec("weight", axes, start, kernel, prunable, cost, kind="conv")
    biases = (TensorSpec("bias", (out,), fan_in_start(into.units * kernel**2)),) if bias else ()
    return LayerSpec(name, (weight, *biases), out)


def linear(
    name: str,
    into: Axis,
    out: Axis,
    start: Start | None = None,
    *,
    prunable: bool = True,
    cost: float = 1.0,
) -> LayerSpec:
    """Linear layer [O, I]; an input axis with `inner` is an image laid flat."""
    default = fan_in_start(into.units * into.inner)
    start = start or default
    weight = TensorSpec("weight", (out, into), start, 0, prunable, cost, kind="linear")
    return LayerSpec(name, (weight, TensorSpec("bias", (out,), default)), out)


def embedding(name: str, rows: int, out: Axis, *, cost: float = 1.0) -> LayerSpec:
    """Table [rows, O] of standard normals; every width keeps all rows."""
    axes = (Axis(rows, cut="whole"), out)
    start = Start("normal", 1.0)
    weight = TensorSpec("weight", axes, start, prunable=True, cost=cost, kind="embedding")
    return LayerSpec(name, (weight,), out)


def layer_norm(name: str, out: Axis) -> LayerSpec:
    """Weight and bias [O] of a layer norm."""
    parts = (("weight", 1.0), ("bias", 0.0))
    tensors = tuple(TensorSpec(part, (out,), Start("constant", size)) for part, size in parts)
    return LayerSpec(name, tensors, out)


def batch_norm(name: str, out: Axis) -> LayerSpec:
    """Weight, bias and running statistics [O] of a batch norm."""
    parts = (("running_mean", 0.0), ("running_var", 1.0))
    buffers = tuple(
        TensorSpec(part, (out,), Start("constant", size), trainable=False) for part, size in parts
    )
    return LayerSpec(name, layer_norm(name, out).tensors + buffers, out)


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward pass: what its layers compute.

    The scaler divides what a layer gives, before the norm that follows (Diao et al. 2021).

    Attributes:
        tensors: all tensors by name.
        training: whether dropout and the scaler are used.
        norms: what batch norms normalise by: the statistics that they have (`given`), or the
            batch's, which enter the running ones (`tracked`), become them (`measured`), or are
            forgotten (`batch`).
        generator: from which dropout draws; None for torch's own.
        shares: kept share of the output units by layer, by which the scaler divides; empty without.
    """

    tensors: Mapping[str, Tensor]
    training: bool
    generator: torch.Generator | None
    shares: Mapping[str, float]
    norms: NormUse = "given"

    def conv(self, name: str, x: Tensor, *, padding: int, stride: int = 1) -> Tensor:
        """Return [B, I, H, W] -> [B, O, H / stride, W / stride]."""
        weight, bias = self.tensors[name + ".weight"], self.tensors.get(name + ".bias")
        return self._scaled(name, F.conv2d(x, weight, bias, stride, padding))

    def pooled_relu(self, x: Tensor) -> Tensor:
        """ReLU of the greatest of every 2 x 2 pixels: [B, I, H, W] -> [B, I, H / 2, W / 2]."""
        return F.relu(F.max_pool2d(x, 2))

    def linear(self, name: str, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        weight, bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]
        return self._scaled(name, _affine(x, weight, bias))

    def embedding(self, name: str, rows: Tensor) -> Tensor:
        """int64 row numbers [...] -> [..., O]."""
        return self._scaled(name, F.embedding(rows, self.tensors[name + ".weight"]))

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        """[..., O] of mean 0 and variance 1 over O, then weighted and shifted."""
        weight, bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]
        return F.layer_norm(x, weight.shape, weight, bias, NORM_EPSILON)

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        """Return [B, O, H, W] normalised per channel by the batch, with its mean and unbiased
        variance as running statistics, or by given ones, a negative variance taken as 0.
        """
        weight, bias, mean, variance = (
            self.tensors[f"{name}.{part}"]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if self.norms == "batch":
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, NORM_EPSILON)
        if self.norms == "given":  # a server rule that adds changes can leave it below zero
            variance = variance.clamp_min(0)
        is_batch, momentum = self.norms != "given", NORM_MOMENTUM[self.norms]
        return F.batch_norm(x, mean, variance, weight, bias, is_batch, momentum, NORM_EPSILON)

    def dropout(self, x: Tensor) -> Tensor:
        """In training zeroes a share of the entries and divides the others by what is left."""
        if not self.training:
            return x
        kept_frac = 1 - DROPOUT_FRAC
        # drawn in one order, and with the same draws and factor where x is bf16
        kept = torch.empty(x.shape, device=x.device)
        kept.bernoulli_(kept_frac, generator=self.generator)
        return x * kept.div_(kept_frac)

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        return x / self.shares[name] if self.training and name in self.shares else x


def channels_last(images: Tensor) -> Tensor:
    """Return the same images in the layout in which CPUs convolve and pool about twice as fast."""
    batch, channels, height, width = images.shape
    if channels == 1:  # both layouts are the same bytes; only these strides say which is meant
        return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))
    return images.contiguous(memory_format=torch.channels_last)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`; in evaluation on CPUs through oneDNN, about twice as fast as the BLAS.

    Autocast knows `F.linear` alone, and rounds to bf16 what that is given.
    """
    is_exact = not torch.is_autocast_enabled("cpu")
    is_evaluation = torch.is_inference_mode_enabled() and x.device.type == "cpu"
    if is_evaluation and is_exact and HAS_ONEDNN_LINEAR:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)
