"""The rule of a run, with what it keeps: what the coordinator merges by.

Shapes: C clients, U updates, P prunable entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.axes import AggregationConfig
from fedgmr_hpc.config.choices.registry import AGGREGATIONS
from fedgmr_hpc.config.errors import DIVERGED, RunError
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.fl.aggregation.merging import Version, merge
from fedgmr_hpc.fl.aggregation.rule import (
    AggregationRule,
    BufferEntry,
    MeanRule,
    Merge,
    WholeRule,
)
from fedgmr_hpc.fl.aggregation.staleness import ages_of, staleness_weights
from fedgmr_hpc.fl.aggregation.state import RuleState
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.fl.threads import Threads


def _make_rule(choices: AggregationConfig) -> AggregationRule:
    """Make the rule that is chosen.

    Raises:
        ValueError: it is of neither kind.
    """
    rule: AggregationRule = AGGREGATIONS.make(choices.rule, choices)
    if not isinstance(rule, MeanRule | WholeRule):
        need = "a class derived from MeanRule or WholeRule"
        raise ValueError(must_be(f"aggregation.rule {choices.rule!r}", need))
    return rule


def _versions(entries: Sequence[BufferEntry]) -> list[int]:
    return [entry.base_version for entry in entries]


class ServerRule:
    """Makes versions by the rule that a configuration chooses.

    Args:
        sizes: P and D.
        num_trained: how many of these are trained; behind them come running statistics.
        threads: see `merge`.

    Attributes:
        state: what the rule keeps.
    """

    def __init__(
        self,
        choices: AggregationConfig,
        sizes: tuple[int, int],
        num_trained: tuple[int, int],
        threads: Threads | None = None,
    ) -> None:
        self.rule, self._choices = _make_rule(choices), choices
        self.state = RuleState(self.rule, *sizes)
        self._sizes, self._num_trained, self._threads = sizes, num_trained, threads

    def merge(
        self,
        weights: tuple[Floats, Floats],
        entries: Sequence[BufferEntry],
        arrived: Sequence[BufferEntry],
        masks: MaskSet,
        base_versions: NDArray[np.int64],
        version: int,
    ) -> Version:
        """Return the next version.

        Args:
            weights: [P] packed for `masks`, and [D].
            entries: updates in client order, packed for `masks`.
            arrived: those that are merged for the first time, in client order and a client's in
                the order of their arrival; they need not be packed for `masks`.
            base_versions: [C] of each client's last update, -1 without one.
            version: the present one.

        Raises:
            RunError: see `merging.merge`; or the rule of a plug-in has made NaN or infinity.
        """
        earlier = [a.base_version for a, b in pairwise(arrived) if a.client == b.client]
        sigma = partial(self._staleness, version)
        what = Merge(
            *weights,
            entries,
            weights=[
                weight * entry.num_samples
                for weight, entry in zip(sigma(_versions(entries)), entries, strict=True)
            ],
            arrived=sigma(_versions(arrived)).tolist(),
            all_staleness=float(sigma([*base_versions.tolist(), *earlier]).sum()),
            statistics=self._statistics(masks),
            version=version,
        )
        new = merge(self.rule, what, self.state, self._threads)
        if self._choices.rule in AGGREGATIONS.origins:
            self._check_finite(new, version)
        return new

    def _check_finite(self, new: Version, version: int) -> None:
        """Refuse what a plug-in's rule has made of finite values: no others come to a merge."""
        if not (np.isfinite(new.packed).all() and np.isfinite(new.dense).all()):
            who = f"aggregation.rule {self._choices.rule!r}"
            what = f"{who} has made a value that is not finite: it is at fault, or {DIVERGED}"
            raise RunError(what, version=version, stage="merge")

    def _staleness(self, version: int, base_versions: Sequence[int]) -> NDArray[np.float64]:
        """Return what updates of these versions weigh by their ages, 0 for version -1."""
        return staleness_weights(ages_of(np.array(base_versions), version), self._choices)

    def _statistics(self, masks: MaskSet) -> tuple[NDArray[np.bool_] | None, ...]:
        """Return which entries of the two parts are running statistics, None for a part without."""
        (num_packed, num_dense), (packed, dense) = self._sizes, self._num_trained
        at = np.arange(num_packed) if masks.perm is None else masks.perm
        return (
            None if packed == num_packed else at >= packed,
            None if dense == num_dense else np.arange(num_dense) >= dense,
        )
