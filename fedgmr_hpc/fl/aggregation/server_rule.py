"""The rule of a run, with what it keeps: what the coordinator merges by.

Shapes: U updates, P prunable entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.axes import AggregationConfig
from fedgmr_hpc.config.choices.registry import AGGREGATIONS
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
from fedgmr_hpc.fl.aggregation.state import RuleState
from fedgmr_hpc.fl.aggregation.threads import Threads
from fedgmr_hpc.fl.submodels import MaskSet


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
        self.rule = _make_rule(choices)
        self.state = RuleState(self.rule, *sizes)
        self._sizes, self._num_trained, self._threads = sizes, num_trained, threads

    def merge(
        self,
        weights: tuple[Floats, Floats],
        entries: Sequence[BufferEntry],
        masks: MaskSet,
        staleness: NDArray[np.float64],
        arrived: Sequence[float],
        all_staleness: float,
    ) -> Version:
        """Return the next version.

        Args:
            weights: [P] packed for `masks`, and [D].
            entries: updates in client order, packed for `masks`.
            staleness: [U] weight of each update by its age.
            arrived, all_staleness: see `Merge`.
        """
        what = Merge(
            *weights,
            entries,
            weights=[
                weight * entry.num_samples for weight, entry in zip(staleness, entries, strict=True)
            ],
            arrived=arrived,
            all_staleness=all_staleness,
            statistics=self._statistics(masks),
        )
        return merge(self.rule, what, self.state, self._threads)

    def _statistics(self, masks: MaskSet) -> tuple[NDArray[np.bool_] | None, ...]:
        """Return which entries of the two parts are running statistics, None for a part without."""
        (num_packed, num_dense), (packed, dense) = self._sizes, self._num_trained
        at = np.arange(num_packed) if masks.perm is None else masks.perm
        return (
            None if packed == num_packed else at >= packed,
            None if dense == num_dense else np.arange(num_dense) >= dense,
        )
