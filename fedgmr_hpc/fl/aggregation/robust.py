"""Rules that a few false updates cannot lead astray (docs/method.md#robust-rules).

They look at the values of the holders of an entry, all alike: staleness weights do not count.

* `median`: the middle value, or the mean of the middle two (Yin et al. 2018).
* `trimmed_mean`: the mean without the int(beta k) least and greatest of k values (Yin et al. 2018).
* `krum`: the mean of the updates with the closest neighbours (multi-Krum, Blanchard et al. 2017).

Shapes: U updates, n entries of a part.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgmr_hpc.config.choices.registry import register_aggregation
from fedgmr_hpc.config.records import Doubles
from fedgmr_hpc.fl.aggregation.rule import Merge, Part, WholeRule


def sort_held(values: Tensor, is_held: Tensor) -> tuple[Tensor, Tensor]:
    """Return each entry's values ascending [U, n], infinity behind the held ones, and how many
    these are [n].
    """
    ascending = torch.where(is_held, values, torch.inf).sort(dim=0).values
    return ascending, is_held.sum(0)


def mean_of_rows(rows: Tensor, counts: Tensor) -> Tensor:
    """Return each entry's mean [n] over those of its values [U, n] that count, 0 without any; exact
    where they agree.
    """
    mean, num = torch.zeros(rows.shape[1]), torch.zeros(rows.shape[1])
    for row, is_counted in zip(rows, counts, strict=True):
        num += is_counted
        mean = torch.where(is_counted, mean.lerp(row, 1 / num.clamp(min=1)), mean)
    return mean


def _alike(merge: Merge, chosen: Collection[int] | None = None) -> list[float]:
    """Return equal shares of the chosen updates, by index, None for all."""
    among = range(len(merge.entries)) if chosen is None else chosen
    return [(index in among) / len(among) for index in range(len(merge.entries))]


@register_aggregation("median")
class Median(WholeRule):
    """The median over the holders of an entry."""

    def shares(self, merge: Merge, prepared: None) -> list[float]:
        """Return equal shares."""
        return _alike(merge)

    def combine(self, old: Tensor, values: Tensor, is_held: Tensor, part: Part) -> Tensor:
        """Return the mean of the middle two, which are one for an odd number."""
        ascending, num = sort_held(values, is_held)
        low = ascending.gather(0, ((num - 1).clamp(min=0) // 2)[None])[0]
        high = ascending.gather(0, (num // 2).clamp(max=len(values) - 1)[None])[0]
        return low.lerp(high, 0.5)

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return the median of each entry."""
        new: Doubles = old.copy()
        for x in np.flatnonzero(is_held.any(0)):
            new[x] = np.median(values[is_held[:, x], x])
        return new


@register_aggregation("trimmed_mean")
class TrimmedMean(WholeRule):
    """The mean over the holders of an entry, without the least and the greatest."""

    trim_frac: float = 0.1

    def shares(self, merge: Merge, prepared: None) -> list[float]:
        """Return equal shares."""
        return _alike(merge)

    def combine(self, old: Tensor, values: Tensor, is_held: Tensor, part: Part) -> Tensor:
        """Return the mean of the values between."""
        ascending, num = sort_held(values, is_held)
        cut = (num.double() * self.trim_frac).long()
        rank = torch.arange(len(values))[:, None]
        return mean_of_rows(ascending, (rank >= cut) & (rank < num - cut))

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return the trimmed mean of each entry."""
        new: Doubles = old.copy()
        for x in np.flatnonzero(is_held.any(0)):
            ascending = np.sort(values[is_held[:, x], x])
            cut = int(self.trim_frac * len(ascending))
            new[x] = ascending[cut : len(ascending) - cut].mean()
        return new


@register_aggregation("krum")
class Krum(WholeRule):
    """The mean over the updates whose U - f - 2 nearest neighbours are closest.

    Two updates are as far apart as the root mean square of their difference in what both hold.
    """

    krum_faulty: int = 1
    krum_kept: int | None = None

    def prepare(self, merge: Merge, numbers: dict[str, Any]) -> list[int]:
        """Return the updates that count, by index."""
        return self._choose(_square_distances(merge))

    def _choose(self, distances: Doubles) -> list[int]:
        num = len(distances)
        num_near = max(1, num - self.krum_faulty - 2)
        scores = np.sort(distances, axis=1)[:, 1 : 1 + num_near].sum(1)  # the nearest is itself
        kept = self.krum_kept or num - self.krum_faulty
        best = np.argsort(scores, kind="stable")[: max(1, kept)]
        return sorted(best.tolist())

    def shares(self, merge: Merge, prepared: list[int]) -> list[float]:
        """Return equal shares of those that count."""
        return _alike(merge, prepared)

    def combine(self, old: Tensor, values: Tensor, is_held: Tensor, part: Part) -> Tensor:
        """Return the mean of those that count, the old value where they hold nothing."""
        chosen = is_held[part.prepared]
        mean = mean_of_rows(values[part.prepared], chosen)
        return torch.where(chosen.any(0), mean, old)

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return the mean of the updates chosen by these entries."""
        both = is_held[:, None] & is_held[None]
        squares = np.where(both, (values[:, None] - values[None]) ** 2, 0.0).sum(2)
        num_both = both.sum(2)
        apart = np.divide(squares, num_both, out=np.full_like(squares, np.inf), where=num_both > 0)
        np.fill_diagonal(apart, 0.0)
        chosen = self._choose(apart)
        mean, num = np.nansum(values[chosen], 0), is_held[chosen].sum(0)
        new: Doubles = np.divide(mean, num, out=old.copy(), where=num > 0)
        return new


def _square_distances(merge: Merge) -> Doubles:
    """Return the mean square difference of each two updates in what both hold [U, U]."""
    num = len(merge.entries)
    squares = torch.zeros(num, num, dtype=torch.float64)
    num_both = torch.zeros(num, num, dtype=torch.float64)
    for _, values, is_held in chain(merge.parts(), merge.dense_parts()):
        _add_squares(squares, num_both, values, is_held)
    squares, num_both = squares + squares.T, num_both + num_both.T
    apart = torch.where(num_both > 0, squares / num_both, torch.inf)
    return apart.fill_diagonal_(0.0).numpy()


def _add_squares(squares: Tensor, num_both: Tensor, values: Tensor, is_held: Tensor) -> None:
    """Add the squared differences of each update and the later ones in these entries, and how many
    both hold.
    """
    for first in range(len(values) - 1):
        later = slice(first + 1, None)
        both = is_held[later] & is_held[first]
        change = (values[later] - values[first]).mul_(both)
        squares[first, later] += change.square_().sum(1, dtype=torch.float64)
        num_both[first, later] += both.sum(1)
