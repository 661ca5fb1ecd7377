"""Aggregation: how buffered sub-models become the next version (paper Algorithm 3; spec section 6).

With weights a_i = sigma(age_i) n_i, every rule is made from the mean over the holders of an entry,
m_x = sum a_i w_ix / sum a_i over the clients i that hold x, taken in client order as a running
weighted mean (each step a linear interpolation), which is exact where all values agree or one
client alone holds the entry.

* `mask_aware` (MA): W_x <- m_x; an entry that nobody holds keeps its value.
* `average` (FA): W_x <- sum a_i w_ix / sum a_i over all updates, absent entries counting as zero.
* `mix`: W <- rho m + (1 - rho) W, rho the arrivals' share of all clients' staleness weights.

All arrays are in the packed order of the current masks, where a sub-model is a prefix: in a chunk
the holders are constant between the clients' prefix ends, so no per-entry denominators are needed.
Updates of older masks come with explicit packed positions (`index`) and take the general path.

Deviations from the released code (spec section 11): the buffer is used (2), an update is merged
once, at its arrival (3), staleness is indexed by client (4) and aged for everybody (8), masks are
explicit (21).

Shapes: P prunable entries, K kept entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedgmr_hpc.records import Floats, Ints

Rule = Literal["mask_aware", "average", "mix"]
CHUNK = 1 << 16  # entries; the running mean stays in the second-level cache


@dataclass(frozen=True, slots=True)
class BufferEntry:
    """A client's last delivered update: immutable copies, never references to training state."""

    client: int
    base_version: int
    values: Floats  # [K] packed
    index: Ints | None  # [K] ascending packed positions, None for the first K
    dense: Floats  # [D]
    num_samples: int
    mask_id: int = 0  # of the masks in whose packed order it is


def staleness_weight(age: int, *, rule: str, exponent: float, hinge_delay: float) -> float:
    """sigma(age), age >= 1 in versions; 1 means trained on the current version (spec section 6).

    poly: age^-exponent. hinge: 1 while age - 1 <= hinge_delay, then 1 / (exponent (age - 1 - delay)
        + 1).
    """
    if rule == "poly":
        return float(age**-exponent)
    if rule == "hinge" and age - 1 > hinge_delay:
        return 1.0 / (exponent * (age - 1 - hinge_delay) + 1.0)
    return 1.0


def merge(
    packed: Floats,
    dense: Floats,
    entries: Sequence[BufferEntry],
    weights: Sequence[float],
    *,
    rule: Rule,
    rho: float = 1.0,
) -> tuple[Floats, Floats]:
    """The next version.

    Args:
        packed: [P] current prunable weights, packed order.
        dense: [D] current dense part.
        entries: updates in client order.
        weights: a_i of each entry, positive.
        rule: see the module.
        rho: mixing share, used by `mix` only.

    Returns:
        New arrays (prunable [P] packed, dense [D]).
    """
    new, new_dense = np.empty_like(packed), np.empty_like(dense)
    for start in range(0, len(packed), CHUNK):
        stop = min(start + CHUNK, len(packed))
        _merge_chunk(packed, new, start, stop, entries, weights, rule, rho)
    parts = [torch.from_numpy(entry.dense) for entry in entries]
    old, out = torch.from_numpy(dense), torch.from_numpy(new_dense)
    _merge_span(old, out, parts, weights, sum(weights), rule, rho)
    return new, new_dense


def _merge_chunk(
    packed: Floats,
    new: Floats,
    start: int,
    stop: int,
    entries: Sequence[BufferEntry],
    weights: Sequence[float],
    rule: Rule,
    rho: float,
) -> None:
    if any(entry.index is not None for entry in entries):
        new[start:stop] = packed[start:stop]
        _merge_indexed(new[start:stop], start, entries, weights, rule, rho)
        return
    total, source, target = sum(weights), torch.from_numpy(packed), torch.from_numpy(new)
    ends = {min(len(entry.values), stop) for entry in entries} | {stop}
    left = start
    for right in sorted(end for end in ends if end > start):
        held = [(e, a) for e, a in zip(entries, weights, strict=True) if len(e.values) >= right]
        parts = [torch.from_numpy(entry.values)[left:right] for entry, _ in held]
        kept = [weight for _, weight in held]
        span = slice(left, right)
        _merge_span(source[span], target[span], parts, kept, total, rule, rho)
        left = right


def _merge_span(
    old: Tensor,
    new: Tensor,
    parts: Sequence[Tensor],
    weights: Sequence[float],
    total: float,
    rule: Rule,
    rho: float,
) -> None:
    """Merges entries that all of `parts` hold into `new`, which serves as the running mean."""
    held = 0.0
    for part, weight in zip(parts, weights, strict=True):
        held += weight
        if held == weight:
            new.copy_(part)
        else:
            new.lerp_(part, weight / held)
    if rule == "average":
        new.mul_(held / total) if parts else new.zero_()
    elif not parts:
        new.copy_(old)
    elif rule == "mix":
        torch.lerp(old, new, rho, out=new)


def _merge_indexed(
    current: Floats,
    start: int,
    entries: Sequence[BufferEntry],
    weights: Sequence[float],
    rule: Rule,
    rho: float,
) -> None:
    """The general path: holders differ from entry to entry, so the weights held are a vector."""
    mean, held = np.zeros(len(current), np.float32), np.zeros(len(current))
    for entry, weight in zip(entries, weights, strict=True):
        at, values = _inside(entry, start, start + len(current))
        held[at] += weight
        step = (weight / held[at]).astype(np.float32)
        old = mean[at]
        mean[at] = np.where(step == 1, values, old + step * (values - old))
    covered = held > 0
    if rule == "average":
        current[:] = mean * (held / sum(weights)).astype(np.float32)
    elif rule == "mask_aware":
        current[covered] = mean[covered]
    else:
        current[covered] += np.float32(rho) * (mean[covered] - current[covered])


def _inside(entry: BufferEntry, start: int, stop: int) -> tuple[slice | Ints, Floats]:
    """Where an entry's values fall in a chunk, relative to its start, and those values."""
    if entry.index is None:
        end = max(start, min(stop, len(entry.values)))
        return slice(0, end - start), entry.values[start:end]
    low, high = np.searchsorted(entry.index, (start, stop))
    return entry.index[low:high] - np.int32(start), entry.values[low:high]
