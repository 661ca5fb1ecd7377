"""Values chosen by trials: the same number for every row, on validation alone, before the rest."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.errors import DIVERGED, RunError
from fedgmr_hpc.results.series import Run
from fedgmr_hpc.study import tuning
from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.report import tuning_tables as tuning_report
from fedgmr_hpc.study.report.head import head_of, tie_lines
from fedgmr_hpc.study.report.tables import Scale
from fedgmr_hpc.study.report.tuning_tables import tuning_tables
from fedgmr_hpc.study.slurm.job_task import CellTask
from fedgmr_hpc.study.states import CellState, read_state
from fedgmr_hpc.study.study_file import StudyFile, load_study
from fedgmr_hpc.study.tuning import Spent, UntunedError, choose_values, scores_of, spent_by_row

STUDY: dict[str, Any] = {
    "title": "tuned",
    "base": "digits",
    "matrix": {"method": ["fedgmr", "fedavg"], "clients.level": ["high", "low"], "seed": [0, 1]},
    "comparison_time_s": 20.0,
    "last": 1,
    "tune": {"train.learning_rate": [0.1, 0.3, 0.9], "restoration.patience": [2, 4, 6]},
}
RATE = "train.learning_rate"
SCALE = Scale(at_s=20.0, last=1, targets=(), reference=None, command="redo")


def cells_of(*words: str, **changes: Any) -> list[Cell]:
    return expand(*load_study({**STUDY, **changes}, words))


def trials_by_row(cells: list[Cell]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell.is_trial:
            found.setdefault((cell.row, cell.column), []).append(cell.values)
    return found


def test_a_key_is_tuned_where_it_has_an_effect() -> None:
    found = trials_by_row(cells_of())
    assert set(found) == {(r, c) for r in ("fedgmr", "fedavg") for c in ("high", "low")}
    assert [len(found[row, "high"]) for row in ("fedgmr", "fedavg")] == [9, 3]
    assert found["fedavg", "low"] == [{RATE: 0.1}, {RATE: 0.3}, {RATE: 0.9}]


def test_a_bound_gives_every_row_as_many_trials_and_tries_every_value() -> None:
    found = trials_by_row(cells_of(tune_cells=3))
    assert {len(values) for values in found.values()} == {3}
    assert found["fedgmr", "low"] == [
        {RATE: rate, "restoration.patience": patience}
        for rate, patience in ((0.1, 2), (0.3, 4), (0.9, 6))
    ]


def test_diagonals_come_first_and_all_combinations_once() -> None:
    study = StudyFile.model_validate(
        {"title": "t", "comparison_time_s": 1, "tune": {"a": [1, 2, 2], "b": [1, 2, 3]}}
    )
    pairs = [tuple(values.values()) for values in study.combinations(["a", "b"])]
    assert pairs[:3] == [(1, 1), (2, 2), (1, 3)]
    assert sorted(pairs) == [(a, b) for a in (1, 2) for b in (1, 2, 3)]
    assert study.combinations([]) == [{}]


def test_trials_have_their_own_seeds_and_end_when_they_are_judged() -> None:
    cells = cells_of(tune_seeds=[7, 8], tune_time_s=10)
    trials = [cell for cell in cells if cell.is_trial]
    assert {cell.seed for cell in trials} == {7, 8}
    assert {cell.config.seed for cell in trials} == {7, 8}
    assert {cell.config.run.max_time_s for cell in trials} == {10.5}
    assert trials[0].slug == "tune-fedgmr-high-learningrate0.1-patience2-s7"
    assert not any("seed" in cell.labels for cell in trials)
    long = cells_of("run.max_time_s=100", tune_time_s=10)
    assert {c.config.run.max_time_s for c in long if c.is_trial} == {10.5}
    assert {c.config.run.max_time_s for c in long if not c.is_trial} == {100}
    with pytest.raises(ValueError, match="tune_seeds must be seeds that no cell runs with"):
        cells_of(tune_seeds=[3, 1])


def test_a_seed_on_the_command_line_is_not_the_trials() -> None:
    matrix = {"method": ["fedavg"]}
    cells = cells_of("seed=5", matrix=matrix)
    assert [(cell.is_trial, cell.seed) for cell in cells] == [(True, 1000)] * 3 + [(False, 5)]


def test_words_replace_tuned_values_and_one_value_needs_no_trial() -> None:
    assert len(trials_by_row(cells_of(f"{RATE}=[1, 2]"))["fedavg", "high"]) == 2
    cells = cells_of(f"{RATE}=0.7", matrix={"method": ["fedavg"], "seed": [0]})
    assert [(c.is_trial, c.tuning, c.config.train.learning_rate) for c in cells] == [
        (False, None, 0.7)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": {"clients.level": ["high"]}}, "tune must name keys that the cells do not vary"),
        ({"tune": {"seed": [1]}}, "tune must name keys that the cells do not vary"),
        ({"tune": {"train.rate": [1, 2]}}, "train.rate is not a key"),
        ({"tune": {RATE: [0.1, -1]}}, f"{RATE} must be .* \\(got -1\\)"),
        ({"tune": {RATE: []}}, "tune.train.learning_rate must be a list of at least one value"),
        ({"tune_cells": 0}, "tune_cells must be at least 1 \\(got 0\\)"),
    ],
)
def test_wrong_tuning_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cells_of(**changes)


def run_of(cell: Cell, val: float) -> Run:
    """A run whose validation accuracy is `val` from 10 s on; its test accuracy is the opposite."""
    times = np.array([0.0, 10.0, 20.0])
    course = {"val": np.full(3, val), "test": np.full(3, 1 - val)}
    names = ("density_times_s", "densities", "refresh_times_s", "refresh_test", "own_mean")
    return Run(
        row=cell.row,
        column=cell.column,
        seed=cell.seed,
        name=cell.name,
        times_s=times,
        bytes=times * 1e6,
        client_steps=times * 5,
        labels=dict(cell.labels),
        **course,
        **dict.fromkeys((*names, "own_worst"), times),
    )


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Validation accuracies by digest; what is not there has not been run, NaN has diverged."""
    found: dict[str, float] = {}
    monkeypatch.setattr(tuning, "measure", lambda cell, result: run_of(cell, found[cell.digest]))
    monkeypatch.setattr(tuning, "end_s", lambda result, name: 21.0)
    monkeypatch.setattr(tuning, "quarantined", lambda result: [])
    return found


