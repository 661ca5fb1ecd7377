"""Tests of means, and what a number of pairs can show, against tables and integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from fedgmr_hpc.reporting.paired import (
    holm,
    mean_test,
    num_needed,
    power_of,
    smallest_effect,
)


def integrated_power(effect: float, num: int) -> float:
    """Average the normal power over the scatter of the sample's standard deviation."""
    freedom, shift = num - 1, effect * math.sqrt(num)
    limit = stats.t.ppf(0.975, freedom)

    def at(scale: float) -> float:  # of the true standard deviation
        tails = stats.norm.sf(limit * scale - shift) + stats.norm.cdf(-limit * scale - shift)
        return float(tails * stats.chi.pdf(scale * math.sqrt(freedom), freedom))

    return float(integrate.quad(at, 0, 12, limit=200)[0] * math.sqrt(freedom))


def test_three_values_have_students_interval_and_p() -> None:
    found = mean_test([1.0, 2.0, 3.0, math.nan])
    assert found is not None and (found.num_values, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    # with 2 degrees of freedom P(T > t) = (1 - t / sqrt(2 + t^2)) / 2, t = 2 sqrt(3)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))


@pytest.mark.parametrize("values", [[5.0, 5.0], [0.1 + 0.2, 0.3, 0.3]])
def test_equal_values_are_no_test(values: list[float]) -> None:
    """A t test would have p = 0 of two seeds that happen to agree; the last bit does not count."""
    found = mean_test(values)
    assert found is not None and (found.interval, found.sd) == (None, 0.0)
    assert found.mean == pytest.approx(values[0]) and math.isnan(found.p)


def test_zeros_alone_say_nothing_against_zero() -> None:
    found = mean_test([0.0, 0.0, 0.0])
    assert found is not None and (found.p, found.interval) == (1.0, (0.0, 0.0))


def test_one_value_has_no_interval_and_none_no_test() -> None:
    found = mean_test([4.0])
    assert found is not None and found.interval is None
    assert math.isnan(found.p) and math.isnan(found.half)
    assert mean_test([math.nan]) is None


def test_holm_steps_down_from_the_least_p() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert np.isnan(holm([0.01, math.nan])).tolist() == [False, True]
    assert holm([math.nan, 0.01])[1] == 0.01


@pytest.mark.parametrize(
    ("effect", "num"), [(0.3, 90), (0.5, 34), (0.8, 15), (1.0, 10), (0.2, None), (0.0, None)]
)
def test_numbers_are_those_of_published_tables(effect: float, num: int | None) -> None:
    """Of matched pairs, two-sided 5 %, power 80 % (Cohen 1988; 0.2 takes 199)."""
    assert num_needed(effect) == num == num_needed(-effect)


@pytest.mark.parametrize(("effect", "num"), [(0.4, 5), (1.5, 3), (2.0, 4), (0.6, 20), (3.0, 2)])
def test_power_is_that_of_an_integral(effect: float, num: int) -> None:
    assert power_of(effect, num) == pytest.approx(integrated_power(effect, num), abs=1e-6)


@pytest.mark.parametrize("num", [2, 3, 5, 10])
def test_the_smallest_effect_has_just_the_power(num: int) -> None:
    effect = smallest_effect(num)
    assert integrated_power(effect, num) == pytest.approx(0.8, abs=1e-4)
