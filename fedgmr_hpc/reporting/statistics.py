"""Statistics of runs and seeds: pure functions of arrays (spec section 11.2).

Shapes: E evaluations of one run, S seeds or pairs. Times are virtual seconds, accuracies 0 to 1.
A run that never reaches an accuracy takes an infinite time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
NUM_RESAMPLES = 10_000
LEVEL_FRAC = 0.95
FEW = 5  # up to so many values the t-interval is given too
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # 97.5 % of Student's t, by degrees


@dataclass(frozen=True)
class Summary:
    """The mean of S values; intervals are (low, high), None where there are too few values."""

    num_values: int
    mean: float
    minimum: float
    maximum: float
    bootstrap: tuple[float, float] | None  # None for one value
    student: tuple[float, float] | None  # for 2 to FEW values

    @property
    def widest(self) -> tuple[float, float] | None:
        """The bootstrap interval, widened to Student's t where a bootstrap is too narrow."""
        return widest(self.bootstrap, self.student)


def widest(*intervals: tuple[float, float] | None) -> tuple[float, float] | None:
    """What the known intervals span together; None for none."""
    known = [interval for interval in intervals if interval is not None]
    return (min(i[0] for i in known), max(i[1] for i in known)) if known else None


def summarize(values: Sequence[float], seed: int = 0) -> Summary | None:
    """Mean and intervals of finite values [S]; None for none."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not known.size:
        return None
    return Summary(
        num_values=known.size,
        mean=float(known.mean()),
        minimum=float(known.min()),
        maximum=float(known.max()),
        bootstrap=bootstrap_interval(known, seed),
        student=student_interval(known),
    )


def bootstrap_interval(
    values: Values, seed: int = 0, statistic: str = "mean"
) -> tuple[float, float] | None:
    """Percentile bootstrap of the mean or median of [S], NUM_RESAMPLES times; None for S < 2."""
    if len(values) < 2:
        return None
    picks = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    drawn = values[picks]
    centres = drawn.mean(axis=1) if statistic == "mean" else medians(drawn)
    tail = (1 - LEVEL_FRAC) / 2
    low, high = np.quantile(centres, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def student_interval(values: Values) -> tuple[float, float] | None:
    """Student's t interval of the mean, for 2 to FEW values."""
    if not 2 <= len(values) <= FEW:
        return None
    half = T_QUANTILES[len(values) - 1] * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def medians(rows: Values) -> Values:
    """Medians over the last axis; halfway between -inf and inf is 0, beside one of them it."""
    ordered = np.sort(rows, axis=-1)
    size = ordered.shape[-1]
    low, high = ordered[..., (size - 1) // 2], ordered[..., size // 2]
    with np.errstate(invalid="ignore"):
        middle = np.where(low == high, low, (low + high) / 2)
    return np.where(np.isnan(middle), 0.0, middle)


def mean_last(times_s: Values, values: Values, at_s: float, last: int) -> float:
    """The mean of the last `last` values [E] at or before `at_s`; NaN where there are fewer."""
    before = values[times_s <= at_s]
    return float(before[-last:].mean()) if len(before) >= last else math.nan


def std_last(times_s: Values, values: Values, at_s: float, window: int) -> float:
    """The standard deviation of the last `window` values at or before `at_s`; NaN for fewer."""
    before = values[times_s <= at_s]
    return float(before[-window:].std(ddof=1)) if len(before) >= window else math.nan


def moving_mean(values: Values, last: int) -> Values:
    """[E] mean of each value and the `last` - 1 before it; NaN until there are enough."""
    means = np.full(len(values), math.nan)
    if len(values) >= last:
        windows = np.lib.stride_tricks.sliding_window_view(values, last)
        means[last - 1 :] = windows.mean(axis=1)
    return means


def cost_to_reach(values: Values, costs: Values, target: float, last: int) -> float:
    """The cost [E] at the first evaluation whose moving mean reaches `target`; else infinite."""
    with np.errstate(invalid="ignore"):
        hits = np.flatnonzero(moving_mean(values, last) >= target)
    return float(costs[hits[0]]) if len(hits) else math.inf


def drop_from_best(times_s: Values, values: Values, at_s: float, last: int) -> float:
    """How far the last moving mean at or before `at_s` lies under the best one; NaN for too few."""
    means = moving_mean(values[times_s <= at_s], last)
    known = means[np.isfinite(means)]
    return float(known.max() - known[-1]) if known.size else math.nan


def window_around(times_s: Values, values: Values, at_s: float, num: int) -> tuple[float, float]:
    """Mean and standard deviation over `num` values before and after the first one past `at_s`
    (spec section 10.2); NaN where the run does not cover them.
    """
    after = np.flatnonzero(times_s > at_s)
    if not len(after) or after[0] < num or after[0] + num > len(values):
        return math.nan, math.nan
    window = values[after[0] - num : after[0] + num]
    return float(window.mean()), float(window.std())
