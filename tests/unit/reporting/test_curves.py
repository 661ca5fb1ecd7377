"""Curves over seeds, and the rules of their axes, from literals."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedgmr_hpc.reporting.curves import (
    Curve,
    accuracy_limits,
    accuracy_ticks,
    band,
    describe_band,
    draw_curves,
    is_far_apart,
    is_spaced_by_error,
    scale_accuracy,
    scale_cost,
)
from fedgmr_hpc.reporting.palette import styles_of


def ramp(*ends: float) -> Curve:
    return Curve([np.array([0.0, end]) for end in ends], [np.array([10.0, 60.0]) for _ in ends])


def test_a_band_covers_what_all_seeds_have() -> None:
    x = [np.array([0.0, 10.0]), np.array([0.0, 20.0])]
    y = [np.array([0.0, 10.0]), np.array([4.0, 4.0])]
    grid, mean, low, high = band(x, y, is_step=False)
    assert (grid[0], grid[-1]) == (0.0, 10.0)
    assert (mean[-1], low[-1], high[-1]) == (7.0, 4.0, 10.0)
    _, held, _, _ = band(x, y, is_step=True)
    assert held[-2] == 2.0  # 0 and 4 hold until the last step


def test_a_band_says_what_it_is() -> None:
    nothing = Curve([np.array([])], [np.array([])])
    assert describe_band([ramp(5.0), nothing]) == ""
    assert describe_band([ramp(5, 6, 7)]).endswith("band: least to greatest, of 3 seeds")
    assert describe_band([ramp(5, 6, 7), ramp(5)]).endswith("of 1 to 3 seeds")


def test_only_good_accuracies_are_spaced_by_their_error() -> None:
    assert is_spaced_by_error(94.7) and not is_spaced_by_error(61.0)
    assert accuracy_limits(20.0, 60.0) == pytest.approx((18.4, 61.6))
    assert accuracy_limits(0.2, 50.0)[0] == 0.0
    low, high = accuracy_limits(0.0, 99.0)  # errors 100 and 1, a factor of 10 ** 0.08 beyond
    assert (100 - high, 100 - low) == pytest.approx((10**-0.08, 100 * 10**0.08))
    assert accuracy_limits(0.0, 100.0)[1] < 100


def test_an_axis_of_accuracies_names_round_ones() -> None:
    assert accuracy_ticks(0.0, 94.8) == [0, 50, 80, 90, 95]
    assert accuracy_ticks(0.0, 97.4) == [0, 50, 80, 90, 95, 97]  # where the best ones lie
    assert accuracy_ticks(88.0, 94.9) == [88, 90, 92, 93, 94, 95]
    assert len(accuracy_ticks(90.1, 90.9)) >= 3
    assert accuracy_ticks(45.0, 85.0) == [50, 60, 70, 80, 85]


def test_distances_are_ratios_of_errors_and_the_label_says_so() -> None:
    axes = Figure().subplots()
    scale_accuracy(axes, [np.array([50.0, 95.0])], "test accuracy")
    assert axes.get_ylabel() == "test accuracy (%)\nlog scale of the error"
    y = [axes.transData.transform((0, accuracy))[1] for accuracy in (80, 90, 95)]
    assert y[1] - y[0] == pytest.approx(y[2] - y[1])
    scale_accuracy(axes, [np.array([10.0, 60.0]), np.array([np.nan])], "accuracy", along="x")
    assert axes.get_xlabel() == "accuracy (%)" and axes.get_xscale() == "linear"


def test_costs_far_apart_have_a_log_scale_that_the_label_names() -> None:
    assert is_far_apart([10.0, 100.0]) and not is_far_apart([10.0, 99.0, 0.0])
    axes = Figure().subplots()
    scale_cost(axes, [np.array([0.0, 5.0, 10.0]), np.array([0.0, 200.0])], "traffic (MB)")
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "traffic (MB), log scale"
    assert axes.get_xlim()[0] == 5.0
    axes = Figure().subplots()
    scale_cost(axes, [np.array([0.0, 3000.0])], "virtual time (s)")
    assert axes.get_xscale() == "linear" and axes.get_xlabel() == "virtual time (s)"


def test_a_method_has_the_same_look_in_two_figures() -> None:
    styles = styles_of(["fedgmr", "heterofl", "x"])
    looks = []
    for names in (["heterofl"], ["x", "fedgmr", "heterofl"]):
        axes = Figure().subplots()
        draw_curves(axes, {name: ramp(5, 6) for name in names}, styles)
        line = axes.lines[names.index("heterofl")]
        looks.append((line.get_color(), line.get_marker(), line.get_linestyle()))
        assert len(axes.collections) == len(names)  # a band each
    assert looks[0] == looks[1] == ("#009E73", "D", "-")


def test_a_method_without_values_is_left_out() -> None:
    axes = Figure().subplots()
    draw_curves(axes, {"x": Curve([np.array([])], [np.array([])])}, styles_of("x"))
    assert not axes.lines
