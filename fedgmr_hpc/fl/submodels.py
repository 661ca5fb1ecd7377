"""Sub-models: one order of the prunable entries makes every mask (docs/method.md#masks).

* Importance (FMP): a refresh ranks the P prunable entries once: each layer's floor (its largest
  weights) first, ordered by |W| over the layer's maximum, then all others by score over layer cost,
  ties by index. The mask of density d is the first int(d P) of that order.
* Magnitude (FIARSE): each layer's int(d n_l) largest |W|.
* Widths (HeteroFL, FedRolex, FjORD): what a narrower network keeps, see widths.py.

All of them are nested, and the order itself is never made: every level's entries are selected, and
every increment is listed by position. That *packed order* is the space in which the server keeps
weights and in which values travel: every sub-model is a prefix of it, every IMS increment a slice,
and merging needs no positions.

Deviations from the released code (docs/method.md#deviations, 1, 2, 38): scores wg and g are really
computed, the first masks come from the initial model, each client has the threshold of its own
density.

Shapes: P prunable entries, K kept entries, L levels (distinct densities).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.records import Floats, Ints
from fedgmr_hpc.fl.widths import Axis, Levels, entry_levels

Keys = NDArray[np.uint32]
_MAX_BITS = np.uint32(0x7FFFFFFF)  # of a non-negative float; minus its bits, the class bit is 0
_ALL_BITS = np.uint32(0xFFFFFFFF)  # minus the bits of a float, the class bit is 1
_BLOCK = 1 << 18  # entries at a time


@dataclass(frozen=True, slots=True)
class PrunableLayer:
    """A prunable tensor's place among the P prunable entries, its cost of one entry (kappa), its
    dimensions as the width methods cut them, and whether its scores count relative to their mean
    outside the floor."""

    name: str
    start: int
    stop: int
    cost: float
    axes: tuple[Axis, ...] = ()
    is_relative: bool = False


@dataclass(frozen=True, slots=True)
class MaskSet:
    """The nested masks of one refresh.

    Attributes:
        mask_id: number of the refresh.
        densities: ascending distinct densities, one per level.
        counts: kept entries K of each level; those of a width are about its density's share.
        perm: natural position of each packed entry [P]; None when the orders are the same.
        size: P.
    """

    mask_id: int
    densities: tuple[float, ...]
    counts: tuple[int, ...]
    perm: Ints | None
    size: int

    def level(self, density: float) -> int:
        """Return index of a density that the set was cut for."""
        return self.densities.index(density)

    def increment(self, level: int) -> slice:
        """Return packed entries that `level` adds to the level below it."""
        return slice(self.counts[level - 1] if level else 0, self.counts[level])

    def positions(self, level: int) -> Ints:
        """Return ascending natural positions of an increment."""
        span = self.increment(level)
        if self.perm is None:
            return np.arange(span.start, span.stop, dtype=np.int32)
        return self.perm[span]

    def pack(self, natural: Floats) -> Floats:
        """Return [P] natural -> packed order (always a new array)."""
        packed: Floats = natural.copy()
        if self.perm is not None:
            for span in _blocks(self.size):
                np.take(natural, self.perm[span], out=packed[span], mode="clip")
        return packed

    def unpack(self, packed: Floats) -> Floats:
        """Return [P] packed -> natural order (always a new array)."""
        natural: Floats = packed.copy()
        if self.perm is not None:
            for span in _blocks(self.size):
                natural[self.perm[span]] = packed[span]
        return natural


def _blocks(size: int) -> Iterator[slice]:
    """Yield spans in turn: numpy widens the positions it indexes with, here only a block of
    them.
    """
    return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))


def read_masks(fields: Mapping[str, Any]) -> MaskSet:
    """Return a mask set from its fields by name, by way of JSON, which knows no tuples."""
    levels = {name: tuple(fields[name]) for name in ("densities", "counts")}
    return MaskSet(**{**fields, **levels})


def full_masks(size: int) -> MaskSet:
    """Return the mask set of methods that give every client the whole model."""
    return MaskSet(0, (1.0,), (size,), None, size)


def rank_entries(
    weights: Floats,
    scores: Floats,
    layers: Sequence[PrunableLayer],
    *,
    floor_frac: float,
) -> Keys:
    """Return the ranking as keys [P], natural order: a smaller key is more important, ties by
    index.

    A key is a class bit (0 in the floor) and the inverted bits of the rank value, since
    non-negative floats order like their bits.

    Args:
        weights: [P] current prunable weights, natural order; overwritten, its memory is returned.
        scores: [P] non-negative scores, natural order; may be `weights` itself, which ranks by |W|.
        layers: the tensors that make up the P entries.
        floor_frac: share rho of each layer that ranks before everything else.

    Raises:
        RunError: a weight or score is not finite.
    """
    keys = weights.view(np.uint32)
    for layer in layers:
        span = slice(layer.start, layer.stop)
        own = None if scores is weights else scores[span]
        size_of = np.abs(weights[span], out=weights[span])
        _check_finite(layer.name, size_of, own)
        _rank_layer(keys[span], size_of, own, layer, floor_frac)
    return keys


def _check_finite(name: str, size_of: Floats, scores: Floats | None) -> None:
    if not np.isfinite(size_of.max()) or (scores is not None and not np.isfinite(scores.max())):
        raise RunError(f"layer {name}: a weight or score is not finite", stage="merge")


def _rank_layer(
    keys: Keys,
    size_of: Floats,
    scores: Floats | None,
    layer: PrunableLayer,
    floor_frac: float,
) -> None:
    """Fill the keys of one layer [n_l]; they share the memory of `size_of`, which is |W|."""
    num_floor = len(size_of) - int(np.floor((1 - floor_frac) * len(size_of)))
    floor = _largest(size_of, num_floor)
    floor_values = size_of[floor] / (size_of.max() or np.float32(1))
    scores = size_of if scores is None else scores
    cost = layer.cost * (_mean_outside(scores, floor) if layer.is_relative else 1)
    np.divide(scores, np.float32(cost), out=size_of)
    np.subtract(_ALL_BITS, keys, out=keys)
    keys[floor] = _MAX_BITS - floor_values.view(np.uint32)


def _mean_outside(scores: Floats, floor: NDArray[np.int64]) -> float:
    """Return mean score of a layer's entries outside the floor, at least 1e-8."""
    num_others = len(scores) - len(floor)
    total = float(scores.sum(dtype=np.float64) - scores[floor].sum(dtype=np.float64))
    return max(total / max(num_others, 1), 1e-8)


