"""The flat view of a model's tensors: which lies where in one float32 vector [P + D].

First come the P prunable entries, then the dense part of D entries; within each of the two the
trainable tensors come before the running statistics. Masks, frames and merges know only offsets.

The running statistics of static batch norms are no part of that: nobody trains, sends or merges
them. They lie behind it [S], where a whole model has them for evaluations and in the result file.

For masks of single weights the dense part (docs/method.md#prunable-weights) is biases, norms with
their running statistics, some layers. A width method cuts every tensor that has a cut axis, so
there all of these are prunable, and the layout of a density below 1 is that of the narrower network
itself: its flat vector is the kept entries of the full one, in their order.

Shapes: P prunable entries, D dense entries, S statistics of static batch norms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fedgmr_hpc.config.messages import must_be, unknown_choice
from fedgmr_hpc.fl.widths import Axis, narrowed
from fedgmr_hpc.models.layers import LayerSpec, TensorSpec, WeightKind

Kind = Literal[
    "full", "importance", "magnitude", "width_prefix", "width_rolling", "ordered_dropout"
]
BatchNorm = Literal["tracked", "static"]
WIDTH_KINDS: tuple[Kind, ...] = ("width_prefix", "width_rolling", "ordered_dropout")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor's place in the flat vector.

    Attributes:
        cost: kappa of one entry (docs/method.md#layer-costs).
        gated_by: the weight that gates this bias.
        trainable: False for running statistics.
        axes: its dimensions, as the width methods see them.
        kind: what a weight of a described layer computes; None for other tensors.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    prunable: bool
    cost: float
    gated_by: str | None = None
    trainable: bool = True
    axes: tuple[Axis, ...] = ()
    kind: WeightKind | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> slice:
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, shapes and offsets of the flat vector: prunable entries first, then the dense part.

    Attributes:
        entries: of the vector [P + D].
        statistics: of the S entries behind it.
        num_classes: for which a user's factory has made the model; None if it was not told.
    """

    entries: tuple[Entry, ...]
    statistics: tuple[Entry, ...] = ()
    num_classes: int | None = None

    @property
    def num_prunable(self) -> int:
        return sum(entry.size for entry in self.entries if entry.prunable)

    @property
    def prunable_spans(self) -> list[slice]:
        """Where the prunable tensors stand, in their order."""
        return [entry.span for entry in self.entries if entry.prunable]

    @property
    def num_weights(self) -> int:
        """P + D, running statistics included but for those of static batch norms."""
        return sum(entry.size for entry in self.entries)

    @property
    def num_statistics(self) -> int:
        """S."""
        return sum(entry.size for entry in self.statistics)

    @property
    def num_trainable(self) -> int:
        """The model's parameters: all but the running statistics."""
        return sum(entry.size for entry in self.trainable)

    @property
    def num_trained(self) -> tuple[int, int]:
        """How many of P and how many of D are trained, the first of each."""
        prunable = sum(entry.size for entry in self.trainable if entry.prunable)
        return prunable, self.num_trainable - prunable

    @property
    def trainable(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.trainable)

    def __getitem__(self, name: str) -> Entry:
        return next(e for e in (*self.entries, *self.statistics) if e.name == name)

    def to_json(self) -> str:
        """Return what the result file says about the vector [P + D + S]."""
        entries = (*self.entries, *self.statistics)
        rows = [[e.name, list(e.shape), e.offset, e.prunable, e.trainable] for e in entries]
        columns = ["name", "shape", "offset", "prunable", "trainable"]
        classes = {} if self.num_classes is None else {"num_classes": self.num_classes}
        return json.dumps({"columns": columns, "tensors": rows, **classes})


def lay_out(
    layers: Sequence[LayerSpec], kind: Kind, density: float, batch_norm: BatchNorm
) -> Layout:
    """Return the flat layout of these layers.

    Args:
        kind: how sub-models are cut.
        density: of the narrower network that is laid out; below 1 only for width kinds.
        batch_norm: whether running statistics are part of the vector or lie behind it.

    Raises:
        ValueError: an unknown kind, or one without a network of that density.
    """
    check_kind(kind, density)
    entries = [_entry(layer, tensor, kind, density) for layer in layers for tensor in layer.tensors]
    is_static = batch_norm == "static"
    return arrange(entries, {e.name for e in entries if is_static and not e.trainable})


def arrange(entries: Iterable[Entry], statistics: Container[str] = ()) -> Layout:
    """Give tensors in forward order their places.

    Prunable ones come before dense ones, trained ones before buffers, weights before biases.

    Args:
        entries: the tensors; their offsets are ignored.
        statistics: names of those that lie behind the vector.
    """
    order = sorted(entries, key=lambda entry: (entry.name in statistics, *_place(entry)))
    parts: tuple[list[Entry], list[Entry]] = ([], [])
    offset = 0
    for entry in order:
        parts[entry.name in statistics].append(replace(entry, offset=offset))
        offset += entry.size
    return Layout(tuple(parts[0]), tuple(parts[1]))


def check_kind(kind: str, density: float) -> None:
    """Refuse an unknown kind, or one without a network of that density."""
    if kind not in get_args(Kind):
        raise ValueError(unknown_choice("submodel.kind", kind, get_args(Kind)))
    if not 0 < density <= 1 or (density < 1 and kind not in WIDTH_KINDS):
        need = "more than 0 and at most 1" if kind in WIDTH_KINDS else "1"
        raise ValueError(must_be("density", need, density, when={"submodel.kind": kind}))


def _place(entry: Entry) -> tuple[bool, bool, bool]:
    is_bias = entry.name.rpartition(".")[2] == "bias"
    return not entry.prunable, not entry.trainable, is_bias


def _is_prunable(tensor: TensorSpec, kind: Kind) -> bool:
    if kind in WIDTH_KINDS:
        return any(axis.cut != "whole" for axis in tensor.axes)
    return tensor.prunable


def _entry(layer: LayerSpec, tensor: TensorSpec, kind: Kind, density: float) -> Entry:
    axes = tuple(narrowed(axis, density) for axis in tensor.axes)
    is_gated = tensor.part == "bias" and layer.tensors[0].prunable and kind not in WIDTH_KINDS
    return Entry(
        name=f"{layer.name}.{tensor.part}",
        shape=_shape(axes, tensor.kernel),
        offset=0,
        prunable=_is_prunable(tensor, kind),
        cost=tensor.cost,
        gated_by=f"{layer.name}.weight" if is_gated else None,
        trainable=tensor.trainable,
        axes=axes,
        kind=tensor.kind,
    )


def _shape(axes: tuple[Axis, ...], kernel: int) -> tuple[int, ...]:
    if kernel:
        return (*(axis.units for axis in axes), kernel, kernel)
    return tuple(axis.units * axis.inner for axis in axes)
