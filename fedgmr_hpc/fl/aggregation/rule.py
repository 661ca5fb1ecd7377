"""What an aggregation rule is: how the updates of a merge become the next version.

A rule is a class of one of two kinds, registered under a name for `aggregation.rule`:

* `MeanRule`: the server takes the mean over the holders of each entry, and `step` goes from the old
  value to the new one. It costs no memory, however many updates there are.
* `WholeRule`: `combine` is given all updates' values of some entries, for what is no mean.

Its fields are its options. What it keeps from merge to merge belongs to the run: `vectors`, as long
as the model, and `numbers`. The server moves them along when masks are cut anew, saves them with a
checkpoint and repeats them in a replay; a rule has no other memory.

Shapes: U updates, P prunable entries, D dense entries, n entries of a part.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgmr_hpc.config.choices.section import Section
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.messages import must
from fedgmr_hpc.config.records import Doubles, Floats, Ints

WHOLE_CHUNK = 1 << 14  # entries of all updates at a time


@dataclass(frozen=True, slots=True)
class BufferEntry:
    """A delivered update: immutable copies, never references to training state.

    Attributes:
        client: who sent it.
        base_version: of the model that it was trained from.
        values: [K] trained prunable weights, packed order; changes for a rule that wants them.
        index: [K] ascending packed positions of `values`, None for the first K.
        dense: [D] its dense part, likewise.
        num_samples: n_i, the samples that its local steps took, steps times batch, or that its
            client holds (`aggregation.weigh_by`).
        mask_id: of the masks in whose packed order it is.
        density: of its mask.
        train_loss: mean loss of its local steps; NaN if unknown.
    """

    client: int
    base_version: int
    values: Floats
    index: Ints | None
    dense: Floats
    num_samples: int
    mask_id: int = 0
    density: float = 1.0
    train_loss: float = math.nan


@dataclass(frozen=True)
class Merge:
    """One merge, as a rule sees it.

    Attributes:
        packed: [P] current prunable weights, packed order.
        dense: [D] current dense part.
        entries: updates in client order.
        weights: a_i of each: its staleness weight times its samples, positive.
        arrived: staleness weights of the updates that are merged for the first time.
        all_staleness: sum of the staleness weights of all clients' last updates, and of other
            arrivals.
        statistics: which of the packed and of the dense entries are running statistics, None for
            none.
        version: the present one, into which the updates are merged.
    """

    packed: Floats
    dense: Floats
    entries: Sequence[BufferEntry]
    weights: Sequence[float]
    arrived: Sequence[float] = (1.0,)
    all_staleness: float = 1.0
    statistics: tuple[NDArray[np.bool_] | None, ...] = (None, None)
    version: int = 0

    @cached_property
    def ages(self) -> list[int]:
        """The age of each update [U] in versions, 1 for one trained on the present version."""
        return [self.version - entry.base_version + 1 for entry in self.entries]

    @cached_property
    def total(self) -> float:
        """Sum of all updates' weights."""
        return sum(self.weights)

    @cached_property
    def num_samples(self) -> int:
        """Sum of all updates' samples."""
        return sum(entry.num_samples for entry in self.entries)

    def sum(self, values: Doubles, is_held: NDArray[np.bool_]) -> Doubles:
        """Return the sum of a_i w_i over the holders of each entry [n], for closed forms.

        Args:
            values: [U, n].
            is_held: [U, n].
        """
        weights = np.array(self.weights)[:, None]
        total: Doubles = np.where(is_held, weights * values, 0.0).sum(0)
        return total

    def mean(self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_]) -> Doubles:
        """Return the mean over the holders of each entry [n], the old value without any, for closed
        forms.
        """
        total, held = self.sum(values, is_held), self.sum(np.ones_like(values), is_held)
        mean: Doubles = np.divide(total, held, out=old.copy(), where=held > 0)
        return mean

    def parts(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield stretches of the packed entries in turn, with what the updates hold of them: the
        values [U, n], 0 where there are none, and which of them are held [U, n]. Both are
        overwritten by the next.
        """
        size = min(WHOLE_CHUNK, max(1, len(self.packed)))
        values = torch.empty(len(self.entries), size)
        is_held = torch.empty(len(self.entries), size, dtype=torch.bool)
        for start in range(0, len(self.packed), size):
            num = min(size, len(self.packed) - start)
            own = values[:, :num].zero_(), is_held[:, :num].zero_()
            for row, entry in enumerate(self.entries):
                _fill(own[0][row], own[1][row], entry, start)
            yield slice(start, start + num), *own

    def dense_parts(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the same of the dense entries, which everybody holds."""
        for start in range(0, len(self.dense), WHOLE_CHUNK):
            span = slice(start, start + WHOLE_CHUNK)
            values = torch.from_numpy(np.stack([entry.dense[span] for entry in self.entries]))
            yield span, values, torch.ones_like(values, dtype=torch.bool)


def _fill(values: Tensor, is_held: Tensor, entry: BufferEntry, start: int) -> None:
    """Write what an update holds of the entries from `start` on, into [n] zeros."""
    stop = start + len(values)
    if entry.index is None:
        own = torch.from_numpy(entry.values)[start:stop]
        values[: len(own)], is_held[: len(own)] = own, True
        return
    low, high = np.searchsorted(entry.index, np.array((start, stop), entry.index.dtype))
    at = torch.from_numpy(entry.index[low:high]).long() - start
    values[at], is_held[at] = torch.from_numpy(entry.values[low:high]), True


class Vectors(Mapping[str, Tensor]):
    """A rule's vectors for some entries, by name. Each is changed in place: what else is put under
    its name would be lost.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        """Let `vectors[name] += x` end, which has changed the tensor in place.

        Raises:
            RunError: it is another tensor.
        """
        if self._tensors.get(name) is not tensor:
            because = "what is assigned to it is not kept"
            what = f"part.vectors[{name!r}]"
            raise RunError(must(what, "be changed in place", because=because), stage="merge")


@dataclass(frozen=True, slots=True)
class Part:
    """Some entries of a merge: what is known of them, besides their values.

    Attributes:
        merge: the whole merge.
        held: sum of the weights of those who hold an entry, 0 where nobody does; one value for all
            or [n].
        prepared: what `prepare` has returned.
        vectors: [n] the rule's own, by name; changed in place.
    """

    merge: Merge
    held: float | Tensor
    prepared: Any
    vectors: Vectors

    def share(self, total: float) -> float | Tensor:
        """Return the holders' share of a sum of weights, one value or [n]."""
        share = self.held / total
        return share.float() if isinstance(share, Tensor) else share


class AggregationRule(Section):
    """The base of both kinds of rule; see the module.

    Attributes:
        wants: what updates bring: trained weights, or the changes against the version sent, which
            running statistics are no part of where `steps_statistics` is false.
        vectors: names of its vectors [P + D], which begin at 0.
        numbers: its numbers, by name, as they begin; whatever JSON can hold.
        keeps_missing: whether an entry that no update holds keeps its value and its places in the
            vectors, which the server then sees to.
        steps_statistics: whether running statistics of batch norms are stepped like weights; false
            gives them the mean.
    """

    wants: ClassVar[Literal["weights", "changes"]] = "weights"
    vectors: ClassVar[tuple[str, ...]] = ()
    numbers: ClassVar[dict[str, Any]] = {}
    keeps_missing: ClassVar[bool] = True
    steps_statistics: ClassVar[bool] = True

    def prepare(self, merge: Merge, numbers: dict[str, Any]) -> Any:
        """Look at a merge before its entries are stepped; return what the steps need of it.

        Args:
            numbers: the rule's own, to be changed in place.
        """

    def shares(self, merge: Merge, prepared: Any) -> list[float]:
        """Return what each update counts for [U], as results show it."""
        return [weight / merge.total for weight in merge.weights]

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles | None:
        """Return the closed form of the first merge in float64, to be checked against; None for
        none.

        Args:
            old: [n].
            values: [U, n] of the updates, NaN where they hold nothing.
            is_held: [U, n].
        """
        return None


class MeanRule(AggregationRule):
    """A rule that steps from the mean over the holders of an entry."""

    @abstractmethod
    def step(self, old: Tensor, mean: Tensor, part: Part) -> None:
        """Write the new values over the mean, in place, and return nothing. Several threads may do
        so at once, for other entries (`run.server_threads`).

        Args:
            old: [n] current weights, not to be written to.
            mean: [n] over the holders, in client order; 0 without any.
        """


class WholeRule(AggregationRule):
    """A rule that looks at all updates' values of an entry."""

    @abstractmethod
    def combine(self, old: Tensor, values: Tensor, is_held: Tensor, part: Part) -> Tensor:
        """Return the new values [n].

        Args:
            old: [n] current weights, not to be written to.
            values: [U, n] of the updates in client order, 0 where they hold nothing.
            is_held: [U, n].
        """