def state_of(cell: Cell, values: Mapping[str, float]) -> CellState:
    path = Path(f"{cell.name}.h5")
    if cell.digest not in values:
        return CellState("missing", path)
    is_lost = math.isnan(values[cell.digest])
    result: Any = SimpleNamespace(provenance={})
    return CellState("diverged" if is_lost else "done", path, result=result)


def states_of(cells: list[Cell], values: Mapping[str, float]) -> list[tuple[Cell, CellState]]:
    return [(cell, state_of(cell, values)) for cell in cells]


def chosen(cell: Cell, cells: list[Cell], values: Mapping[str, float]) -> Cell:
    return choose_values(cell, {c.digest: state_of(c, values) for c in cells if c.is_trial})


def test_the_best_validation_accuracy_chooses_for_each_row_and_column(
    values: dict[str, float],
) -> None:
    cells = cells_of(tune={RATE: [0.1, 0.3, 0.9]}, tune_seeds=[7, 8])
    wanted = {("fedgmr", "high"): 0.9, ("fedgmr", "low"): 0.1, ("fedavg", "high"): 0.3}
    for trial in (cell for cell in cells if cell.is_trial):
        is_best = wanted.get((trial.row, trial.column), 0.3) == trial.values[RATE]
        values[trial.digest] = (0.8 if is_best else 0.7) + (0.01 if trial.seed == 7 else 0)
    for cell in (cell for cell in cells if not cell.is_trial):
        run = chosen(cell, cells, values)
        assert run.config.train.learning_rate == wanted.get((cell.row, cell.column), 0.3)
        assert (run.seed, run.row, run.column) == (cell.seed, cell.row, cell.column)
        assert run.pending_digest == cell.digest != run.digest and run.tuning is None
    states = states_of(cells, values)
    tables = tuning_tables(load_study(STUDY)[0], states, scores_of(cells, states), SCALE)
    at_end = "yes, at the edge: learning rate 0.9"
    assert ["high", "fedgmr", "learning rate 0.9", "80.50", at_end] in tables[0].rows
    assert ["high", "fedavg", "learning rate 0.3", "80.50", "yes"] in tables[0].rows
    assert sum(bool(row[-1]) for row in tables[0].rows) == 4


