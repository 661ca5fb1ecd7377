"""A study on disk: its cells, its folders, and how far it is, here and in Slurm."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.reporting.tables import as_text, finite
from fedgmr_hpc.reporting.words import describe_s
from fedgmr_hpc.results.series import end_s
from fedgmr_hpc.storage.process import num_cores
from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.cost import Pace, mean_paces, remaining_s
from fedgmr_hpc.study.job_states import CellJob, read_jobs, with_job
from fedgmr_hpc.study.saved_words import check_source, save_words, with_saved
from fedgmr_hpc.study.states import ENDED, CellState, can_resume
from fedgmr_hpc.study.study_file import StudyFile, find_study, load_study
from fedgmr_hpc.study.tuning import States, read_states

DEFAULT_OUT = "results/studies"
ACTIVE = ("queued", "running")


@dataclass(frozen=True)
class StudyFolder:
    """A study, its cells and its folders.

    Attributes:
        source: What the study was opened by, a name or a path.
        overrides: Words `key=value` of the command line.
        out: The folder of cells and reports; several studies may share it.
    """

    source: str
    study: StudyFile
    cells: list[Cell]
    overrides: list[str]
    out: Path

    @property
    def cells_dir(self) -> Path:
        """The folder of the result files."""
        return self.out / "cells"

    @property
    def report_dir(self) -> Path:
        """The folder of the report and of the last run's overrides."""
        return self.out / find_study(self.source).stem

    def command_arguments(self, action: str) -> list[str]:
        """Return what Python is given for `action` on this study."""
        out = [] if self.out == Path(DEFAULT_OUT) else ["--out", str(self.out)]
        return ["-m", "fedgmr_hpc", "study", action, self.source, *out, *self.overrides]

    def command(self, action: str) -> str:
        """Return what to type for `action` on this study."""
        return shlex.join(["python", *self.command_arguments(action)])

    def save_overrides(self) -> None:
        """Save the overrides for later actions that are given none, and which study they are of."""
        save_words(self.report_dir, self.source, self.overrides)

    def states(self) -> States:
        """Return every cell, with the values chosen for it, and its state from its files."""
        return read_states(self.cells_dir, self.cells)

    def max_parallel(self, num_ranks: int, requested: int | None = None) -> int:
        """Return how many cells run at a time on this machine.

        Args:
            requested: A number from the command line; else the study's, else cores over ranks.
        """
        own = self.study.max_parallel or max(1, num_cores() // num_ranks)
        return at_least_1("--max-parallel", own if requested is None else requested)


def open_study(
    source: str, overrides: list[str], out: str | None, reuses_overrides: bool
) -> StudyFolder:
    """Open a study.

    Args:
        source: Its name or path.
        overrides: Words `key=value`.
        out: The folder of cells and reports; None for results/studies.
        reuses_overrides: Take the saved overrides where none but plug-ins are given.

    Raises:
        ValueError: The study, an override or a cell is wrong, or another study has its folder.
    """
    out_dir = Path(out or DEFAULT_OUT).expanduser()
    folder = out_dir / find_study(source).stem
    check_source(folder, source)
    if reuses_overrides:
        overrides = with_saved(folder, overrides)
    study, of_all_cells = load_study(source, overrides)
    return StudyFolder(source, study, expand(study, of_all_cells), overrides, out_dir)


def check_time_limits(folder: StudyFolder) -> None:
    """Check that cells may run until they are compared, and trials until they are judged.

    Raises:
        ValueError: None may, so that nothing could be compared or chosen.
    """
    study = folder.study
    for is_trial, key, at_s in (
        (False, "comparison_time_s", study.comparison_time_s),
        (True, "tune_time_s", study.tuned_at_s()),
    ):
        limits = [c.config.run.max_time_s for c in folder.cells if c.is_trial == is_trial]
        known = [limit_s for limit_s in limits if limit_s is not None]
        if limits and len(known) == len(limits) and max(known) < at_s:
            bound = f"null, or at least {at_s:g}, the study's {key}"
            because = "nothing is compared before it"
            raise ValueError(must_be("run.max_time_s", bound, max(known), because=because))


def describe_limits(folder: StudyFolder) -> list[str]:
    """Return lines on when the cells end and are compared, and on the trials that tune them."""
    at_s, runs = folder.study.comparison_time_s, [c for c in folder.cells if not c.is_trial]
    limits = dict.fromkeys(
        f"{limit_s:g} s of virtual time" if (limit_s := cell.config.run.max_time_s) else "no time"
        for cell in runs
    )
    rounds = dict.fromkeys(f"{cell.config.run.max_rounds}" for cell in runs)
    until = f"  until: {' or '.join(limits)}, {' or '.join(rounds)} rounds (compared at {at_s:g} s)"
    return [until, *_describe_trials(folder)]


def _describe_trials(folder: StudyFolder) -> list[str]:
    study, trials = folder.study, [cell for cell in folder.cells if cell.is_trial]
    if not trials:
        return []
    each = Counter((cell.row, cell.column) for cell in trials).values()
    number = str(max(each)) if min(each) == max(each) else f"{min(each)} to {max(each)}"
    seeds = ", ".join(map(str, study.tune_seeds))
    return [
        *(f"  tune {key}: {', '.join(map(str, values))}" for key, values in study.tune.items()),
        f"  trials: {len(trials)} of the cells, {number} for a row and column, until "
        f"{study.tuned_at_s():g} s, seed {seeds}",
    ]


def at_least_1(name: str, value: int) -> int:
    """Return `value`.

    Raises:
        ValueError: It is less than 1.
    """
    if value < 1:
        raise ValueError(must_be(name, "at least 1", value))
    return value


def states_with_jobs(folder: StudyFolder) -> tuple[States, dict[str, CellJob], str]:
    """Return every cell's state from its files and the queue, the jobs, and the queue's error."""
    try:
        jobs, unknown = read_jobs(folder.cells_dir.absolute()), ""
    except ValueError as error:
        jobs, unknown = {}, str(error)
    states = [(cell, with_job(state, job_of(jobs, cell))) for cell, state in folder.states()]
    return states, jobs, unknown


def job_of(jobs: Mapping[str, CellJob], cell: Cell) -> CellJob | None:
    """Return the last job of a cell, which may be older than the choice of its values."""
    return jobs.get(cell.digest) or jobs.get(cell.pending_digest)


def render_status(folder: StudyFolder) -> str:
    """Return a table of all cells, what went wrong below it, how many there are of each state, and
    the time left.
    """
    states, jobs, unknown = states_with_jobs(folder)
    rows = [[cell.name, s.status, *_facts(s)] for cell, s in states]
    table = as_text(("cell", "state", "val %", "virtual s", "wall s", ""), rows)
    wrong = [(cell, s) for cell, s in states if s.error and s.status != "waiting"]
    errors = "".join(f"\n{cell.name}: {s.error}" for cell, s in wrong)
    left_s = _left_s(folder, states, jobs)
    is_over = all(s.status in ENDED for _, s in states)
    eta = "" if is_over else f"; time left {describe_s(left_s)}"
    what = " once they all run" if any(s.status == "queued" for _, s in states) else ""
    note = f"\nwithout the queue: {unknown}" if unknown else ""
    counts = count_states([s for _, s in states])
    return f"{table}{errors}\n{counts} of {len(states)} cells{eta}{what}{note}"


def status_record(folder: StudyFolder) -> dict[str, Any]:
    """Return what `render_status` shows, for programs; None where a number is not known."""
    states, jobs, unknown = states_with_jobs(folder)
    return {
        "study": folder.study.title,
        "counts": dict(Counter(state.status for _, state in states)),
        "time_left_s": finite(_left_s(folder, states, jobs)),
        "queue_error": unknown or None,
        "cells": [_cell_record(cell, state) for cell, state in states],
    }


def _cell_record(cell: Cell, state: CellState) -> dict[str, Any]:
    result = state.result
    scores: Any = result.evaluations["val_accuracy"] if result is not None else []
    return {
        "name": cell.name,
        "state": state.status,
        "progress_frac": state.progress_frac,
        "val_accuracy": finite(scores[-1]) if len(scores) else None,
        "virtual_s": finite(end_s(result, "now_s")) if result is not None else None,
        "wall_s": finite(end_s(result, "wall_s")) if result is not None else None,
        "job": state.job or None,
        "error": state.error or None,
    }


def _left_s(folder: StudyFolder, states: States, jobs: Mapping[str, CellJob]) -> float:
    """Return wall seconds until what is active is done, or all where nothing is; NaN without a
    pace.
    """
    active = [(cell, state) for cell, state in states if state.status in ACTIVE and state.job]
    limits = [job.max_parallel for cell, _ in active if (job := job_of(jobs, cell))]
    max_parallel = max(limits, default=0) or folder.max_parallel(folder.study.ranks)
    return eta_s(active or states, states, max_parallel)


def count_states(states: Sequence[CellState]) -> str:
    """Return how many cells are in each state, as `3 done, 1 failed`."""
    found = Counter(state.status for state in states)
    return ", ".join(f"{found[s]} {s}" for s in sorted(found)) or "none"


def eta_s(open_states: States, states: States, max_parallel: int) -> float:
    """Return wall seconds until `open_states` are done, at the pace of all known results."""
    left = [
        (cell, 0.0 if s.status == "failed" and not can_resume(s) else s.progress_frac)
        for cell, s in open_states
        if s.status not in ENDED
    ]
    return remaining_s(left, known_paces(states), max_parallel)


def known_paces(states: States) -> dict[str, Pace]:
    """Return the paces of the methods that have results: of trials, which score no sub-models,
    where there are no others.
    """
    trials, runs = (
        mean_paces(
            (cell.config.method, state.result)
            for cell, state in states
            if state.result is not None and cell.is_trial == is_trial
        )
        for is_trial in (True, False)
    )
    return trials | runs


def _facts(state: CellState) -> list[str]:
    """Return validation accuracy, times and remark of one cell."""
    part = f"{100 * state.progress_frac:.0f} %"
    under_way = part if state.status in ("running", "interrupted") else ""
    awaited = state.error if state.status == "waiting" else ""
    remark = ", ".join(filter(None, (awaited, under_way, state.job)))
    result = state.result
    if result is None:
        return ["-", "-", "-", remark]
    scores = result.evaluations["val_accuracy"]
    score = f"{100 * scores[-1]:.2f}" if len(scores) else "-"
    return [score, f"{end_s(result, 'now_s'):.1f}", f"{end_s(result, 'wall_s'):.1f}", remark]
