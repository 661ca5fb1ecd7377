"""Student's test of a mean, as of paired differences, and what a number of pairs can show.

The test is two-sided at 5 %; power is that of the noncentral t distribution. Effects are in
standard deviations of one value (Cohen's d of pairs). `scipy` is imported where it is called.

Shapes: S values, one for each pair; M tests.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from fedgmr_hpc.reporting.statistics import LEVEL, student_interval

POWER = 0.8
SAME_FRAC = 1e-9  # of the mean: values that differ by no more are equal
MAX_PAIRS = 100  # beyond which no number of pairs is named


@dataclass(frozen=True)
class MeanTest:
    """The mean of S values and what it says of zero."""

    num_values: int
    mean: float
    sd: float  # NaN for one value
    interval: tuple[float, float] | None  # Student's, 95 %; None where there is no test
    p: float  # two-sided, of the mean being zero; NaN where there is no test

    @property
    def half(self) -> float:
        """Half the width of the interval; NaN without one."""
        return (self.interval[1] - self.interval[0]) / 2 if self.interval else math.nan


def mean_test(values: Sequence[float]) -> MeanTest | None:
    """Test the finite values of [S]; None without any.

    One value, or equal ones other than zero, are no test: without scatter, which a grid of times or
    few samples can hide, a t test would be certain of any mean. Zeros alone have p = 1.
    """
    known = np.array([value for value in values if math.isfinite(value)])
    num = known.size
    if not num:
        return None
    mean = float(known.mean())
    if num == 1:
        return MeanTest(1, mean, math.nan, None, math.nan)
    if np.ptp(known) <= SAME_FRAC * abs(mean):
        return MeanTest(num, mean, 0.0, *((None, math.nan) if mean else ((0.0, 0.0), 1.0)))
    from scipy import stats

    sd = float(known.std(ddof=1))
    p = 2 * float(stats.t.sf(abs(mean) / (sd / math.sqrt(num)), num - 1))
    return MeanTest(num, mean, sd, student_interval(known), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values [M] adjusted by Holm's step-down method; NaN ones count as no test."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, least = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[index] = least
    return adjusted


def power_of(effect: float, num: int) -> float:
    """Return how probably a test of `num` values finds an effect."""
    from scipy import stats

    limit, shift = stats.t.ppf(1 - LEVEL / 2, num - 1), abs(effect) * math.sqrt(num)
    far_tail = stats.nct.cdf(-limit, num - 1, shift)  # NaN where it is too small for SciPy
    return float(stats.nct.sf(limit, num - 1, shift) + np.nan_to_num(far_tail))


def num_needed(effect: float) -> int | None:
    """Return the fewest values with which an effect is found at POWER; None beyond MAX_PAIRS."""
    numbers = range(2, MAX_PAIRS + 1)
    place = bisect_left(numbers, POWER, key=lambda num: power_of(effect, num))
    return numbers[place] if place < len(numbers) else None


@cache
def smallest_effect(num: int) -> float:
    """Return the effect that `num` values, at least 2, find at POWER."""
    low, high = 0.0, 1.0
    while power_of(high, num) < POWER:
        low, high = high, 2 * high
    from scipy.optimize import brentq

    return float(brentq(lambda effect: power_of(effect, num) - POWER, low, high))