@pytest.mark.parametrize(
    ("value", "tried", "is_end"),
    [
        (0.9, [0.1, 0.3, 0.9], True),
        (0.3, [0.1, 0.3, 0.9], False),
        (10, [None, 1, 10], True),
        (None, [None, 1, 10], False),
        (True, [True, False], False),
        ("high", ["high", "low"], False),
        (1, [1], False),
    ],
)
def test_only_numbers_lie_at_an_edge(value: Any, tried: list[Any], is_end: bool) -> None:
    assert tuning_report._is_end(value, tried) == is_end


def test_the_mean_over_seeds_decides_and_the_first_of_equals(values: dict[str, float]) -> None:
    matrix = {"method": ["fedavg"], "seed": [0]}
    cells = cells_of(tune={RATE: [0.1, 0.3, 0.9]}, tune_seeds=[7, 8], matrix=matrix)
    reached = {(0.1, 7): 0.5, (0.1, 8): 0.5, (0.3, 7): 0.9, (0.3, 8): 0.3, (0.9, 7): 0.5}
    for trial in cells[:-1]:
        values[trial.digest] = reached.get((trial.values[RATE], trial.seed), 0.7)
    assert [score.validation for score in scores_of(cells, states_of(cells, values))] == (
        pytest.approx([0.5, 0.6, 0.6])
    )
    assert chosen(cells[-1], cells, values).values == {RATE: 0.3}


def test_a_cell_waits_for_all_its_trials_and_a_diverged_one_is_the_worst(
    values: dict[str, float],
) -> None:
    matrix = {"method": ["fedavg"], "seed": [0]}
    cells = cells_of(tune={RATE: [0.1, 0.3]}, matrix=matrix)
    first, second, cell = cells
    values[first.digest] = math.nan
    with pytest.raises(UntunedError, match="1 of 2 trials have ended") as waits:
        chosen(cell, cells, values)
    assert waits.value.status == "waiting"
    values[second.digest] = 0.01
    assert chosen(cell, cells, values).values == {RATE: 0.3}
    values[second.digest] = math.nan
    with pytest.raises(UntunedError, match="diverged in a trial of every combination") as fails:
        chosen(cell, cells, values)
    assert fails.value.status == "failed" and DIVERGED in str(fails.value)
    state = replace(state_of(first, values), status="failed")
    with pytest.raises(UntunedError, match="1 of 2 trials have ended, 1 failed"):
        choose_values(cell, {first.digest: state, second.digest: state_of(second, values)})


