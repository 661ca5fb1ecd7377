"""Tables, figures, costs and states of studies, from literals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import Field

from fedgmr_hpc.config.choices.registry import RESTORATIONS
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.fl.restoration.schedule import Schedule
from fedgmr_hpc.reporting.figures import style_of
from fedgmr_hpc.reporting.paired import mean_test
from fedgmr_hpc.results.labels import Rows
from fedgmr_hpc.results.series import Run, own_accuracies
from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.claims import ClaimResult
from fedgmr_hpc.study.cost import Pace, cell_wall_s, remaining_s
from fedgmr_hpc.study.labels import CAPTIONED
from fedgmr_hpc.study.locks import acquire_lock
from fedgmr_hpc.study.report import head, page
from fedgmr_hpc.study.report.accuracy_tables import (
    MARKED,
    NOT_TOLD,
    accuracy_table,
    best_rows,
    difference_table,
    own_table,
)
from fedgmr_hpc.study.report.claims_table import claims_table
from fedgmr_hpc.study.report.figures import draw, parts_of
from fedgmr_hpc.study.report.head import (
    commit_lines,
    data_lines,
    missing_lines,
    quarantine_lines,
    setting_of,
    settings_note,
)
from fedgmr_hpc.study.report.page import write_report
from fedgmr_hpc.study.report.tables import Scale, cost_table
from fedgmr_hpc.study.states import CellState, read_state, write_error
from fedgmr_hpc.study.study_file import load_study
from tests.registering import registered

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


def test_accuracies_have_mean_and_spread_and_fewer_seeds_are_told() -> None:
    runs = [*RUNS, make_run("c", 1, 0.3)]
    table = accuracy_table(runs, replace(SCALE, titles={"b": "Bee"}, setting="data x"))
    assert table.heads == ["method", "accuracy"]  # one condition is said in the caption
    assert table.rows == [  # two values 10 and 30 points apart
        ["a", "65.00 \u00b1 7.07"],
        ["Bee", "65.00 \u00b1 21.21"],
        ["c", "30.00 (1)"],
    ]
    assert [record["method"] for record in table.records] == ["a", "b", "c"]
    assert "standard deviation" in table.notes[0] and table.notes[-1] == "All runs: data x."
    assert table.num_seeds == "2 (0, 1)" and table.command == "redo"
    half = 12.706 * 5
    table = accuracy_table(RUNS, replace(SCALE, spread="interval"))
    assert table.rows[0] == ["a", f"65.00 \u00b1 {half:.2f}"] and "interval" in table.notes[0]


def test_one_seed_has_no_spread_and_no_mark_and_a_short_run_no_value() -> None:
    table = accuracy_table(RUNS[:1], SCALE)
    assert (table.rows, table.marked) == ([["a", "60.00"]], set())
    assert accuracy_table(RUNS[:1], replace(SCALE, at_s=31.0)).rows == [["a", "-"]]


def test_the_best_comes_before_what_its_seeds_cannot_tell_from_it() -> None:
    """Paired differences from the best: -1, -2 and -3 points, t = 3.46; -2, -2.1 and -2."""
    values = {
        "best": {0: 90.0, 1: 91.0, 2: 92.0},
        "near": {0: 89.0, 1: 89.0, 2: 89.0},  # 4.3 is Student's limit for three pairs
        "far": {0: 88.0, 1: 88.9, 2: 90.0},
        "two": {0: 89.0, 1: 99.5},  # not all seeds
    }
    assert best_rows(values) == ["best", "near"]
    assert best_rows({"a": {0: 9.0, 1: 9.0}, "b": {0: 8.0, 1: 8.0}}) == ["a", "b"]  # no scatter
    assert best_rows({"a": {0: 1.0}, "b": {0: 2.0}}) == []


def test_rows_of_other_seeds_are_not_compared_with_the_best() -> None:
    """As many seeds are not the same ones; one row alone is no best."""
    assert best_rows({"a": {0: 50.0, 1: 60.0}, "b": {1: 62.0, 2: 90.0}}) == []
    assert best_rows({"a": {0: 50.0, 1: 60.0}, "b": {1: 90.0}}) == []


def test_differences_are_paired_by_seed() -> None:
    table = difference_table(RUNS, SCALE)
    assert table is not None
    assert table.records[0]["mean"] == pytest.approx(0.0)  # -10 and +10
    half = 12.706 * 10  # -10 and +10: standard error 10
    assert table.rows == [["b", f"+0.00 \u00b1 {half:.2f}"]] and not table.marked
    assert difference_table(RUNS[2:], SCALE) is None


def test_costs_are_medians_and_say_what_was_not_reached() -> None:
    table = cost_table(RUNS, SCALE)
    assert table is not None
    assert table.rows[0] == ["a", "2", "20", "20", "100", *["not reached"] * 3]
    assert table.records[-1]["median"] == math.inf


def test_small_costs_keep_their_digits() -> None:
    small = [replace(run, bytes=run.bytes * 0.01234) for run in RUNS]
    table = cost_table(small, SCALE)
    assert table is not None and table.rows[0][3] == "0.247"


def test_tables_say_which_times_their_seconds_are() -> None:
    unscaled = replace(SCALE, time="unscaled time")
    costs = cost_table(RUNS, unscaled)
    assert accuracy_table(RUNS, unscaled).title == "Test accuracy (%) at T = 20 s of unscaled time"
    assert costs is not None and "s: seconds of unscaled time;" in costs.notes[0]
    assert (SCALE.seconds, unscaled.seconds) == ("virtual s", "unscaled s")


def test_times_to_an_accuracy_say_how_well_they_are_known() -> None:
    table = cost_table(RUNS, SCALE)
    assert table is not None
    assert table.heads[2:4] == ["s to 50 %", "MB to 50 %"]
    assert "every 10 s in every run: times are at most that much too late" in table.notes[1]
    rare = replace(make_run("c", 0, 0.9), times_s=np.array([0.0, 5.0, 700.0]))
    table = cost_table([*RUNS, rare], SCALE)
    assert table is not None
    assert table.notes[1].startswith("NOT COMPARABLE below these steps")
    assert table.notes[1].endswith("at most that much too late: 10 s a, b; 695 s c.")


def test_a_study_has_a_panel_a_condition_and_draws_the_comparison_time() -> None:
    runs = [replace(run, column=column) for run in RUNS for column in ("high", "low")]
    with style_of("page"):
        drawings = {each.stem: each.figure for each in draw(runs, Rows.of(runs, 20.0), "a")}
    assert list(drawings) == [
        *("accuracy_vs_time", "accuracy_vs_bytes", "accuracy_vs_steps", "density_vs_time")
    ]
    for figure in drawings.values():
        assert [axes.get_title() for axes in figure.axes] == ["high", "low"]
        title = figure.legends[0].get_title().get_text()
        assert title == "line: mean, band: least to greatest, of 2 seeds"
    names = [text.get_text() for text in drawings["accuracy_vs_time"].legends[0].get_texts()]
    assert names == ["a", "b", "compared at T = 20 s"]  # both 65 %: in the study's order
    assert drawings["accuracy_vs_bytes"].axes[0].get_xlabel() == "server's traffic,\nboth ways (MB)"


def test_figures_of_many_methods_are_parted_by_what_they_are_to_the_reference() -> None:
    baselines = ["fedavg", "fedasync", "fedasync_seq", "fedbuff", "heterofl", "fjord"]
    variants = ["wo_gmr", "gmr_fa", "fedgmr_timed", "ga"]
    rows = [*baselines, *variants, "fedgmr", "heterofl+aux+gmr"]
    runs = [make_run(row, 0, 0.5) for row in rows]
    assert parts_of(runs, rows, "fedgmr") == {
        "other methods": [*baselines, "fedgmr"],
        "variants": [*variants, "fedgmr"],
        "wrapped methods": ["heterofl", "fedgmr", "heterofl+aux+gmr"],
    }
    assert parts_of(runs[:10], rows[:10], None) == {"": rows[:10]}
    many = [f"mine{i}" for i in range(12)]
    parts = parts_of([make_run(row, 0, 0.5) for row in many], many, None)
    assert parts == {"other methods 1": many[:9], "other methods 2": many[9:]}


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


def test_a_report_of_nothing_does_not_take_the_place_of_another(tmp_path: Path) -> None:
    study, words = load_study(TINY)
    where = expand(study, words), tmp_path, tmp_path / "report"
    for _ in range(2):  # a report of nothing may follow another one
        write_report(study, *where, lambda action: "redo")
    (tmp_path / "report" / "report.md").write_text("of others")
    (tmp_path / "report" / "tables" / "test_accuracy.csv").write_text("of others")
    with pytest.raises(RunError, match=r"none of 4 cells has ended, so .*report\.md stays"):
        write_report(study, *where, lambda action: "redo")
    assert (tmp_path / "report" / "report.md").read_text() == "of others"


def test_a_report_lists_what_is_missing(tmp_path: Path) -> None:
    study, words = load_study(TINY)
    cells = expand(study, words)
    write_error(tmp_path / f"{cells[1].name}.h5", "broken pipe\n", 1)
    text = write_report(study, cells, tmp_path, tmp_path / "report", lambda action: "redo")
    assert "0 of 4 cells finished" in text
    assert "Not in the tables: 3 cells missing: FedGMR (1 of 2), FedAvg\n" in text
    assert "Not in the tables: 1 cell failed: broken pipe (exit code 1): FedGMR (1 of 2)" in text
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<h1>tiny &lt;study&gt;</h1>" in page and page.count("class=warn") == 2


def test_own_sub_models_stand_beside_the_whole_model() -> None:
    assert own_table(RUNS, SCALE) is None
    cut = {"own_mean": np.array([0.1, 0.2, 0.4]), "own_worst": np.array([0.1, 0.1, 0.3])}
    runs = [*RUNS[:2], replace(make_run("c", 0, 0.9), **cut)]
    table = own_table(runs, SCALE)
    assert table is not None
    assert table.rows == [
        ["a", "65.00 \u00b1 7.07", "-", "-", "-"],
        ["c", "90.00 (1)", "40.00 (1)", "30.00 (1)", "-50.00 (1)"],
    ]
    assert not table.marked
    full = [*runs, replace(make_run("c", 1, 0.9), **cut)]
    more = [*runs, *(replace(run, column="low") for run in full)]
    table = own_table(more, replace(SCALE, titles={"low": "Low"}))
    assert table is not None and len(table.rows) == 4
    assert (table.heads[:2], table.rows[3][:2]) == (["condition", "method"], ["Low", "c"])
    assert table.marked == {(3, 2)}  # 90 and 90, the other 60 and 70
    assert f"Low: {MARKED} {NOT_TOLD}: whole model: a." in table.notes
    assert table.records[-1] == pytest.approx(
        {"condition": "low", "method": "c", "of": "own_mean_minus_test", "n": 2, "mean": -50.0,
         "sd": 0.0, "low": "", "high": ""}
    )  # fmt: skip


def test_a_condition_with_fewer_seeds_than_others_says_how_many() -> None:
    cut = {"own_mean": np.array([0.1, 0.2, 0.4]), "own_worst": np.array([0.1, 0.1, 0.3])}
    runs = [replace(run, column="low", **cut) for run in RUNS[::2]]  # one seed
    table = own_table([*runs, *(replace(run, **cut) for run in RUNS)], SCALE)
    assert table is not None and "n = 2" in table.notes[0]
    assert [row[2] for row in table.rows] == [
        "60.00 (1)",
        "50.00 (1)",
        "65.00 \u00b1 7.07",
        "65.00 \u00b1 21.21",
    ]


def test_captions_say_what_all_runs_share() -> None:
    study, words = load_study({**TINY, "labels": {"fedgmr": "ours"}})
    cells = expand(study, [*words, "train.batch=7"])
    shared = "data digits, model digits_cnn, 10 clients, heterogeneity high, partition dirichlet"
    assert setting_of(study, cells) == shared
    (note,) = settings_note(study, cells)
    assert "train.batch 7" in note and "data.name" not in note and "run.max_time_s" not in note
    tuned = {**TINY, "tune": {"train.learning_rate": [0.1, 0.2]}, "set": {"clients.level": "low"}}
    study, words = load_study(tuned)
    cells = [cell for cell in expand(study, words) if not cell.is_trial]
    assert setting_of(study, cells).endswith(
        "heterogeneity low, partition dirichlet, learning rate tuned on validation in 2 trials a "
        "method"
    )
    (note,) = settings_note(study, cells) or [""]
    assert "learning_rate" not in note


class Rising(Schedule):
    """Never called."""

    rise: Annotated[float, Field(gt=0)] = 0.1
    """How fast."""

    def densities(self, refresh: Any) -> Any:
        return refresh.densities


def test_an_option_that_only_some_rows_have_is_said_of_none() -> None:
    study, words = load_study(TINY)
    first, second, *_ = expand(study, words)
    with registered(RESTORATIONS, Rising):
        other = load_config("digits", {"restoration.trigger": "mine", "restoration.rise": 0.2})
        notes = settings_note(study, [first, replace(second, config=other)])
    assert not any("rise" in note for note in notes)


def test_missing_cells_are_grouped_by_their_reason() -> None:
    study, words = load_study({**TINY, "matrix": {**TINY["matrix"], "seed": [0, 1, 2]}})
    cells = expand(study, words)
    known = ["done", "missing", "missing", "waiting", "waiting", "waiting"]
    states = [
        (cell, CellState(status, Path("x.h5"))) for cell, status in zip(cells, known, strict=True)
    ]
    scale = replace(SCALE, titles={"fedgmr": "FedGMR"})
    assert missing_lines(states, scale) == [
        "Not in the tables: 2 cells missing: FedGMR (2 of 3)",
        "Not in the tables: 3 cells waiting: fedavg",
    ]
    assert missing_lines([(c, CellState("missing", Path("x.h5"))) for c in cells], scale) == [
        "Not in the tables: 6 cells missing: all"
    ]


def test_rows_that_went_on_without_clients_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = expand(*load_study(TINY))
    results: list[Any] = [object() for _ in cells]
    states = [
        (cell, CellState("done", Path("x.h5"), result=result))
        for cell, result in zip(cells, results, strict=True)
    ]
    gone = {id(results[1]): [3, 4]}
    monkeypatch.setattr(head, "quarantined", lambda result: gone.get(id(result), []))
    assert quarantine_lines(states, SCALE) == [
        "Other clients than planned: 1 cell went on without clients in quarantine: fedgmr (1 of 2)"
    ]


def result_of(seed: int = 0, **provenance: str) -> Any:
    return SimpleNamespace(provenance=provenance, config={"seed": seed})


def states_with(*results: Any, **changes: Any) -> list[tuple[Cell, CellState]]:
    cells = expand(*load_study({**TINY, **changes}))
    return [
        (cell, CellState("done", Path("x.h5"), result=result))
        for cell, result in zip(cells, results, strict=True)
    ]


def test_cells_of_one_configuration_that_trained_on_other_data_are_named() -> None:
    new, old = result_of(data_xxh3="abc"), result_of(data_xxh3="0ld")
    assert data_lines(states_with(new, new, new, new), SCALE) == []
    assert data_lines(states_with(new, None, result_of(), new), SCALE) == []  # older files
    scale = replace(SCALE, titles={"fedgmr": "FedGMR"})
    assert data_lines(states_with(new, old, new, new), scale) == [
        "Pooled, but of other data: 1 run trained on data with fingerprint 0ld, others of the same "
        "data.* on abc: FedGMR (seed 1)"
    ]


def test_data_may_differ_where_what_they_are_made_of_does(tmp_path: Path) -> None:
    new, old = result_of(data_xxh3="abc"), result_of(data_xxh3="0ld")
    matrix = {"method": ["fedgmr"], "data.max_train": [500, 600], "seed": [0, 1]}
    assert data_lines(states_with(new, new, old, old, matrix=matrix), SCALE) == []
    parts = tmp_path / "parts.csv"
    lines = [f"{client},{10 * client + i}" for client in range(10) for i in range(10)]
    parts.write_text("\n".join(["client,sample", *lines]))
    listed = {"set": {"data.partition": "file", "data.partition_file": str(parts)}}
    assert data_lines(states_with(new, old, new, old, **listed), SCALE) == []  # by seed
    assert len(data_lines(states_with(new, old, old, old, **listed), SCALE)) == 1


def test_commits_of_all_stretches_count() -> None:
    known = {"resume_1": '{"git_commit": "b", "git_dirty": "true"}'}
    whole, resumed = result_of(git_commit="a"), result_of(git_commit="a", **known)
    assert commit_lines(states_with(whole, whole, whole, whole)) == []
    assert commit_lines(states_with(whole, whole, whole, resumed)) == [
        "The cells come from 2 commits, see the last table."
    ]


def test_the_last_table_shows_what_a_run_was_begun_and_resumed_with() -> None:
    of_start = {"git_commit": "a" * 40, "cpu_model": "Xeon", "start_utc": "then"}
    entry = '{"git_commit": "%s", "git_dirty": "true", "start_utc": "now"}' % ("b" * 40)
    no_rows = {name: np.zeros(0) for name in ("round", "now_s", "wall_s")}
    result: Any = SimpleNamespace(
        provenance=of_start | {"resume_1": entry}, merges=no_rows, evaluations=no_rows
    )
    origin = page._origin(CellState("done", Path("x.h5"), result=result))
    shown = dict(zip(page.FROM_RESULT, origin[3:], strict=True))
    assert shown["git_commit"] == f"{'a' * 10}\u2192{'b' * 10}+"
    assert (shown["cpu_model"], shown["start_utc"], shown["data_xxh3"]) == ("Xeon", "then", "-")


def test_claims_are_counted_and_those_without_runs_are_named() -> None:
    undecided = ClaimResult("C", "a", "b", "difference", "undecided", mean_test([1.0, 3.0]), 2, 1)
    firm = ClaimResult("C", "a", "c", "difference", "supported", mean_test([5.0, 5.1]), 2, 0)
    unseen = ClaimResult("D", "a", "d", "difference", "undecided", None, 0, 3)
    table = claims_table(
        [undecided, replace(firm, p_holm=0.01, is_firm=True), unseen],
        RUNS,
        replace(SCALE, titles={"a": "A"}),
    )
    assert table.title == "Claims: 1 supported, 0 contradicted, 1 undecided"
    assert [row[1:5] for row in table.rows] == [
        ["A vs. b", "undecided", "2 (2 of 3 pairs)", "+2.00 points"],
        ["A vs. c", "supported*", "2", "+5.05 points"],
    ]
    assert table.notes[0] == "No pair of runs yet, undecided: D (1)."
    assert len(table.records) == 3
    assert table.notes[2].startswith("The verdict is a test at 5 %")
    alone = claims_table([replace(undecided, test=mean_test([1.0]))], RUNS, SCALE)
    assert alone.notes[1] == "No claim was tested: that takes two seeds that differ."


def test_every_table_of_a_report_may_have_a_caption() -> None:
    runs = [replace(run, own_mean=run.test, own_worst=run.test) for run in RUNS]
    made = [accuracy_table(runs, SCALE), difference_table(runs, SCALE), own_table(runs, SCALE),
            cost_table(runs, SCALE), claims_table([], runs, SCALE)]  # fmt: skip
    assert {table.name for table in made if table is not None} <= set(CAPTIONED)


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
