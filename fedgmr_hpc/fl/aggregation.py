"""Aggregation: how sub-models become the next version (docs/method.md#aggregation).

With weights a_i = sigma(age_i) n_i, n_i the samples an update was trained on, every rule is made
from the mean over the holders of an entry, m_x = sum a_i w_ix / sum a_i over the clients i that
hold x, taken in client order as a running weighted mean (each step a linear interpolation), which
is exact where all values agree or one client alone holds the entry.

* `mask_aware` (MA): W_x <- m_x; an entry that no update holds keeps its value.
* `average` (FA): W_x <- sum a_i w_ix / sum a_i over all updates, absent entries counting as zero.
* `gradient` (GA): W_x <- W_x + sum over holders of a_i (w_ix - W_x) / sum a_i over all updates.
* `mix`: W <- rho m + (1 - rho) W. rho is the arrivals' share of all clients' staleness weights, or
  alpha times the arrivals' mean staleness weight (FedAsync, Xie et al. 2019, has one arrival).
* `fedbuff`: W_x <- W_x + eta sum over holders of a_i d_ix / sum n_i over all updates, where d_i is
  what client i changed since the version it was sent (Nguyen et al. 2022; with equal n_i that is
  eta / K times the sum of sigma_i d_i over the K buffered updates).

All arrays are in the packed order of the current masks, where a sub-model is a prefix: in a chunk
the holders are constant between the clients' prefix ends, so no per-entry denominators are needed.
Updates of older masks come with explicit packed positions (`index`) and take the general path.

Deviations from the released code (docs/method.md#deviations, 3, 6, 14 to 17): the buffer is used,
an update is merged once, at its arrival, staleness is indexed by client and aged for all clients,
masks are explicit.

Shapes: P prunable entries, K kept entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgmr_hpc.config.axes import MergeRule
from fedgmr_hpc.config.records import Floats, Ints

CHUNK = 1 << 16  # entries; the running mean stays in the second-level cache


@dataclass(frozen=True, slots=True)
class BufferEntry:
    """A client's last delivered update: immutable copies, never references to training state."""

    client: int
    base_version: int
    values: Floats  # [K] packed; for `fedbuff` changes, as are those of the dense part
    index: Ints | None  # [K] ascending packed positions, None for the first K
    dense: Floats  # [D]
    num_samples: int
    mask_id: int = 0  # of the masks in whose packed order it is


def staleness_weight(age: int, *, rule: str, exponent: float, hinge_delay: float) -> float:
    """Return sigma(age), age >= 1 in versions; 1 means trained on the current version.

    poly: age^-exponent. hinge: 1 while age - 1 <= hinge_delay, then 1 / (exponent (age - 1 - delay)
        + 1).
    """
    if rule == "poly":
        return float(age**-exponent)
    if rule == "hinge" and age - 1 > hinge_delay:
        return 1.0 / (exponent * (age - 1 - hinge_delay) + 1.0)
    return 1.0


@dataclass(frozen=True, slots=True)
class Merging:
    """A rule with what it is scaled by.

    Attributes:
        total: sum of all updates' weights a_i; for `fedbuff` sum of all n_i over eta.
        rho: mixing share, used by `mix` only.
    """

    rule: MergeRule
    total: float
    rho: float = 1.0

    def finish(self, old: Tensor, mean: Tensor, held: float | Tensor) -> None:
        """Step from the mean over the holders to the new version, in place.

        Args:
            held: sum of the holders' weights, 0 where there are none; one value or [entries].
        """
        share = held / self.total
        share = share.float() if isinstance(share, Tensor) else share
        if self.rule == "average":
            mean.mul_(share)
        elif self.rule == "mix":
            torch.lerp(old, mean, self.rho, out=mean)
        elif self.rule == "gradient":
            torch.lerp(old, mean, share, out=mean)
        elif self.rule == "fedbuff":
            mean.mul_(share).add_(old)
        if self.rule in ("mask_aware", "mix"):
            _keep_missing(old, mean, held)