def _largest(values: Floats, count: int) -> NDArray[np.int64]:
    """Return ascending indices of the `count` largest values, ties by index."""
    if not count:
        return np.empty(0, np.int64)
    ordered = values.copy()
    ordered.partition(len(values) - count)
    last = ordered[len(values) - count]
    del ordered
    found = np.flatnonzero(values >= last)
    num_over = len(found) - count
    ties = np.flatnonzero(values[found] == last)
    return np.delete(found, ties[len(ties) - num_over :])


def _below(keys: Keys, count: int, last: np.uint32) -> NDArray[np.bool_]:
    """Return which keys are the `count` smallest, ties by index; `last` is the largest of them."""
    is_first = keys <= last
    num_over = int(np.count_nonzero(is_first)) - count
    if num_over:
        is_first[np.flatnonzero(keys == last)[-num_over:]] = False
    return is_first


def cut_masks(keys: Keys, densities: Sequence[float], *, mask_id: int) -> MaskSet:
    """Return the nested masks of the given densities: level j keeps the int(d_j P) smallest keys.

    Selects the keys at the levels' ends and then lists each increment's entries in one pass, which
    is several times faster than sorting.

    Args:
        keys: [P] from `rank_entries`; their memory becomes the mask set's.
    """
    levels, size = tuple(sorted(set(densities))), len(keys)
    part = _select(keys, [int(density * size) for density in levels])
    return _make_masks(mask_id, levels, part, keys.view(np.int32))


