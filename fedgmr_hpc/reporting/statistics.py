"""Statistics of runs and seeds, as pure functions of arrays (docs/method.md#reported-accuracy).

Times are virtual seconds, accuracies 0 to 1; a run that never reaches an accuracy takes an infinite
time. `scipy.stats` is imported where it is called: it takes longer to load than most commands run.

Shapes: E evaluations of one run, S seeds or pairs.
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
LEVEL = 0.05  # of every test
LEVEL_FRAC = 1 - LEVEL  # of every interval
FEW = 5  # for up to this many values Student's interval is given too
ROUNDING = 1e-12  # of a look's time, a multiple of the step


@dataclass(frozen=True)
class Summary:
    """The mean of S values; an interval is (low, high), None where there are too few values.

    Tests of a difference from zero, as of claims, are `paired.MeanTest`.
    """

    num_values: int
    mean: float
    minimum: float
    maximum: float
    bootstrap: tuple[float, float] | None  # None for one value
    student: tuple[float, float] | None  # for 2 to FEW values

    @property
    def widest(self) -> tuple[float, float] | None:
        """The bootstrap interval, widened to Student's where a bootstrap is too narrow."""
        return widest(self.bootstrap, self.student)

    @property
    def correlation_interval(self) -> tuple[float, float] | None:
        """The widest interval of the mean of correlations, which lie between -1 and 1."""
        return self.widest and (max(-1.0, self.widest[0]), min(1.0, self.widest[1]))


def widest(*intervals: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return what the known intervals span together; None without any."""
    known = [interval for interval in intervals if interval is not None]
    return (min(i[0] for i in known), max(i[1] for i in known)) if known else None


def summarize(values: Sequence[float], seed: int = 0) -> Summary | None:
    """Return mean and intervals of the finite values of [S]; None without any."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not known.size:
        return None
    return Summary(
        num_values=known.size,
        mean=float(known.mean()),
        minimum=float(known.min()),
        maximum=float(known.max()),
        bootstrap=bootstrap_interval(known, seed),
        student=student_interval(known) if known.size <= FEW else None,
    )


def bootstrap_interval(values: Values, seed: int = 0) -> tuple[float, float] | None:
    """Return the percentile bootstrap of the mean of [S]; None for S < 2.

    Too narrow for a few values, of which it is hardly more than the range: see `Summary.widest`.
    """
    if len(values) < 2:
        return None
    picks = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    centres = values[picks].mean(axis=1)
    tail = (1 - LEVEL_FRAC) / 2
    low, high = np.quantile(centres, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def student_interval(values: Values) -> tuple[float, float] | None:
    """Return Student's interval of the mean of [S]; None for S < 2."""
    if len(values) < 2:
        return None
    from scipy import stats

    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * error
    return mean - half, mean + half


def rank_correlation(x: Values | Sequence[float], y: Values | Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN where all values of one side are equal.

    Equal values share the mean of their ranks.
    """
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return math.nan
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic)


def medians(rows: Values) -> Values:
    """Return medians over the last axis; 0 halfway between -inf and inf, where NumPy has NaN."""
    ordered = np.sort(rows, axis=-1)
    size = ordered.shape[-1]
    low, high = ordered[..., (size - 1) // 2], ordered[..., size // 2]
    with np.errstate(invalid="ignore"):
        middle = np.where(low == high, low, (low + high) / 2)
    return np.where(np.isnan(middle), 0.0, middle)


def is_by(times_s: Values, at_s: float) -> Values:
    """Return [E] which times are at or before `at_s`, where 3 * 1.1 s is at 3.3 s."""
    return np.asarray(times_s <= at_s * (1 + ROUNDING))


def mean_last(times_s: Values, values: Values, at_s: float, last: int) -> float:
    """Return the mean of the last `last` values of [E] at or before `at_s`; NaN for fewer."""
    before = values[is_by(times_s, at_s)]
    return float(before[-last:].mean()) if len(before) >= last else math.nan


def std_last(times_s: Values, values: Values, at_s: float, window: int) -> float:
    """Return the standard deviation of the last `window` values at or before `at_s`, else NaN."""
    before = values[is_by(times_s, at_s)]
    return float(before[-window:].std(ddof=1)) if len(before) >= window else math.nan


def moving_mean(values: Values, last: int) -> Values:
    """Return [E] means of each value and the `last` - 1 before it; NaN until there are enough."""
    means = np.full(len(values), math.nan)
    if len(values) >= last:
        windows = np.lib.stride_tricks.sliding_window_view(values, last)
        means[last - 1 :] = windows.mean(axis=1)
    return means


def cost_to_reach(values: Values, costs: Values, target: float, last: int) -> float:
    """Return the cost of [E] when the moving mean first reaches `target`; infinite if never."""
    with np.errstate(invalid="ignore"):
        hits = np.flatnonzero(moving_mean(values, last) >= target)
    return float(costs[hits[0]]) if len(hits) else math.inf


def drop_from_best(times_s: Values, values: Values, at_s: float, last: int) -> float:
    """Return how far the last moving mean at or before `at_s` lies below the best one, else NaN."""
    means = moving_mean(values[is_by(times_s, at_s)], last)
    known = means[np.isfinite(means)]
    return float(known.max() - known[-1]) if known.size else math.nan


def window_around(times_s: Values, values: Values, at_s: float, num: int) -> tuple[float, float]:
    """Return mean and standard deviation over `num` values before and after the first past `at_s`.

    This is the number of the release (docs/method.md#reported-accuracy); NaN where the run does not
    cover it.
    """
    after = np.flatnonzero(~is_by(times_s, at_s))
    if not len(after) or after[0] < num or after[0] + num > len(values):
        return math.nan, math.nan
    window = values[after[0] - num : after[0] + num]
    return float(window.mean()), float(window.std())