def test_a_trial_that_lost_clients_to_quarantine_is_as_bad_as_a_diverged_one(
    values: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    *trials, cell = cells_of(tune={RATE: [0.1, 0.3]}, matrix={"method": ["fedavg"], "seed": [0]})
    states = {t.digest: replace(state_of(t, {t.digest: 0.5}), result=t) for t in trials}  # type: ignore[arg-type]
    values |= {trials[0].digest: 0.5, trials[1].digest: 0.9}
    assert choose_values(cell, states).values == {RATE: 0.3}
    monkeypatch.setattr(tuning, "quarantined", lambda result: [2] * (result is trials[1]))
    assert choose_values(cell, states).values == {RATE: 0.1}


@pytest.mark.parametrize("given", ["true", "false"])
def test_trials_score_no_sub_models_whatever_is_asked_of_the_cells(given: str) -> None:
    study, _ = load_study(STUDY)
    *trials, cell = expand(study, [f"eval.submodels={given}"])
    assert trials and not any(t.config.eval.submodels for t in trials if t.is_trial)
    assert cell.config.eval.submodels is (given == "true")
    assert not any("submodels" in trial.name for trial in trials)


def test_a_choice_among_equals_is_told(values: dict[str, float]) -> None:
    cells = cells_of(tune={RATE: [0.1, 0.3, 0.9]}, matrix={"method": ["fedavg"], "seed": [0]})
    study, trials = load_study(STUDY)[0], cells[:-1]

    def marks(*reached: float) -> tuple[list[str], list[str]]:
        values.update(zip((t.digest for t in trials), reached, strict=True))
        states = states_of(cells, values)
        scores = scores_of(cells, states)
        (choices, _) = tuning_tables(study, states, scores, SCALE)
        lines = tie_lines(scores, SCALE)
        told = [line for line in head_of(states, [], scores, SCALE) if line.startswith("Tuned")]
        assert told == lines
        return [row[-1] for row in choices.rows], lines

    said = "Tuned values that are the first of equally good ones, see the table of them: fedavg"
    assert marks(0.5, 0.5, 0.5) == (["yes, no value differs", "", ""], [said])
    assert marks(0.4, 0.5, 0.5) == (["", "yes, the first of 2 equal", ""], [said])
    first = "yes, the first of 2 equal, at the edge: learning rate 0.1"
    assert marks(0.5, math.nan, 0.5) == ([first, "", ""], [said])
    assert marks(0.4, 0.5, 0.4) == (["", "yes", ""], [])


def test_trials_that_end_before_the_first_merge_choose_nothing(
    values: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    *trials, cell = cells_of(tune={RATE: [0.1, 0.3]}, matrix={"method": ["fedavg"], "seed": [0]})
    values |= {trial.digest: 0.1 for trial in trials}
    untrained = {trials[0].digest}

    def measured(cell: Cell, result: object) -> Run:
        run = run_of(cell, values[cell.digest])
        return replace(run, num_untrained=3 * (cell.digest in untrained))

    monkeypatch.setattr(tuning, "measure", measured)
    assert chosen(cell, trials, values).values == {RATE: 0.3}
    untrained.add(trials[1].digest)
    with pytest.raises(UntunedError, match="no trial has a trained model's validation accuracy at"):
        chosen(cell, trials, values)


def test_a_choice_is_tuned_with_its_option_beside_it_alone() -> None:
    """The row grows by the ladder, beside which `fixed_step` has no effect; before, no trial varied
    that.
    """
    tune = {"restoration.step": ["ladder", "fixed"], "restoration.fixed_step": [0.1, 0.2]}
    found = trials_by_row(cells_of(tune=tune, matrix={"method": ["fedgmr", "fedavg"]}))
    assert found == {
        ("fedgmr", "all"): [
            {"restoration.step": "ladder"},
            {"restoration.step": "fixed", "restoration.fixed_step": 0.2},
            {"restoration.step": "fixed", "restoration.fixed_step": 0.1},
        ]
    }
    two = cells_of(tune=tune, tune_cells=2, matrix={"method": ["fedgmr"]})
    assert trials_by_row(two)["fedgmr", "all"] == found["fedgmr", "all"][:2]


def test_keys_that_not_all_combinations_have_can_lie_at_an_edge(values: dict[str, float]) -> None:
    tune = {"restoration.step": ["ladder", "fixed"], "restoration.fixed_step": [0.1, 0.2]}
    cells = cells_of(tune=tune, matrix={"method": ["fedgmr"], "seed": [0]})
    values |= {c.digest: c.values.get("restoration.fixed_step", 0) for c in cells if c.is_trial}
    states = states_of(cells, values)
    table, _ = tuning_tables(load_study(STUDY)[0], states, scores_of(cells, states), SCALE)
    assert [row[-1] for row in table.rows] == ["", "yes, at the edge: fixed step 0.2", ""]


def test_equal_configurations_are_one_trial() -> None:
    tune = {RATE: [1, 1.0, 0.3]}
    cell = cells_of(tune=tune, matrix={"method": ["fedavg"]})[-1]
    assert cell.tuning is not None
    assert [each.run.values for each in cell.tuning.candidates] == [{RATE: 1}, {RATE: 0.3}]


def test_costs_are_sums_by_row_and_unequal_budgets_are_told(values: dict[str, float]) -> None:
    cells = cells_of()
    values |= {cell.digest: 0.5 for cell in cells if cell.is_trial}
    states = states_of(cells, values)
    assert spent_by_row(states)["fedavg"] == Spent(6, 0, 600.0, 120e6, 126.0, 126.0)
    _, costs = tuning_tables(load_study(STUDY)[0], states, scores_of(cells, states), SCALE)
    assert costs.rows[0][:2] == ["fedgmr", "18"]
    assert costs.notes[0] == "The budgets differ: 18 trials, but fedavg 6."
    even = cells_of(tune_cells=3)
    values |= {cell.digest: 0.5 for cell in even if cell.is_trial}
    states = states_of(even, values)
    _, costs = tuning_tables(load_study(STUDY)[0], states, scores_of(even, states), SCALE)
    assert costs.notes[0] == "Every method had the same budget: 6 trials."


def test_a_study_tunes_then_runs_and_reports_what_that_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = {
        "title": "tuned",
        "base": "digits",
        "set": {"run.max_rounds": 3, "run.interval_rounds": 1, "data.max_train": 600},
        "matrix": {"method": ["fedavg"], "seed": [0]},
        "comparison_time_s": 5.0,
        "last": 1,
        "tune": {RATE: [1e12, 0.2]},
    }
    (tmp_path / "tuned.yaml").write_text(json.dumps(study))  # JSON is YAML
    folder = tmp_path / "out" / "cells"

    def act(action: str, *words: str) -> str:
        source = str(tmp_path / "tuned.yaml")
        assert main(["study", action, source, "--out", str(tmp_path / "out"), *words]) == 0
        return capsys.readouterr().out

    shown = act("run", "--dry-run")
    assert "3 cells (2 missing, 1 waiting)" in shown
    assert "trials: 2 of the cells, 2 for a row and column, until 5 s, seed 1000" in shown
    texts = act("submit", "--dry-run")
    assert "--dependency=afterany:JOB1\n" in texts and "=afterany:JOB1:JOB2\n" in texts
    cell = expand(*load_study(study))[-1]
    with pytest.raises(RunError, match="0 of 2 trials have ended"):
        CellTask(cell, folder, 1, None)()
    assert "1 diverged, 2 done of 3 cells" in act("run")
    (result,) = folder.glob("fedavg-s0-*.h5")
    before = result.stat().st_mtime_ns
    assert "learning_rate: 0.2" in result.with_suffix(".yaml").read_text()
    act("run")
    CellTask(cell, folder, 1, None)()  # as a job that was submitted while the cell was open
    assert result.stat().st_mtime_ns == before
    assert re.search(
        r"learning rate 1e\+12 +diverged\n.*learning rate 0.2 +\S+ +yes", act("report")
    )
    page = (tmp_path / "out" / "tuned" / "report.md").read_text()
    assert "1 of 1 cells finished, 2 of 2 trials" in page and "### What the tuning took" in page
    (run,) = {c.digest for c in (tuning.with_chosen_values(folder, cell),)}
    assert (
        read_state(folder, tuning.with_chosen_values(folder, cell)).status == "done"
        and run != cell.digest
    )
