"""Tables, figures, costs and states of studies, from literals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedgmr_hpc.results.series import own_accuracies
from fedgmr_hpc.study.cells import expand
from fedgmr_hpc.study.cost import Pace, cell_wall_s, remaining_s
from fedgmr_hpc.study.measures import Run
from fedgmr_hpc.study.report.figures import COURSES, band, draw
from fedgmr_hpc.study.report.page import write_report
from fedgmr_hpc.study.report.tables import (
    Scale,
    accuracy_table,
    cost_table,
    difference_table,
    own_tables,
)
from fedgmr_hpc.study.states import acquire_lock, read_state, write_error
from fedgmr_hpc.study.study_file import load_study

SCALE = Scale(at_s=20.0, last=1, targets=(0.5, 0.95), reference="a", command="redo")
TINY = {
    "title": "tiny <study>",
    "base": "digits",
    "matrix": {"method": ["fedgmr", "fedavg"], "seed": [0, 1]},
    "comparison_time_s": 10.0,
}


def make_run(row: str, seed: int, end: float) -> Run:
    times = np.array([0.0, 10.0, 20.0])
    return Run(
        row=row,
        column="high",
        seed=seed,
        name=f"{row}-s{seed}",
        times_s=times,
        test=np.array([0.1, 0.4, end]),
        val=np.array([0.1, 0.4, 1 - end]),
        own_mean=np.full(3, np.nan),
        own_worst=np.full(3, np.nan),
        bytes=times * 1e6,
        client_steps=times * 5,
        refresh_times_s=times,
        refresh_test=np.array([0.1, 0.4, end]),
        density_times_s=times,
        densities=np.array([0.2, 0.2, 0.5]),
        labels={"method": row},
    )


RUNS = [
    make_run("a", 0, 0.60),
    make_run("a", 1, 0.70),
    make_run("b", 0, 0.50),
    make_run("b", 1, 0.8),
]


def test_accuracies_have_mean_interval_and_number_of_seeds() -> None:
    table = accuracy_table(RUNS, SCALE)
    half = 12.706 * 0.05 * 100  # two values 10 points apart: standard error 5
    assert table.rows[0] == ["a", f"65.00 [60.00, 70.00] (t \u00b1{half:.2f}, n=2)"]
    assert table.num_seeds == "2 (0, 1)" and table.command == "redo"


def test_one_seed_has_no_interval_and_a_short_run_no_value() -> None:
    assert accuracy_table(RUNS[:1], SCALE).rows == [["a", "60.00 (n=1)"]]
    assert accuracy_table(RUNS[:1], replace(SCALE, at_s=31.0)).rows == [["a", "-"]]


def test_differences_are_paired_by_seed() -> None:
    table = difference_table(RUNS, SCALE)
    assert table is not None
    assert table.records[0]["mean"] == pytest.approx(0.0)  # -10 and +10
    assert (table.records[0]["min"], table.records[0]["max"]) == pytest.approx((-10.0, 10.0))
    assert difference_table(RUNS[2:], SCALE) is None


def test_costs_are_medians_and_say_what_was_not_reached() -> None:
    table = cost_table(RUNS, SCALE)
    assert table is not None
    assert table.rows[0] == ["high", "a", "2", "20", "20", "100", *["not reached"] * 3]
    assert table.records[-1]["median"] == math.inf


def test_times_to_an_accuracy_say_how_well_they_are_known() -> None:
    table = cost_table(RUNS, SCALE)
    assert table is not None
    assert table.heads[3:5] == ["virtual s (\u00b110) to 50.0%", "MB to 50.0%"]
    assert "every 10 s in every run: times are at most that much too late" in table.notes[1]
    rare = replace(make_run("c", 0, 0.9), times_s=np.array([0.0, 5.0, 700.0]))
    table = cost_table([*RUNS, rare], SCALE)
    assert table is not None and table.heads[3] == "virtual s to 50.0%"
    assert table.notes[1].startswith("NOT COMPARABLE below these steps")
    assert table.notes[1].endswith("at most so much too late: 10 s a, b; 695 s c.")


def test_a_band_covers_what_all_seeds_have() -> None:
    x = [np.array([0.0, 10.0]), np.array([0.0, 20.0])]
    y = [np.array([0.0, 10.0]), np.array([4.0, 4.0])]
    grid, mean, low, high = band(x, y, is_step=False)
    assert (grid[0], grid[-1]) == (0.0, 10.0)
    assert (mean[-1], low[-1], high[-1]) == (7.0, 4.0, 10.0)
    _, held, _, _ = band(x, y, is_step=True)
    assert held[-2] == 2.0  # 0 and 4 hold until the last step


def test_many_methods_make_several_figures_of_at_most_ten_lines() -> None:
    runs = [make_run(f"m{i}", 0, 0.5) for i in range(12)]
    figures = draw(runs, COURSES[0], at_s=20.0)
    labels = [[text.get_text() for text in f.legends[0].get_texts()] for f in figures]
    assert [len(each) for each in labels] == [10, 2]


def test_a_cell_costs_rounds_until_the_limit_that_comes_first() -> None:
    study, _ = load_study(TINY)
    cell = expand(study, ["run.max_rounds=100", "run.max_time_s=90.0"])[0]
    paces = {"fedgmr": Pace(wall_s=0.5, virtual_s=1.0)}
    assert cell_wall_s(cell.config, paces) == pytest.approx(4 + 45)
    assert cell_wall_s(cell.config, {"fedgmr": Pace(0.5, 0.1)}) == pytest.approx(4 + 50)
    assert remaining_s([(cell, 0.0)] * 3, paces, 2) == pytest.approx(73.5)
    assert remaining_s([(cell, 0.0)], paces, 2) == pytest.approx(49.0)
    assert math.isnan(remaining_s([(cell, 0.0)], {}, 2))


def test_states_follow_locks_and_errors(tmp_path: Path) -> None:
    study, words = load_study(TINY)
    cell = expand(study, words)[0]
    assert read_state(tmp_path, cell).status == "missing"
    lock = acquire_lock(tmp_path, cell)
    assert lock is not None and acquire_lock(tmp_path, cell) is None
    assert read_state(tmp_path, cell).status == "running"
    lock.release()
    write_error(tmp_path / f"{cell.name}.h5", "x\nfedgmr_hpc: error: too small\nlast\n", 2)
    state = read_state(tmp_path, cell)
    assert (state.status, state.error) == ("failed", "too small (exit code 2)")


def test_a_report_lists_what_is_missing(tmp_path: Path) -> None:
    study, words = load_study(TINY)
    cells = expand(study, words)
    write_error(tmp_path / f"{cells[1].name}.h5", "broken pipe\n", 1)
    text = write_report(study, cells, tmp_path, tmp_path / "report", lambda action: "redo")
    assert "0 of 4 cells finished" in text
    assert f"Not in the tables: {cells[0].name} (missing)" in text
    assert f"Not in the tables: {cells[1].name} (failed: broken pipe (exit code 1))" in text
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<h1>tiny &lt;study&gt;</h1>" in page and page.count("class=warn") == 4


def test_own_sub_models_have_tables_of_their_mean_and_their_worst() -> None:
    assert own_tables(RUNS, SCALE) == []
    cut = {"own_mean": np.array([0.1, 0.2, 0.4]), "own_worst": np.array([0.1, 0.1, 0.3])}
    mean, worst = own_tables([*RUNS[:2], replace(make_run("c", 0, 0.9), **cut)], SCALE)
    assert mean.rows == [["a", "-"], ["c", "40.00 (n=1)"]]
    assert worst.rows == [["a", "-"], ["c", "30.00 (n=1)"]]


def test_own_accuracies_weigh_classes_by_their_clients() -> None:
    """Versions 0 and 3 were cut to two classes, of 3 clients and 1."""
    rows = {
        "version": np.array([0, 0, 3, 3]),
        "num_clients": np.array([3, 1, 3, 1]),
        "test_accuracy": np.array([0.1, 0.5, 0.6, 0.2]),
    }
    mean, worst = own_accuracies(SimpleNamespace(submodels=rows), np.array([0, 2, 3, 3, 4]))
    np.testing.assert_allclose(mean, [0.2, math.nan, 0.5, 0.5, math.nan])
    np.testing.assert_allclose(worst, [0.1, math.nan, 0.2, 0.2, math.nan])
