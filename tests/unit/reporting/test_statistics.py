"""Statistics of studies, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedgmr_hpc.reporting.statistics import (
    bootstrap_interval,
    cost_to_reach,
    drop_from_best,
    is_by,
    mean_last,
    medians,
    moving_mean,
    rank_correlation,
    std_last,
    student_interval,
    summarize,
    window_around,
)

TIMES = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
VALUES = np.array([0.1, 0.4, 0.6, 0.5, 0.9])


def test_mean_of_the_last_two_at_or_before_the_time() -> None:
    assert mean_last(TIMES, VALUES, 30.0, 2) == pytest.approx(0.55)
    assert mean_last(TIMES, VALUES, 29.9, 2) == pytest.approx(0.5)


def test_too_few_evaluations_give_no_value() -> None:
    assert math.isnan(mean_last(TIMES, VALUES, 5.0, 2))
    assert math.isnan(std_last(TIMES, VALUES, 10.0, 3))


def test_standard_deviation_of_the_last_two() -> None:
    assert std_last(TIMES, VALUES, 20.0, 2) == pytest.approx(0.2 / math.sqrt(2))


def test_moving_mean_starts_with_a_full_window() -> None:
    assert np.isnan(moving_mean(VALUES, 2)[0])
    assert moving_mean(VALUES, 2)[1:] == pytest.approx([0.25, 0.5, 0.55, 0.7])
    assert np.isnan(moving_mean(VALUES, 6)).all()


def test_cost_is_that_of_the_first_window_at_the_target() -> None:
    assert cost_to_reach(VALUES, TIMES, 0.5, 2) == 20.0
    assert cost_to_reach(VALUES, TIMES * 7, 0.6, 2) == 280.0
    assert cost_to_reach(VALUES, TIMES, 0.5, 1) == 20.0
    assert cost_to_reach(VALUES, TIMES, 0.71, 2) == math.inf


def test_drop_is_from_the_best_moving_mean_up_to_the_time() -> None:
    values = np.array([0.2, 0.8, 0.8, 0.3, 0.9])
    assert drop_from_best(TIMES, values, 30.0, 2) == pytest.approx(0.25)
    assert drop_from_best(TIMES, values, 20.0, 2) == pytest.approx(0.0)


def test_release_window_lies_around_the_first_evaluation_past_the_time() -> None:
    assert window_around(TIMES, VALUES, 15.0, 1) == pytest.approx((0.5, 0.1))
    assert math.isnan(window_around(TIMES, VALUES, 35.0, 2)[0])
    assert math.isnan(window_around(TIMES, VALUES, 40.0, 1)[0])


def test_bootstrap_of_two_values_is_their_range() -> None:
    # a quarter of the resamples repeats either value, far more than 2.5 %
    assert bootstrap_interval(np.array([1.0, 3.0])) == (1.0, 3.0)


def test_bootstrap_is_seeded_and_narrows_with_the_number() -> None:
    values = np.tile([1.0, 3.0], 50)
    low, high = bootstrap_interval(values, seed=4) or (0.0, 0.0)
    assert (low, high) == bootstrap_interval(values, seed=4)
    assert 2 - 0.25 < low < 2 < high < 2 + 0.25  # 1.96 standard errors of 0.1


def test_bootstrap_of_one_value_is_none() -> None:
    assert bootstrap_interval(np.array([1.0])) is None


def test_summary_of_three_values() -> None:
    summary = summarize([1.0, 2.0, 3.0, math.nan])
    assert summary is not None
    assert (summary.num_values, summary.mean) == (3, 2.0)
    assert (summary.minimum, summary.maximum) == (1.0, 3.0)
    half = 4.302653 / math.sqrt(3)  # standard deviation 1, 97.5 % of t with 2 degrees of freedom
    assert summary.student == pytest.approx((2 - half, 2 + half))
    assert summary.bootstrap == (1.0, 3.0)  # each in 1 of 27, over 2.5 %
    assert summary.widest == summary.student
    near = summarize([-0.99, -0.95, -0.98])
    assert near is not None and near.correlation_interval == pytest.approx(
        (-1.0, -0.9216), abs=1e-4
    )


def test_six_values_have_no_student_interval_and_no_value_no_summary() -> None:
    summary = summarize([1.0] * 6)
    assert summary is not None and summary.student is None and summary.widest == (1.0, 1.0)
    assert summarize([math.nan]) is None


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([1.0, math.inf, 3.0], 3.0),
        ([1.0, math.inf], math.inf),
        ([math.inf, math.inf], math.inf),
        ([-math.inf, math.inf], 0.0),
        ([1.0, 4.0], 2.5),
    ],
)
def test_median_with_infinite_values(values: list[float], median: float) -> None:
    assert medians(np.array(values)) == median


@pytest.mark.parametrize(("number", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776)])
def test_student_intervals_are_those_of_the_tables(number: int, quantile: float) -> None:
    values = np.arange(float(number))
    low, high = student_interval(values) or (0.0, 0.0)
    half = quantile * values.std(ddof=1) / math.sqrt(number)
    assert (high - low) / 2 == pytest.approx(half, rel=2e-4)
    assert (high + low) / 2 == pytest.approx(values.mean())


def test_ranks_of_equal_values_are_shared() -> None:
    assert rank_correlation([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    # ranks 0, 1, 2 against 0.5, 0.5, 2: covariance 0.5, deviations sqrt(2/3) and sqrt(1/2)
    assert rank_correlation([1, 2, 3], [5, 5, 7]) == pytest.approx(math.sqrt(3) / 2)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [3, 3]), ([1], [2]), ([], [])])
def test_what_has_no_order_has_no_rank_correlation(x: list[float], y: list[float]) -> None:
    assert math.isnan(rank_correlation(x, y))


def test_a_look_at_the_time_counts_though_its_multiple_is_rounded() -> None:
    """The third look is at 3 * 1.1 s, which is 3.3000000000000003 s."""
    times, values = np.arange(4) * 1.1, np.array([0.1, 0.2, 0.9, 0.5])
    assert times[-1] > 3.3
    assert mean_last(times, values, 3.3, 1) == 0.5
    assert std_last(times, values, 3.3, 2) == pytest.approx(0.4 / math.sqrt(2))
    assert drop_from_best(times, values, 3.3, 1) == pytest.approx(0.4)
    assert math.isnan(window_around(times, values, 3.3, 1)[0])  # nothing is past it
    assert not is_by(times, 3.3 - 1e-9)[-1]
