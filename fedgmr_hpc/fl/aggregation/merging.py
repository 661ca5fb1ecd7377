"""A merge: the current version and the updates in, the next version out.

A `MeanRule` steps from the mean over the holders of an entry, m_x = sum a_i w_ix / sum a_i, taken
in client order as a running weighted mean (each step a linear interpolation), which is exact where
all values agree or one client alone holds the entry.

All arrays are in the packed order of the current masks, where a sub-model is a prefix: in a chunk
the holders are constant between the clients' prefix ends, so no per-entry denominators are needed.
Updates of older masks come with explicit packed positions (`index`) and take the general path.

Deviations from the released code (docs/method.md#deviations, 3, 6, 14 to 17): the buffer is used,
an update is merged once, at its arrival, staleness is indexed by client and aged for all clients,
masks are explicit.

Shapes: U updates, P prunable entries, K kept entries, D dense entries, n entries of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgmr_hpc.config.choices.failures import check_state
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.messages import must
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.fl.aggregation.rule import (
    AggregationRule,
    BufferEntry,
    MeanRule,
    Merge,
    Part,
    Vectors,
    WholeRule,
)
from fedgmr_hpc.fl.aggregation.state import RuleState
from fedgmr_hpc.fl.threads import Threads

CHUNK = 1 << 16  # entries; the running mean stays in the second-level cache
Pairs = Sequence[tuple[BufferEntry, float]]


@dataclass(frozen=True, slots=True)
class Version:
    """What a merge makes.

    Attributes:
        packed: [P] prunable weights, packed order.
        dense: [D] dense part.
        shares: [U] what each update counted for.
    """

    packed: Floats
    dense: Floats
    shares: list[float]


def merge(
    rule: AggregationRule,
    what: Merge,
    state: RuleState | None = None,
    threads: Threads | None = None,
) -> Version:
    """Return the next version, in new arrays.

    Args:
        state: what the rule keeps, brought up to date in place; None for the first merge of a rule
            whose state is not looked at again.
        threads: share the chunks of a mean; None for this thread alone.

    Raises:
        RunError: the rule returns something else than it must, or keeps what cannot be saved.
    """
    state = state or RuleState(rule, len(what.packed), len(what.dense))
    prepared = rule.prepare(what, state.numbers)
    check_state(f"rule {type(rule).__name__}: numbers", state.numbers)
    shares = rule.shares(what, prepared)
    if isinstance(rule, WholeRule):
        return Version(*_Wholes(rule, what, state, prepared).merge(), shares)
    assert isinstance(rule, MeanRule)
    return Version(*_Means(rule, what, state, prepared).merge(threads or Threads()), shares)


@dataclass(frozen=True, slots=True)
class _Means:
    """A merge by a rule that steps from the mean."""

    rule: MeanRule
    what: Merge
    state: RuleState
    prepared: Any

    def merge(self, threads: Threads) -> tuple[Floats, Floats]:
        """Return the new arrays, prunable and dense."""
        packed = self.what.packed
        new = np.empty_like(packed)
        pairs = list(zip(self.what.entries, self.what.weights, strict=True))
        stop = len(packed)
        threads.map(
            lambda start: self._merge_chunk(new, start, min(start + CHUNK, stop), pairs),
            range(0, stop, CHUNK),
        )
        return new, self._merge_dense(pairs)

    def _merge_dense(self, pairs: Pairs) -> Floats:
        new, out = _like(self.what.dense)
        old, statistics = torch.from_numpy(self.what.dense), self.what.statistics[1]
        held = _running_mean(out, [(torch.from_numpy(e.dense), weight) for e, weight in pairs])
        self._step(old, out, held, self.state.dense_part(), statistics)
        return new

    def _step_packed(self, out: Tensor, span: slice, held: float | Tensor) -> None:
        """Step the entries of a span, whose mean over the holders is `out`."""
        old, statistics = torch.from_numpy(self.what.packed[span]), self.what.statistics[0]
        own = None if statistics is None else statistics[span]
        self._step(old, out, held, self.state.packed_part(span), own)

    def _merge_chunk(self, new: Floats, start: int, stop: int, pairs: Pairs) -> None:
        """Merge [start, stop): prefixes first, span by span, then the updates with an index."""
        out = torch.from_numpy(new)
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
            mean = out[span]
            held_here = _running_mean(mean, parts)
            if indexed:
                held[left - start : right - start] = held_here
            else:
                self._step_packed(mean, span, held_here)
            left = right
        if indexed:
            for entry, weight in indexed:
                _add_indexed(out[start:stop], held, start, entry, weight)
            self._step_packed(out[start:stop], slice(start, stop), held)

    def _step(
        self,
        old: Tensor,
        mean: Tensor,
        held: float | Tensor,
        vectors: Vectors,
        statistics: NDArray[np.bool_] | None,
    ) -> None:
        """Step from the mean over the holders to the new version, in place."""
        part = Part(self.what, held, self.prepared, vectors)
        if self.rule.steps_statistics or statistics is None:
            self._step_held(old, mean, part)
            return
        at = torch.from_numpy(statistics)
        means = torch.where(torch.as_tensor(held > 0), mean, old)[at]
        self._step_held(old, mean, part)
        mean[at] = means

    def _step_held(self, old: Tensor, mean: Tensor, part: Part) -> None:
        """Step entries that somebody holds; the others keep what they have."""
        held, vectors = part.held, part.vectors
        if not self.rule.keeps_missing or (isinstance(held, float) and held > 0):
            _write_over(self.rule, old, mean, part)
        elif isinstance(held, Tensor):
            missing = held == 0
            before = {name: vector[missing] for name, vector in vectors.items()}
            _write_over(self.rule, old, mean, part)
            _keep(missing, (old[missing], mean), *((before[n], vectors[n]) for n in vectors))
        else:
            mean.copy_(old)


def _write_over(rule: MeanRule, old: Tensor, mean: Tensor, part: Part) -> None:
    """Step from the mean to the new values, in place."""
    step: Callable[[Tensor, Tensor, Part], object] = rule.step
    returned = step(old, mean, part)
    if returned is not None:  # which would be lost
        _refuse(rule, "step", "write the new values over `mean` and return nothing", returned)


def _refuse(rule: AggregationRule, method: str, need: str, returned: object) -> NoReturn:
    found = f"a {type(returned).__name__}"
    if isinstance(returned, Tensor):
        found += f" of {list(returned.shape)}"
    raise RunError(must(f"`{method}` of {type(rule).__name__}", need, found=found), stage="merge")


def _keep(missing: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    """Put back what entries without a holder had before, in each pair of before and now."""
    for before, now in pairs:
        now[missing] = before


@dataclass(frozen=True, slots=True)
class _Wholes:
    """A merge by a rule that looks at all updates' values."""

    rule: WholeRule
    what: Merge
    state: RuleState
    prepared: Any

    def merge(self) -> tuple[Floats, Floats]:
        """Return the new arrays, prunable and dense."""
        what, weights = self.what, torch.tensor(self.what.weights).double()
        old, (new, out) = torch.from_numpy(what.packed), _like(what.packed)
        for span, values, is_held in what.parts():
            held = (is_held * weights[:, None]).sum(0)
            vectors = self.state.packed_part(span)
            out[span] = self._combine(old[span], values, is_held, held, vectors)
        old, (new_dense, out) = torch.from_numpy(what.dense), _like(what.dense)
        for span, values, is_held in what.dense_parts():
            vectors = self.state.dense_part(span)
            out[span] = self._combine(old[span], values, is_held, what.total, vectors)
        return new, new_dense

    def _combine(
        self,
        old: Tensor,
        values: Tensor,
        is_held: Tensor,
        held: float | Tensor,
        vectors: Vectors,
    ) -> Tensor:
        part = Part(self.what, held, self.prepared, vectors)
        missing = ~is_held.any(0)
        before = {name: vector[missing] for name, vector in vectors.items()}
        new: object = self.rule.combine(old, values, is_held, part)
        if not isinstance(new, Tensor) or new.shape != old.shape:
            _refuse(self.rule, "combine", f"return a tensor of {list(old.shape)}", new)
        if self.rule.keeps_missing:
            new = torch.where(missing, old, new)
            _keep(missing, *((before[name], vectors[name]) for name in vectors))
        return new


def _like(array: Floats) -> tuple[Floats, Tensor]:
    """Return a new array like another one, and its view as a tensor."""
    new = np.empty_like(array)
    return new, torch.from_numpy(new)


def _span_ends(prefixes: Pairs, start: int, stop: int) -> list[int]:
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
