"""The rules that need nothing but the mean over the holders (docs/method.md#aggregation).

With weights a_i = sigma(age_i) n_i, n_i the samples an update was trained on, and m_x the mean
sum a_i w_ix / sum a_i over the clients i that hold x:

* `mask_aware` (MA): W_x <- m_x; an entry that no update holds keeps its value.
* `average` (FA): W_x <- sum a_i w_ix / sum a_i over all updates, absent entries counting as zero.
* `gradient` (GA): W_x <- W_x + sum over holders of a_i (w_ix - W_x) / sum a_i over all updates.
* `mix`: W <- rho m + (1 - rho) W. rho is the arrivals' share of all clients' staleness weights, or
  alpha times the arrivals' mean staleness weight (FedAsync, Xie et al. 2019, has one arrival).
* `fedbuff`: W_x <- W_x + eta sum over holders of a_i d_ix / sum n_i over all updates, where d_i is
  what client i changed since the version it was sent (Nguyen et al. 2022; with equal n_i that is
  eta / K times the sum of sigma_i d_i over the K buffered updates).

Shapes: U updates, n entries of a part.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgmr_hpc.config.choices.registry import register_aggregation
from fedgmr_hpc.config.records import Doubles
from fedgmr_hpc.fl.aggregation.rule import MeanRule, Merge, Part


@register_aggregation("mask_aware")
class MaskAware(MeanRule):
    """MA: the mean over the holders of an entry."""

    def step(self, old: Tensor, mean: Tensor, part: Part) -> None:
        """Keep the mean as it is."""

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return m."""
        return merge.mean(old, values, is_held)


@register_aggregation("average")
class Average(MeanRule):
    """FA: entries that an update does not hold count as zero."""

    keeps_missing = False

    def step(self, old: Tensor, mean: Tensor, part: Part) -> None:
        """Weaken the mean by the absent."""
        mean.mul_(part.share(part.merge.total))

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return sum a_i w_i / sum of all a_i."""
        return merge.sum(values, is_held) / merge.total


@register_aggregation("gradient")
class Gradient(MeanRule):
    """GA: entries that an update does not hold count as unchanged."""

    def step(self, old: Tensor, mean: Tensor, part: Part) -> None:
        """Go the holders' share of the way."""
        torch.lerp(old, mean, part.share(part.merge.total), out=mean)

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return W + sum a_i (w_i - W) / sum of all a_i."""
        return old + merge.sum(values - old, is_held) / merge.total


@register_aggregation("mix")
class Mix(MeanRule):
    """The mean over the holders, mixed into the old model."""

    mix_share: float | None = None

    def prepare(self, merge: Merge, numbers: dict[str, Any]) -> float:
        """Return rho."""
        arrived = sum(merge.arrived)
        if self.mix_share is None:
            return arrived / merge.all_staleness
        return self.mix_share * arrived / len(merge.arrived)

    def step(self, old: Tensor, mean: Tensor, part: Part) -> None:
        """Go rho of the way."""
        torch.lerp(old, mean, part.prepared, out=mean)

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return rho m + (1 - rho) W."""
        rho = self.prepare(merge, {})
        return rho * merge.mean(old, values, is_held) + (1 - rho) * old


@register_aggregation("fedbuff")
class FedBuff(MeanRule):
    """The mean change, added to the old model."""

    wants: ClassVar[Literal["weights", "changes"]] = "changes"
    steps_statistics = False  # sums of old changes would carry variances below 0
    server_learning_rate: float = 1.0

    def prepare(self, merge: Merge, numbers: dict[str, Any]) -> float:
        """Return sum n_i / eta, by which changes are divided."""
        return merge.num_samples / self.server_learning_rate

    def shares(self, merge: Merge, prepared: float) -> list[float]:
        """Return a_i eta / sum n_i."""
        return [weight / prepared for weight in merge.weights]

    def step(self, old: Tensor, mean: Tensor, part: Part) -> None:
        """Add the changes."""
        mean.mul_(part.share(part.prepared)).add_(old)

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return W + eta sum a_i d_i / sum n_i."""
        return old + merge.sum(values, is_held) / self.prepare(merge, {})
