"""A study on this machine: plan, estimate, and its cells in turn, several at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedgmr_hpc.reporting.live import LiveText
from fedgmr_hpc.reporting.words import describe_s
from fedgmr_hpc.results.series import measure_run
from fedgmr_hpc.storage.run_files import output_path
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.cost import remaining_s
from fedgmr_hpc.study.folder import (
    StudyFolder,
    at_least_1,
    count_states,
    describe_limits,
    eta_s,
    known_paces,
    render_status,
)
from fedgmr_hpc.study.running.runner import Queue
from fedgmr_hpc.study.states import ENDED, CellState, read_state
from fedgmr_hpc.study.study_file import StudyFile
from fedgmr_hpc.study.tuning import States

LIVE_S, PLAIN_S = 2.0, 30.0  # seconds between two looks at running cells, terminal or not


def run_study(
    folder: StudyFolder, ranks: int | None, max_parallel: int | None, is_dry: bool
) -> int:
    """Run what is missing, was cut short or has failed.

    Args:
        ranks: of a cell, the server included; None for the study's own number.
        max_parallel: cells at a time; None for the study's own number, or what the cores allow.
        is_dry: only say what would be done.

    Returns:
        0 where every cell is done, 1 where one failed.
    """
    num_ranks = at_least_1("--ranks", folder.study.ranks if ranks is None else ranks)
    max_parallel = folder.max_parallel(num_ranks, max_parallel)
    if not is_dry:
        folder.save_overrides()
        folder.cells_dir.mkdir(parents=True, exist_ok=True)
    states = folder.states()
    todo = [cell for cell, state in states if state.status not in ENDED]
    print(_plan(folder, states, num_ranks, max_parallel), flush=True)
    if is_dry:
        print("\n".join(f"  {state.status}: {cell.name}" for cell, state in states))
    if todo:
        print(f"estimate: {_estimate(states, max_parallel)}", flush=True)
    if is_dry:
        return 0
    _run_all(folder, num_ranks, max_parallel)
    print(render_status(folder))
    print(f"next: {folder.command('report')}")
    return 0 if all(state.status in ENDED for _, state in folder.states()) else 1


def _run_all(folder: StudyFolder, num_ranks: int, max_parallel: int) -> None:
    """Run each cell once, those that wait for trials when these have ended."""
    begun: set[str] = set()

    def ready() -> list[Cell]:
        """Return cells that can begin, and have not."""
        watch.states = folder.states()
        todo = [
            cell
            for cell, state in watch.states
            if _is_open(state) and cell.tuning is None and cell.digest not in begun
        ]
        begun.update(cell.digest for cell in todo)
        return todo

    with LiveText(live_interval_s=LIVE_S, plain_interval_s=PLAIN_S) as live:
        live.wait()
        watch = _Watch(folder.cells_dir, [], max_parallel, live, folder.study)
        while todo := ready():
            at_a_time = (num_ranks, max_parallel, watch.see)
            Queue(folder.cells_dir, *at_a_time, more=ready, say=live.print).run(todo)


def _is_open(state: CellState) -> bool:
    """Return whether a cell has not ended, or its process has not been seen off, as an orphan's."""
    return state.status not in ENDED or output_path(state.path).exists()


def _plan(folder: StudyFolder, states: States, num_ranks: int, max_parallel: int) -> str:
    """Return what there is, what is done, and how the rest will run."""
    varied = [f"  {key}: {_values(folder.cells, key)}" for key in folder.study.varied()]
    found = count_states([state for _, state in states])
    how = f"{num_ranks} rank{'s' * (num_ranks > 1)} a cell, {max_parallel} at a time"
    head = f"{folder.study.title}: {len(folder.cells)} cells ({found}), {how}"
    return "\n".join([head, *varied, *describe_limits(folder), f"  results: {folder.cells_dir}"])


def _values(cells: Sequence[Cell], key: str) -> str:
    values = dict.fromkeys(str(cell.labels[key]) for cell in cells if key in cell.labels)
    return ", ".join(values)


def _estimate(states: States, max_parallel: int) -> str:
    """Return the wall time of the missing cells and its source."""
    todo = [cell for cell, state in states if state.status not in ENDED]
    paces = known_paces(states)
    source = "results of this study"
    lacking = ", ".join(dict.fromkeys(m for cell in todo if (m := cell.config.method) not in paces))
    if not paces:
        return f"unknown: no pace of {lacking} is measured yet; the first rounds of a run give it"
    if lacking:
        source += f"; no pace of {lacking} is measured yet, the mean stands in"
    left_s = remaining_s([(cell, 0.0) for cell in todo], paces, max_parallel)
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left_s))
    return f"{describe_s(left_s)} for {len(todo)} cells, done about {end} (from {source})"


@dataclass
class _Watch:
    """Show when cells end, and how far the others are.

    Attributes:
        states: of all cells. Those that have ended stay as they are, and those that wait for trials
            go on waiting until all are read, so a look reads neither: it must not cost more than
            the cells do.
        num_ended: cells when a line was shown last.
        seen: digests of done cells of which it is known whether they ended early.
        told: rows, and whether their trials, of which an early end has been told.
    """

    folder: Path
    states: States
    max_parallel: int
    live: LiveText
    study: StudyFile
    num_ended: int = 0
    seen: set[str] = field(default_factory=set)
    told: set[tuple[str, bool]] = field(default_factory=set)

    def see(self, queue: Queue) -> None:
        """Show a line if it is time for one; the queue calls this at every turn."""
        ended = len(queue.done) + len(queue.failed)
        self._tell_early_ends(queue.done)
        if ended != self.num_ended or self.live.is_due:
            self.num_ended = ended
            self.live.show(self._line(queue))

    def _line(self, queue: Queue) -> str:
        self.states = states = [(cell, self._now(cell, state)) for cell, state in self.states]
        left = eta_s(states, states, self.max_parallel)
        running = [
            f"{cell.slug} {100 * state.progress_frac:.0f} %"
            for cell, state in states
            if state.status == "running"
        ]
        num_done = sum(state.status == "done" for _, state in states)
        return (
            f"{num_done}/{len(states)} done, {len(queue.failed)} failed, "
            f"{len(running)} running, ETA {describe_s(left)} | {', '.join(running)}"
        )

    def _now(self, cell: Cell, state: CellState) -> CellState:
        is_settled = state.status in ENDED or cell.tuning is not None
        return state if is_settled else read_state(self.folder, cell)

    def _tell_early_ends(self, cells: Sequence[Cell]) -> None:
        """Say once of each row, and of its trials, that a run has ended before it is compared."""
        for cell in cells:
            if cell.digest in self.seen:
                continue
            self.seen.add(cell.digest)
            key = (cell.row, cell.is_trial)
            if key not in self.told and (warning := early_end(self.study, self.folder, cell)):
                self.told.add(key)
                self.live.print(f"fedgmr_hpc: warning: {warning}")


def early_end(study: StudyFile, folder: Path, cell: Cell) -> str:
    """Return what a run lacks that has ended before it is compared; "" where nothing."""
    state = read_state(folder, cell)
    if state.status != "done" or state.result is None:
        return ""
    run = measure_run(state.result, cell.row)
    times = study.judged_at_s(cell.is_trial).items()
    missing = [(name, at_s) for name, at_s in times if not run.covers(at_s)]
    if not missing:
        return ""
    name, at_s = missing[0]
    end_s = run.times_s[-1] if len(run.times_s) else 0.0
    return (
        f"{cell.slug} ended at {end_s:g} s (run.max_rounds {cell.config.run.max_rounds}), before "
        f"{name}, {at_s:g} s: it has no value there"
    )