def _keep_missing(old: Tensor, mean: Tensor, held: float | Tensor) -> None:
    """Average over the holders of each entry; entries without a holder keep their value."""
    if isinstance(held, Tensor):
        missing = held == 0
        mean[missing] = old[missing]
    elif held == 0:
        mean.copy_(old)


def merge(
    packed: Floats,
    dense: Floats,
    entries: Sequence[BufferEntry],
    weights: Sequence[float],
    merging: Merging,
) -> tuple[Floats, Floats]:
    """Return the next version.

    Args:
        packed: [P] current prunable weights, packed order.
        dense: [D] current dense part.
        entries: updates in client order.
        weights: a_i of each entry, positive.

    Returns:
        New arrays (prunable [P] packed, dense [D]).
    """
    new, new_dense = np.empty_like(packed), np.empty_like(dense)
    pairs = list(zip(entries, weights, strict=True))
    for start in range(0, len(packed), CHUNK):
        _merge_chunk(packed, new, start, min(start + CHUNK, len(packed)), pairs, merging)
    parts = [(torch.from_numpy(entry.dense), weight) for entry, weight in pairs]
    old, out = torch.from_numpy(dense), torch.from_numpy(new_dense)
    merging.finish(old, out, _running_mean(out, parts))
    return new, new_dense


def _merge_chunk(
    packed: Floats,
    new: Floats,
    start: int,
    stop: int,
    pairs: Sequence[tuple[BufferEntry, float]],
    merging: Merging,
) -> None:
    """Merge [start, stop): prefixes first, span by span, then the updates with an index."""
    old, out = torch.from_numpy(packed), torch.from_numpy(new)
    prefixes = [(entry, weight) for entry, weight in pairs if entry.index is None]
    indexed = [(entry, weight) for entry, weight in pairs if entry.index is not None]
    held = torch.zeros(stop - start if indexed else 0, dtype=torch.float64)
    left = start
    for right in _span_ends(prefixes, start, stop):
        span = slice(left, right)
        parts = [
            (torch.from_numpy(entry.values)[span], weight)
            for entry, weight in prefixes
            if len(entry.values) >= right
        ]
        held_here = _running_mean(out[span], parts)
        if indexed:
            held[left - start : right - start] = held_here
        else:
            merging.finish(old[span], out[span], held_here)
        left = right
    if indexed:
        for entry, weight in indexed:
            _add_indexed(out[start:stop], held, start, entry, weight)
        merging.finish(old[start:stop], out[start:stop], held)


def _span_ends(prefixes: Sequence[tuple[BufferEntry, float]], start: int, stop: int) -> list[int]:
    """Return where, in (start, stop], the set of prefixes that hold an entry changes."""
    ends = {min(len(entry.values), stop) for entry, _ in prefixes} | {stop}
    return sorted(end for end in ends if end > start)


def _running_mean(new: Tensor, parts: Sequence[tuple[Tensor, float]]) -> float:
    """Put the weighted mean of `parts` into `new`, 0 without any; return the sum of the weights."""
    held = 0.0
    for part, weight in parts:
        held += weight
        if held == weight:
            new.copy_(part)
        else:
            new.lerp_(part, weight / held)
    if not parts:
        new.zero_()
    return held


def _add_indexed(mean: Tensor, held: Tensor, start: int, entry: BufferEntry, weight: float) -> None:
    """Add an update with explicit positions to the running mean of a chunk that begins at `start`.

    Args:
        mean: [chunk] running mean.
        held: [chunk] sum of the weights in it.
    """
    assert entry.index is not None
    ends = np.array((start, start + len(mean)), entry.index.dtype)  # another type copies the index
    low, high = np.searchsorted(entry.index, ends)
    at = torch.from_numpy(entry.index[low:high]).long() - start
    values = torch.from_numpy(entry.values[low:high])
    sums = held.index_select(0, at).add_(weight)
    held.index_copy_(0, at, sums)
    step = (weight / sums).float()  # 1 where no update held the entry, which makes it exact
    mean.index_copy_(0, at, torch.lerp(mean.index_select(0, at), values, step))
