"""The feasibility study on hand-made series with a known answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgmr_hpc.experiments.feasibility import (
    Growth,
    Series,
    accuracy_edges,
    centred_mean,
    growth_rates,
    is_monotone,
    measure_growth,
    rank_trend,
    reach_times_s,
    series_of,
)
from fedgmr_hpc.experiments.feasibility_plot import plot_feasibility
from fedgmr_hpc.experiments.feasibility_report import (
    feasibility_report,
    interval_table,
    optimum_table,
    verdict,
)
from fedgmr_hpc.reporting.tables import as_csv


def line(density: float, seed: int, times: list[float], accuracy: list[float]) -> Series:
    return Series(density, seed, np.array(times), np.array(accuracy))


# the sparse model gains 0.4 in 10 s and stops there, the full one gains 0.2 every 10 s
SPARSE = line(0.1, 0, [0, 10, 40], [0.0, 0.4, 0.4])
FULL = line(1.0, 0, [0, 20, 40], [0.0, 0.4, 0.8])


def test_times_are_interpolated_and_falls_do_not_count():
    reached = reach_times_s(
        np.array([0.0, 10, 20, 30]), np.array([0.2, 0.4, 0.3, 0.8]), np.array([0.1, 0.3, 0.6, 0.9])
    )
    assert reached.tolist() == pytest.approx([0, 5, 25, np.inf])


def test_growth_is_width_over_time_and_0_where_a_run_does_not_get_through():
    rates = growth_rates(SPARSE.times_s, SPARSE.accuracy, np.array([0.0, 0.2, 0.4, 0.6, 0.8]))
    assert rates.tolist() == [pytest.approx(0.04), pytest.approx(0.04), 0, 0]


def test_mean_is_centred_and_shorter_at_the_ends():
    means = centred_mean(np.array([1.0, 2, 6, 10, 11]), 5)
    assert means.tolist() == [1, 3, 6, 9, 11]


def test_runs_that_get_no_better_have_no_edges():
    with pytest.raises(ValueError, match=r"results must have a run that gets better .*got '0\.1'"):
        accuracy_edges([np.array([0.1, 0.05])], 4)


def test_edges_go_from_the_latest_start_to_the_best_and_shrink_by_a_factor():
    edges, end = accuracy_edges([np.array([0.1, 0.5]), np.array([0.0, 0.9])], 4)
    assert (edges[0], edges[-1], end) == (
        pytest.approx(0.1), pytest.approx(0.9), pytest.approx(0.916))  # fmt: skip
    widths = np.diff(edges)
    assert widths[1:] / widths[:-1] == pytest.approx([(0.016 / 0.816) ** 0.25] * 3)


def test_the_axis_ends_at_the_best_mean_of_a_whole_window():
    lucky = centred_mean(np.array([0.0, 0.5, 0.5, 0.5, 0.5, 0.9]), 5)
    assert lucky.max() == 0.9
    assert accuracy_edges([lucky], 4, window=5)[0][-1] == pytest.approx(0.58)


def test_a_run_that_reaches_the_last_edge_gets_through_the_last_interval():
    start, best = 0.1361111111111111, 0.9
    edges, _ = accuracy_edges([np.array([start, best])], 10)
    assert (edges[0], edges[-1]) == (start, best)
    assert (growth_rates(np.array([0.0, 10]), np.array([start, best]), edges) > 0).all()


def test_sparse_is_best_until_it_stops_and_full_from_there():
    growth = measure_growth([FULL, SPARSE], num_intervals=6, window=1)
    assert growth.densities == (0.1, 1.0)
    passed = growth.edges[1:] <= 0.4
    assert 0 < passed.sum() < 6
    assert growth.optima() == [0.1 if each else 1.0 for each in passed]
    assert growth.rates[1, 0] == pytest.approx([0.02] * 6)
    assert is_monotone(growth.optima())


def make_growth(rates: list[list[list[float]]]) -> Growth:
    return Growth(np.array([0.0, 0.4, 0.6]), 0.8, (0.1, 1.0), (0, 1), np.array(rates))


def test_seeds_agree_with_the_optimum_of_the_means():
    growth = make_growth([[[3.0, 1.0], [1.0, 0.0]], [[1.0, 2.0], [2.0, 0.0]]])
    assert growth.optima() == [0.1, 1.0]  # means 2 and 1.5, then 0.5 and 1
    assert growth.num_agreeing() == [1, 1]
    assert growth.optima_of_seed(1) == [1.0, None]


def test_middles_are_geometric_in_what_is_left():
    growth = make_growth([[[1.0, 1.0]] * 2] * 2)
    left = 0.8 - growth.middles
    assert left == pytest.approx([np.sqrt(0.8 * 0.4), np.sqrt(0.4 * 0.2)])


def test_trend_counts_pairs():
    assert rank_trend([0.1, 0.5, 1.0]) == 1
    assert rank_trend([0.1, 0.1, None, 1.0]) == pytest.approx(2 / 3)
    assert rank_trend([0.5, 0.1, 1.0]) == pytest.approx(1 / 3)
    assert not is_monotone([0.5, 0.1, 1.0])


def test_tables_join_neighbours_and_keep_every_rate():
    growth = make_growth([[[3e-4, 2e-4]] * 2, [[1e-4, 1e-4]] * 2])
    assert optimum_table(growth).rows == [["0.1", "0.0 to 60.0", "2 of 2"]]
    table = interval_table(growth)
    assert table.rows[0] == ["0.0 to 40.0", "0.1", "2 of 2", "3.00", "1.00"]
    assert "0.4,0.6,1,1.0,0.0001" in as_csv(table).replace("np.float64", "")
    assert "stays the same" in verdict(growth)


def test_the_interval_of_a_few_seeds_is_students():
    taus = (1, -1, 1)  # of 2 intervals: mean 1/3, deviation 1.155, t 4.303: beyond -1 and 1
    falls = {1: [[1.0, 0.0], [0.0, 1.0]], -1: [[0.0, 1.0], [1.0, 0.0]]}
    rates = np.array([falls[tau] for tau in taus]).transpose(1, 0, 2)
    growth = Growth(np.array([0.0, 0.4, 0.6]), 0.8, (0.1, 1.0), (0, 1, 2), rates)
    assert "mean tau is 0.33 (95 % interval -1.00 to 1.00)" in verdict(growth)


def test_verdict_says_whether_the_optimum_rises():
    rising = make_growth([[[3.0, 1.0]] * 2, [[1.0, 2.0]] * 2])
    assert "rises and never falls (tau 1.00)" in verdict(rising)
    assert "never falls in 2 of 2; their mean tau is 1.00" in verdict(rising)
    falling = make_growth([[[1.0, 2.0]] * 2, [[3.0, 1.0]] * 2])
    assert "does not rise monotonically (tau -1.00)" in verdict(falling)


def test_picture_has_a_line_a_density_and_the_optima():
    figure = plot_feasibility(measure_growth([FULL, SPARSE], 6, 1), [FULL, SPARSE])
    courses, rates = figure.axes
    assert len(courses.lines) == 2 and len(rates.lines) == 3


class Ran:
    """What the study reads of a result."""

    path = Path("a.h5")

    def __init__(self, density: list[float], seed: int = 0, model: str = "conv2") -> None:
        self.config = {"seed": seed, "data": {"name": "digits"}, "model": {"name": model}}
        self.merges = {"density": np.array([density, density])}
        self.looks = {}
        self.evaluations = {
            "now_s": np.array([0.0, 10, 20]),
            "test_accuracy": np.array([0.1, np.nan, 0.5]),
        }


def test_series_leave_out_what_was_not_evaluated():
    series = series_of(Ran([0.2, 0.2], seed=4))
    assert (series.density, series.seed) == (0.2, 4)
    assert series.times_s.tolist() == [0, 20]


def test_runs_with_several_densities_or_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a.h5: density must be the same .*got 0.1 to 1"):
        series_of(Ran([0.1, 1.0]))
    with pytest.raises(ValueError, match="same in all results .got digits, conv2; digits, vgg11"):
        feasibility_report([Ran([1.0]), Ran([0.1], model="vgg11")], tmp_path)


def test_a_missing_or_doubled_run_is_named():
    with pytest.raises(ValueError, match="must have one run of density 0.1, seed 1 .got 0"):
        measure_growth([SPARSE, FULL, line(1.0, 1, [0, 1], [0, 1])])
    with pytest.raises(ValueError, match="must have one run of density 0.1, seed 0 .got 2"):
        measure_growth([SPARSE, SPARSE, FULL])


def test_report_writes_text_numbers_and_picture(tmp_path):
    text = feasibility_report([Ran([1.0]), Ran([0.1])], tmp_path, "redo")
    assert text.startswith("# Optimal density against accuracy: digits, conv2")
    assert {path.name for path in tmp_path.iterdir()} == {
        "feasibility.html", "feasibility.md", "feasibility.csv", "feasibility.png"}  # fmt: skip