def magnitude_masks(
    weights: Floats, layers: Sequence[PrunableLayer], densities: Sequence[float], *, mask_id: int
) -> MaskSet:
    """Return the nested masks that keep each layer's largest weights: int(d n_l), but at least one.

    Args:
        weights: [P] current prunable weights, natural order; overwritten, its memory is kept.
    """
    levels = tuple(sorted(set(densities)))
    keys = np.abs(weights, out=weights).view(np.uint32)
    np.subtract(_MAX_BITS, keys, out=keys)
    part = np.empty(len(keys), np.min_scalar_type(len(levels)))
    for layer in layers:
        size, span = layer.stop - layer.start, slice(layer.start, layer.stop)
        part[span] = _select(keys[span], [max(1, int(density * size)) for density in levels])
    return _make_masks(mask_id, levels, part, keys.view(np.int32))


def width_masks(
    layers: Sequence[PrunableLayer], densities: Sequence[float], *, offset: int, mask_id: int
) -> MaskSet:
    """Return the nested masks of narrower networks (widths.py); `offset` rolls them."""
    levels = tuple(sorted(set(densities)))
    part = np.concatenate([entry_levels(layer.axes, levels, offset) for layer in layers])
    return _make_masks(mask_id, levels, part, np.empty(len(part), np.int32))


def _select(keys: Keys, counts: Sequence[int]) -> Levels:
    """Return the first level whose `counts` smallest keys contain each entry, len(counts) if none
    does.
    """
    size = len(keys)
    part = np.full(size, len(counts), np.min_scalar_type(len(counts)))
    ends = sorted({count for count in counts if 0 < count < size})
    ordered = np.partition(keys, [end - 1 for end in ends]) if ends else keys
    lasts = {end: ordered[end - 1] for end in ends}
    del ordered
    for count in counts:
        if count == size:
            part -= part.dtype.type(1)
        elif count:
            part -= _below(keys, count, lasts[count])
    return part


def _make_masks(mask_id: int, levels: tuple[float, ...], part: Levels, perm: Ints) -> MaskSet:
    """Return the mask set in which entry i comes with level `part[i]`; `perm` [P] is memory to
    fill.
    """
    sizes = np.bincount(part, minlength=len(levels) + 1)
    counts = tuple(int(count) for count in sizes.cumsum()[: len(levels)])
    if counts[0] == len(part):
        return MaskSet(mask_id, levels, counts, None, len(part))
    return MaskSet(mask_id, levels, counts, _list_parts(part, counts, perm), len(part))


def _list_parts(part: Levels, counts: Sequence[int], perm: Ints) -> Ints:
    """Fill `perm` [P] with the positions of part 0, ascending, then those of part 1, ..."""
    begins = [0, *counts]
    for span in _blocks(len(part)):
        for index in range(len(begins)):
            found = np.flatnonzero(part[span] == index)
            found += span.start
            perm[begins[index] : begins[index] + len(found)] = found
            begins[index] += len(found)
    return perm


def repack(
    values: Floats, index: Ints | None, old: MaskSet, new: MaskSet
) -> tuple[Floats, Ints | None]:
    """Move a sub-model from one packed order to another.

    Args:
        values: [K] in the packed order of `old`, at `index` or, when that is None, at its first K
            entries.
        index: ascending packed positions [K], or None.

    Returns:
        The values in the packed order of `new` and their ascending packed positions (None for a
        prefix).
    """
    own = slice(0, len(values)) if index is None else index
    natural, is_held = np.zeros(new.size, np.float32), np.zeros(new.size, np.bool_)
    at = own if old.perm is None else old.perm[own]
    natural[at], is_held[at] = values, True
    target = np.flatnonzero(is_held if new.perm is None else is_held[new.perm]).astype(np.int32)
    moved: Floats = new.pack(natural)[target]
    is_prefix = not len(target) or int(target[-1]) == len(target) - 1
    return moved, None if is_prefix else target
