"""Width slices: which entries of each tensor a narrower network keeps.

docs/method.md#width-methods has the methods.

A width method cuts every layer to a share of about sqrt(P) of its units, so that about a share P of
the entries is left: `width_prefix` keeps the first units (HeteroFL), `width_rolling` the units that
follow an offset which moves by one every round (FedRolex), and `ordered_dropout` the first units,
of which a local step may train fewer still (FjORD). What is kept is the ceiling of the share, as in
the public code of all three; units of attention heads are cut alike in every head, as HeteroFL
does, so there it is the ceiling of the share of a head's units.

The kept units of a density contain those of every smaller density at the same offset, so the masks
are nested, and what is kept is itself a network: its tensors in their own natural order are the
kept entries in natural order.

Shapes: P prunable entries, K kept entries, U units of an axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Cut = Literal["whole", "ceil"]
Levels = NDArray[np.unsignedinteger[Any]]  # 8 bits each where they suffice


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of a tensor, as the width methods see it.

    Attributes:
        units: what is kept or cut as one: channels, features, positions of a vocabulary.
        inner: entries of each unit along this dimension and those after it, up to the next axis;
            the 49 pixels of a channel at a flattened input, the 25 of a 5x5 kernel.
        heads: equal blocks of the units that are cut alike.
        cut: how many units (of each head) a share of the width keeps: all (`whole`) or its ceiling.
    """

    units: int
    inner: int = 1
    heads: int = 1
    cut: Cut = "ceil"


def kept_units(axis: Axis, density: float) -> int:
    """Return units of an axis that a sub-model of this density keeps, at least one (of every
    head).
    """
    if axis.cut == "whole":
        return axis.units
    share = math.sqrt(density) * (axis.units // axis.heads)
    return axis.heads * max(1, math.ceil(round(share, 9)))


def narrowed(axis: Axis, density: float) -> Axis:
    """Return the same dimension of the sub-model of this density."""
    return Axis(kept_units(axis, density), axis.inner, axis.heads, axis.cut)


def unit_levels(axis: Axis, densities: Sequence[float], offset: int) -> Levels:
    """Return [U] the first of the ascending densities that keeps each unit, len(densities) if
    none does.

    Args:
        offset: the unit with which the kept ones begin, modulo the units (of each head).
    """
    per_head = axis.units // axis.heads
    levels = np.full(per_head, len(densities), np.min_scalar_type(len(densities)))
    for level in range(len(densities) - 1, -1, -1):
        kept = kept_units(axis, densities[level]) // axis.heads
        levels[(np.arange(kept) + offset) % per_head] = level
    if axis.cut == "whole":
        levels[:] = 0
    return np.tile(levels, axis.heads)


def entry_levels(axes: Sequence[Axis], densities: Sequence[float], offset: int = 0) -> Levels:
    """Return the first of the ascending densities that keeps each entry of a tensor, in its order.

    A tensor without axes, or with whole ones only, is kept by every density.
    """
    levels = np.zeros(1, np.uint8)
    for axis in axes:
        own = np.repeat(unit_levels(axis, densities, offset), axis.inner)
        levels = np.maximum.outer(levels, own).reshape(-1)
    return levels


def inner_entries(
    tensors: Sequence[Sequence[Axis]], density: float, outer: float
) -> NDArray[np.int64]:
    """Return where in the flat vector of the network of density `outer` that of `density` lies.

    Args:
        tensors: axes of every tensor of the whole network, in the order of its flat vector.
        density: at most `outer`.
    """
    levels = np.concatenate([entry_levels(axes, (density, outer)) for axes in tensors])
    return np.flatnonzero(levels[levels < 2] == 0)
