"""Choose the tuned values of a study by trials, equally many for every row.

A row and column's values are those of its trials with the greatest validation accuracy, the mean
over the trials' seeds; the first of equals, which the report tells. An untrained model's accuracy
is no value. The test set has no say, nor have the seeds that are reported: trials are runs of their
own on `tune_seeds`, so that no reported run was picked for how well its own seed did. They may be
shorter (`tune_time_s`), which costs less and favours what is fast at first. A trial whose model
diverges counts as the worst; one that failed for another reason leaves its row's other cells
waiting until it was run again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fedgmr_hpc.config.errors import DIVERGED
from fedgmr_hpc.results.series import end_s, quarantined
from fedgmr_hpc.study.cells import Candidate, Cell, Tuning
from fedgmr_hpc.study.labels import Labels
from fedgmr_hpc.study.measures import measure
from fedgmr_hpc.study.states import ENDED, CellState, read_state, result_path

States = list[tuple[Cell, CellState]]


@dataclass(frozen=True)
class Score:
    """The accuracy that a combination of values reached in a row and column, 0 to 1."""

    row: str
    column: str
    values: Labels
    validation: float  # mean over the trials; -inf after a divergence, NaN without a value
    num_trials: int
    is_chosen: bool
    num_equal: int = 1  # combinations of the row and column that reached the same, this one too


@dataclass(frozen=True)
class Spent:
    """The cost of trials together."""

    num_trials: int = 0
    num_diverged: int = 0
    client_steps: float = 0.0
    bytes: float = 0.0  # server's links, both directions
    virtual_s: float = 0.0
    wall_s: float = 0.0


class UntunedError(ValueError):
    """A cell has no values: it waits for its trials, or they all have failed (`status`)."""

    def __init__(self, status: Literal["waiting", "failed"], why: str) -> None:
        super().__init__(why)
        self.status: Literal["waiting", "failed"] = status


def read_states(folder: Path, cells: Sequence[Cell]) -> States:
    """Return every cell with its state, and with chosen values where its trials have ended."""
    trials = {cell.digest: read_state(folder, cell) for cell in cells if cell.is_trial}
    return [_read(folder, cell, trials) for cell in cells]


def with_chosen_values(folder: Path, cell: Cell) -> Cell:
    """Return a cell with its chosen values, reading the states of its trials.

    Raises:
        UntunedError: Its trials have not ended, or none has an accuracy.
    """
    if cell.tuning is None:
        return cell
    return choose_values(cell, {t.digest: read_state(folder, t) for t in cell.tuning.trials})


def choose_values(cell: Cell, trials: Mapping[str, CellState]) -> Cell:
    """Return a cell with the values that its trials have chosen.

    Args:
        trials: Their states, by digest.

    Raises:
        UntunedError: They have not ended, or none has an accuracy.
    """
    if cell.tuning is None:
        return cell
    states = [trials[trial.digest] for trial in cell.tuning.trials]
    num_ended = sum(state.status in ENDED for state in states)
    if num_ended < len(states):
        num_failed = sum(state.status == "failed" for state in states)
        failed = f", {num_failed} failed" if num_failed else ""
        raise UntunedError("waiting", f"{num_ended} of {len(states)} trials have ended{failed}")
    values = [_validation(candidate, cell.tuning, trials) for candidate in cell.tuning.candidates]
    best = _best(values)
    if best is None:
        why = f"no trial has a trained model's validation accuracy at {cell.tuning.at_s:g} s"
        if all(value == -math.inf for value in values):
            why = f"{DIVERGED} in a trial of every combination of values"
        raise UntunedError("failed", why)
    return replace(cell.tuning.candidates[best].run, pending_digest=cell.digest)


def _read(folder: Path, cell: Cell, trials: Mapping[str, CellState]) -> tuple[Cell, CellState]:
    if cell.is_trial:
        return cell, trials[cell.digest]
    try:
        cell = choose_values(cell, trials)
    except UntunedError as error:
        return cell, CellState(error.status, result_path(folder, cell), error=str(error))
    return cell, read_state(folder, cell)


def scores_of(cells: Sequence[Cell], states: States) -> list[Score]:
    """Return what every combination reached, for every row and column that is tuned.

    Args:
        cells: As `expand` has made them.
    """
    trials = {cell.digest: state for cell, state in states if cell.is_trial}
    tuned = {(c.row, c.column): c.tuning for c in cells if c.tuning is not None}
    return [
        score
        for (row, column), tuning in tuned.items()
        for score in _scores(row, column, tuning, trials)
    ]


def spent_by_row(states: States) -> dict[str, Spent]:
    """Return the cost of each row's trials."""
    rows: dict[str, States] = {}
    for cell, state in states:
        if cell.is_trial:
            rows.setdefault(cell.row, []).append((cell, state))
    return {row: _spent(found) for row, found in rows.items()}


def _scores(row: str, column: str, tuning: Tuning, trials: Mapping[str, CellState]) -> list[Score]:
    values = [_validation(candidate, tuning, trials) for candidate in tuning.candidates]
    is_over = all(trials[trial.digest].status in ENDED for trial in tuning.trials)
    best = _best(values) if is_over else None
    return [
        Score(
            row,
            column,
            candidate.run.values,
            value,
            len(candidate.trials),
            index == best,
            values.count(value),
        )
        for index, (candidate, value) in enumerate(zip(tuning.candidates, values, strict=True))
    ]


def _best(scores: Sequence[float]) -> int | None:
    """Return the index of the first of the greatest; None where no value is finite."""
    known = [-math.inf if math.isnan(score) else score for score in scores]
    return int(np.argmax(known)) if max(known) > -math.inf else None


def _validation(candidate: Candidate, tuning: Tuning, trials: Mapping[str, CellState]) -> float:
    return float(np.mean([_reached(t, trials[t.digest], tuning) for t in candidate.trials]))


def _reached(trial: Cell, state: CellState, tuning: Tuning) -> float:
    if state.status == "diverged":
        return -math.inf
    if state.status != "done" or state.result is None:
        return math.nan
    if quarantined(state.result):  # its weights have left all range, if not all clients' together
        return -math.inf
    return measure(trial, state.result).validation_at(tuning.at_s, tuning.last)


def _spent(states: States) -> Spent:
    known = [(cell, state.result) for cell, state in states if state.result is not None]
    runs = [measure(cell, result) for cell, result in known]
    return Spent(
        num_trials=len(states),
        num_diverged=sum(state.status == "diverged" for _, state in states),
        client_steps=sum(float(run.client_steps[-1]) for run in runs if len(run.client_steps)),
        bytes=sum(float(run.bytes[-1]) for run in runs if len(run.bytes)),
        virtual_s=sum(end_s(result, "now_s") for _, result in known),
        wall_s=sum(end_s(result, "wall_s") for _, result in known),
    )
