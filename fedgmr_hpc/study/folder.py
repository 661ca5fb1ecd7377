"""A study where it lies: its cells, its folders, and how far it is, here and in Slurm."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.yaml_file import dump, parse
from fedgmr_hpc.reporting.tables import as_text
from fedgmr_hpc.reporting.words import describe_s
from fedgmr_hpc.results.series import end_s
from fedgmr_hpc.storage.process import num_cores
from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.cost import mean_paces, remaining_s
from fedgmr_hpc.study.job_states import CellJob, read_jobs, with_job
from fedgmr_hpc.study.states import ENDED, CellState
from fedgmr_hpc.study.study_file import StudyFile, find_study, load_study
from fedgmr_hpc.study.tuning import States, read_states

DEFAULT_OUT = "results/studies"
ACTIVE = ("queued", "running")


@dataclass(frozen=True)
class StudyFolder:
    """A study, its cells and its folders."""

    source: str
    study: StudyFile
    cells: list[Cell]
    words: list[str]
    out: Path

    @property
    def cells_dir(self) -> Path:
        """The result files."""
        return self.out / "cells"

    @property
    def report_dir(self) -> Path:
        """The report and the words of the last run."""
        return self.out / find_study(self.source).stem

    def command_arguments(self, action: str) -> list[str]:
        """What Python is given for `action` on this study."""
        out = [] if self.out == Path(DEFAULT_OUT) else ["--out", str(self.out)]
        return ["-m", "fedgmr_hpc", "study", action, self.source, *out, *self.words]

    def command(self, action: str) -> str:
        """What to type for `action` on this study."""
        return shlex.join(["python", *self.command_arguments(action)])

    def save_overrides(self) -> None:
        """Notes the words for later actions without words."""
        note = _note(self.out, self.source)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(dump(self.words))

    def states(self) -> States:
        """Every cell, with its chosen values where there are some, and its state from its files."""
        return read_states(self.cells_dir, self.cells)

    def max_parallel(self, num_ranks: int, wished: int | None = None) -> int:
        """How many cells run at a time on this machine."""
        own = self.study.max_parallel or max(1, num_cores() // num_ranks)
        return at_least_1("--max-parallel", own if wished is None else wished)


def open_study(
    source: str, words: list[str], out: str | None, reuses_overrides: bool
) -> StudyFolder:
    """The study `source` with `words`; without words, the noted ones if it `reuses_overrides`.

    Raises:
        ValueError: a wrong word, study or cell.
    """
    out_dir = Path(out or DEFAULT_OUT).expanduser()
    note = _note(out_dir, source)
    if not words and reuses_overrides and note.exists():
        words = [str(word) for word in parse(note.read_text()) or ()]
    study, overrides = load_study(source, words)
    return StudyFolder(source, study, expand(study, overrides), words, out_dir)


def check_time_limits(folder: StudyFolder) -> None:
    """Checks that some cell may run until the time at which the study compares, and some trial
    until trials are judged.

    Raises:
        ValueError: none may, so that nothing could be compared or chosen.
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
    """When the cells end and are compared, and which trials tune them, in lines."""
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


def _note(out: Path, source: str) -> Path:
    return out / find_study(source).stem / "words.yaml"


def at_least_1(name: str, value: int) -> int:
    """`value`.

    Raises:
        ValueError: it is less than 1.
    """
    if value < 1:
        raise ValueError(must_be(name, "at least 1", value))
    return value


def states_with_jobs(folder: StudyFolder) -> tuple[States, dict[str, CellJob], str]:
    """The state of every cell from its files and the queue; jobs; why the queue is not known."""
    try:
        jobs, unknown = read_jobs(folder.cells_dir.absolute()), ""
    except ValueError as error:
        jobs, unknown = {}, str(error)
    states = [(cell, with_job(state, job_of(jobs, cell))) for cell, state in folder.states()]
    return states, jobs, unknown


def job_of(jobs: Mapping[str, CellJob], cell: Cell) -> CellJob | None:
    """The last job of a cell, which may have been submitted before its values were chosen."""
    return jobs.get(cell.digest) or jobs.get(cell.pending_digest)


def render_status(folder: StudyFolder) -> str:
    """A table of all cells, the counts and the time left."""
    states, jobs, unknown = states_with_jobs(folder)
    rows = [[cell.name, s.status, *_facts(s)] for cell, s in states]
    table = as_text(("cell", "state", "val %", "virtual s", "wall s", ""), rows)
    active = [(cell, state) for cell, state in states if state.status in ACTIVE and state.job]
    limits = [job.max_parallel for cell, _ in active if (job := job_of(jobs, cell))]
    max_parallel = max(limits, default=0) or folder.max_parallel(folder.study.ranks)
    left_s = eta_s(active or states, states, max_parallel)
    is_over = all(s.status in ENDED for _, s in states)
    eta = "" if is_over else f"; time left {describe_s(left_s)}"
    what = " once they all run" if any(s.status == "queued" for _, s in states) else ""
    note = f"\nwithout the queue: {unknown}" if unknown else ""
    return (
        f"{table}\n{count_states([s for _, s in states])} of {len(states)} cells{eta}{what}{note}"
    )


def count_states(states: Sequence[CellState]) -> str:
    """`3 done, 1 failed`."""
    found = Counter(state.status for state in states)
    return ", ".join(f"{found[s]} {s}" for s in sorted(found)) or "none"


def eta_s(open_states: States, states: States, max_parallel: int) -> float:
    """Wall seconds until `open_states` are done, at the pace of all finished and running cells."""
    seen = [(cell.config.method, s.result) for cell, s in states if s.result is not None]
    left = [
        (cell, 0.0 if s.status == "failed" else s.progress_frac)
        for cell, s in open_states
        if s.status not in ENDED
    ]
    return remaining_s(left, mean_paces(seen), max_parallel)


def _facts(state: CellState) -> list[str]:
    """Validation accuracy, times and remark of one cell."""
    part = f"{100 * state.progress_frac:.0f} %"
    under_way = part if state.status in ("running", "interrupted") else ""
    remark = state.error or ", ".join(filter(None, (under_way, state.job)))
    result = state.result
    if result is None:
        return ["-", "-", "-", remark]
    scores = result.evaluations["val_accuracy"]
    score = f"{100 * scores[-1]:.2f}" if len(scores) else "-"
    return [score, f"{end_s(result, 'now_s'):.1f}", f"{end_s(result, 'wall_s'):.1f}", remark]
