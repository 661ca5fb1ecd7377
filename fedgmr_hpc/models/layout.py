"""The flat view of a model's tensors: which lies where in one float32 vector [P + D].

First come the P prunable entries, then the dense part of D entries; within each of the two the
trainable tensors come before the running statistics. Masks, frames and merges know only offsets.

For masks of single weights the dense part is what spec section 3.4 names: biases, norms with their
running statistics, some layers. A width method cuts every tensor that has a cut axis, so there all
of these are prunable, and the layout of a density below 1 is that of the narrower network itself:
its flat vector is the kept entries of the full one, in their order (spec section 7.3).

Shapes: P prunable entries, D dense entries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fedgmr_hpc.fl.widths import Axis, narrowed
from fedgmr_hpc.models.layers import LayerSpec, TensorSpec

Kind = Literal[
    "full", "importance", "magnitude", "width_prefix", "width_rolling", "ordered_dropout"
]
WIDTH_KINDS: tuple[Kind, ...] = ("width_prefix", "width_rolling", "ordered_dropout")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor's place in the flat vector.

    Attributes:
        cost: kappa of one entry (spec section 3.2).
        gated_by: the weight that gates this bias.
        trainable: False for running statistics.
        axes: its dimensions, as the width methods see them.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    prunable: bool
    cost: float
    gated_by: str | None = None
    trainable: bool = True
    axes: tuple[Axis, ...] = ()

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
        """P + D, running statistics included."""
        return sum(entry.size for entry in self.entries)

    @property
    def num_trainable(self) -> int:
        """The model's parameters: all but the running statistics."""
        return sum(entry.size for entry in self.trainable)

    @property
    def trainable(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.trainable)

    def __getitem__(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)

    def to_json(self) -> str:
        """What the result file says about the vector."""
        rows = [[e.name, list(e.shape), e.offset, e.prunable, e.trainable] for e in self.entries]
        columns = ["name", "shape", "offset", "prunable", "trainable"]
        return json.dumps({"columns": columns, "tensors": rows})


def lay_out(layers: Sequence[LayerSpec], kind: Kind, density: float) -> Layout:
    """The flat layout of these layers.

    Args:
        kind: how sub-models are cut.
        density: of the narrower network that is laid out; below 1 only for width kinds.

    Raises:
        ValueError: an unknown kind, or one without a network of that density.
    """
    _check(kind, density)
    rows = [(layer, tensor) for layer in layers for tensor in layer.tensors]
    rows.sort(key=lambda row: _place(row[1], kind))
    entries, offset = [], 0
    for layer, tensor in rows:
        entries.append(_entry(layer, tensor, kind, density, offset))
        offset += entries[-1].size
    return Layout(tuple(entries))


def _check(kind: str, density: float) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"submodel.kind: got {kind!r}, allowed {', '.join(get_args(Kind))}")
    allowed = "above 0 to 1" if kind in WIDTH_KINDS else f"1 with submodel.kind = {kind}"
    if not 0 < density <= 1 or (density < 1 and kind not in WIDTH_KINDS):
        raise ValueError(f"density: got {density}, allowed {allowed}")


def _place(tensor: TensorSpec, kind: Kind) -> tuple[bool, bool, bool]:
    """Prunable before dense, trainable before buffers, weights before biases."""
    return not _is_prunable(tensor, kind), not tensor.trainable, tensor.part == "bias"


def _is_prunable(tensor: TensorSpec, kind: Kind) -> bool:
    if kind in WIDTH_KINDS:
        return any(axis.cut != "whole" for axis in tensor.axes)
    return tensor.prunable


def _entry(layer: LayerSpec, tensor: TensorSpec, kind: Kind, density: float, offset: int) -> Entry:
    axes = tuple(narrowed(axis, density) for axis in tensor.axes)
    is_gated = tensor.part == "bias" and layer.tensors[0].prunable and kind not in WIDTH_KINDS
    return Entry(
        name=f"{layer.name}.{tensor.part}",
        shape=_shape(axes, tensor.kernel),
        offset=offset,
        prunable=_is_prunable(tensor, kind),
        cost=tensor.cost,
        gated_by=f"{layer.name}.weight" if is_gated else None,
        trainable=tensor.trainable,
        axes=axes,
    )


def _shape(axes: tuple[Axis, ...], kernel: int) -> tuple[int, ...]:
    if kernel:
        return (*(axis.units for axis in axes), kernel, kernel)
    return tuple(axis.units * axis.inner for axis in axes)
