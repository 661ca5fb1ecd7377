"""Sub-models: one ranking of the prunable entries makes every mask (FMP, paper section 3; spec section 3).

A refresh ranks the P prunable entries once: each layer's floor (its largest weights) first, ordered by |W| over
the layer's maximum, then all others by score over layer cost, ties by index. The mask of density d is the first
int(d P) of that order, so masks are nested. `cut_masks` sorts each increment by position; the resulting *packed
order* is the space in which the server keeps weights and in which values travel: every sub-model is a prefix
of it, every IMS increment a slice, and merging needs no positions.

Deviation from the released code (spec section 11, items 1 and 14): scores wg and g are really computed, and the
first masks come from the initial model.

Shapes: P prunable entries, K kept entries, L levels (distinct densities).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.records import Floats, Ints, RunError

Keys = NDArray[np.uint64]
_MAX_BITS = np.uint32(0x7FFFFFFF)  # of a non-negative float; minus its bits, the class bit is 0
_ALL_BITS = np.uint32(0xFFFFFFFF)  # minus the bits of a float, the class bit is 1


@dataclass(frozen=True, slots=True)
class PrunableLayer:
    """A prunable tensor's place among the P prunable entries, and its cost of one entry (kappa)."""

    name: str
    start: int
    stop: int
    cost: float


@dataclass(frozen=True, slots=True)
class MaskSet:
    """The nested masks of one refresh.

    Attributes:
        mask_id: number of the refresh.
        densities: ascending distinct densities, one per level.
        counts: kept entries K of each level.
        perm: natural position of each packed entry [P]; None when the orders are the same.
        size: P.
    """

    mask_id: int
    densities: tuple[float, ...]
    counts: tuple[int, ...]
    perm: Ints | None
    size: int

    def level(self, density: float) -> int:
        """Index of a density that the set was cut for."""
        return self.densities.index(density)

    def increment(self, level: int) -> slice:
        """Packed entries that `level` adds to the level below it."""
        return slice(self.counts[level - 1] if level else 0, self.counts[level])

    def positions(self, level: int) -> Ints:
        """Ascending natural positions of an increment."""
        span = self.increment(level)
        if self.perm is None:
            return np.arange(span.start, span.stop, dtype=np.int32)
        return self.perm[span]

    def pack(self, natural: Floats) -> Floats:
        """[P] natural -> packed order (always a new array)."""
        return natural.copy() if self.perm is None else natural[self.perm]

    def unpack(self, packed: Floats) -> Floats:
        """[P] packed -> natural order (always a new array)."""
        if self.perm is None:
            return packed.copy()
        natural = np.empty_like(packed)
        natural[self.perm] = packed
        return natural


def full_masks(size: int) -> MaskSet:
    """The mask set of methods that give everybody the whole model."""
    return MaskSet(0, (1.0,), (size,), None, size)


def rank_entries(
    weights: Floats, scores: Floats, layers: Sequence[PrunableLayer], *, floor_frac: float
) -> Ints:
    """The order of importance: natural positions [P], most important first.

    Args:
        weights: [P] current prunable weights, natural order.
        scores: [P] non-negative scores, natural order.
        layers: the tensors that make up the P entries.
        floor_frac: share rho of each layer that ranks before everything else.

    Raises:
        RunError: a weight or score is not finite.
    """
    keys = np.empty(len(weights), np.uint64)
    for layer in layers:
        span = slice(layer.start, layer.stop)
        _rank_layer(keys[span], np.abs(weights[span]), scores[span], layer, floor_frac)
    keys.sort()
    return _positions(keys).astype(np.int32)


def _rank_layer(
    keys: Keys, size_of: Floats, scores: Floats, layer: PrunableLayer, floor_frac: float
) -> None:
    """Fills the ascending keys of one layer: class bit, inverted rank value, position."""
    largest = float(size_of.max())
    if not np.isfinite(largest) or not np.isfinite(scores.max()):
        raise RunError(f"layer {layer.name}: a weight or score is not finite", stage="merge")
    num_floor = len(size_of) - int(np.floor((1 - floor_frac) * len(size_of)))
    _fill_keys(keys, size_of / np.float32(largest or 1.0), layer.start, _MAX_BITS)
    floor = np.partition(keys, num_floor - 1)[:num_floor].copy() if num_floor else keys[:0]
    _fill_keys(keys, scores / np.float32(layer.cost), layer.start, _ALL_BITS)
    keys[_positions(floor).astype(np.int64) - layer.start] = floor


def _fill_keys(keys: Keys, values: Floats, start: int, top: np.uint32) -> None:
    """Non-negative floats order like their bits: one integer sort ranks them, ties by position."""
    halves = keys.view(np.uint32).reshape(-1, 2)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    halves[:, low] = np.arange(start, start + len(values), dtype=np.uint32)
    np.subtract(top, values.view(np.uint32), out=halves[:, high])


def _positions(keys: Keys) -> NDArray[np.uint32]:
    """The lower half of each key."""
    return keys.view(np.uint32)[0 if sys.byteorder == "little" else 1 :: 2]


def cut_masks(order: Ints, densities: Sequence[float], *, mask_id: int) -> MaskSet:
    """The nested masks of the given densities: level j keeps the first int(d_j P) entries of `order`."""
    levels = tuple(sorted(set(densities)))
    counts = tuple(int(density * len(order)) for density in levels)
    if counts[0] == len(order):
        return MaskSet(mask_id, levels, counts, None, len(order))
    perm = order.copy()
    for start, stop in zip((0, *counts), (*counts, len(order)), strict=True):
        perm[start:stop].sort()
    return MaskSet(mask_id, levels, counts, perm, len(order))


def repack(values: Floats, index: Ints | None, old: MaskSet, new: MaskSet) -> tuple[Floats, Ints | None]:
    """Moves a sub-model from one packed order to another.

    Args:
        values: [K] in the packed order of `old`, at `index` or, when that is None, at its first K entries.
        index: ascending packed positions [K], or None.

    Returns:
        The values in the packed order of `new` and their ascending packed positions (None for a prefix).
    """
    packed = np.arange(len(values), dtype=np.int32) if index is None else index
    natural = packed if old.perm is None else old.perm[packed]
    if new.perm is None:
        target = natural
    else:
        inverse = np.empty_like(new.perm)
        inverse[new.perm] = np.arange(new.size, dtype=np.int32)
        target = inverse[natural]
    keys = (target.astype(np.uint64) << np.uint64(32)) | np.arange(len(values), dtype=np.uint64)
    keys.sort()
    moved = values[_positions(keys).astype(np.int64)]
    target = (keys >> np.uint64(32)).astype(np.int32)
    is_prefix = not len(target) or int(target[-1]) == len(target) - 1
    return moved, None if is_prefix else target


def score_entries(kind: str, weights: Floats, previous: Floats | None, grad_squares: Floats | None) -> Floats:
    """FMP scores [P], natural order (spec section 3.1).

    Args:
        kind: `w` |W|; `wg` |(W - W at the previous refresh) W|; `g` summed squared client gradients.
        previous: [P] weights at the previous refresh, None at the first, which scores `w`.
        grad_squares: [P] sums since the previous refresh, None at the first, which scores `w`.
    """
    if kind == "wg" and previous is not None:
        return np.abs((weights - previous) * weights)
    if kind == "g" and grad_squares is not None:
        return grad_squares
    return np.abs(weights)
