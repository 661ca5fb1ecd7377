"""`python -m fedgmr_hpc study run|status|report STUDY [--out DIR] [key=value ...]`.

DIR (default results/studies) holds `cells/`, shared by all studies of DIR, and a folder for each
study with its report. `run` notes its `key=value` words there; `status` and `report` without words
take them over.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.cost import describe_s, mean_paces, remaining_s
from fedgmr_hpc.study.runner import Queue, known_paces, probe
from fedgmr_hpc.study.series import end_s
from fedgmr_hpc.study.states import CellState, read_state
from fedgmr_hpc.study.studyfile import StudyFile, find_study, load_study
from fedgmr_hpc.study.tables import as_text

ACTIONS = ("run", "status", "report")
DEFAULT_OUT = "results/studies"
LIVE_S, PLAIN_S = 2.0, 30.0  # seconds between two looks at running cells, terminal or not
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Place:
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

    def command(self, action: str) -> str:
        """What to type for `action` on this study."""
        words = ["python", "-m", "fedgmr_hpc", "study", action, self.source]
        out = [] if self.out == Path(DEFAULT_OUT) else ["--out", str(self.out)]
        return shlex.join([*words, *out, *self.words])


def main(words: Sequence[str], out: str | None, ranks: int | None, side_by_side: int | None) -> int:
    """Runs an action; returns its exit code: 0 done, 1 a cell failed, 130 interrupted.

    Raises:
        ValueError: a wrong word, study or cell.
    """
    names = [word for word in words if "=" not in word]
    if len(names) != 2 or names[0] not in ACTIONS:
        got = " ".join(names) or "nothing"
        raise ValueError(f"study: got {got}, need one of {', '.join(ACTIONS)}, and a study")
    action, source = names
    place = _open(source, [word for word in words if "=" in word], out, is_run=action == "run")
    if action == "run":
        return _run(place, ranks, side_by_side)
    if action == "status":
        print(render_status(place))
        return 0
    from fedgmr_hpc.study.studyreport import write_report

    print(write_report(place.study, place.cells, place.cells_dir, place.report_dir, place.command))
    return 0


def _open(source: str, words: list[str], out: str | None, is_run: bool) -> Place:
    out_dir = Path(out or DEFAULT_OUT).expanduser()
    note = out_dir / find_study(source).stem / "words.yaml"
    if not words and not is_run and note.exists():
        words = [str(word) for word in yaml.safe_load(note.read_text()) or ()]
    study, overrides = load_study(source, words)
    place = Place(source, study, expand(study, overrides), words, out_dir)
    if is_run:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(yaml.safe_dump(words))
    return place


def _run(place: Place, ranks: int | None, side_by_side: int | None) -> int:
    num_ranks = _at_least_1("--ranks", ranks if ranks is not None else place.study.ranks)
    wished = side_by_side if side_by_side is not None else place.study.side_by_side
    abreast = _at_least_1("--side-by-side", wished or max(1, _num_cores() // num_ranks))
    place.cells_dir.mkdir(parents=True, exist_ok=True)
    states = _states(place)
    todo = [cell for cell, state in states if state.status != "done"]
    print(_plan(place, states, num_ranks, abreast), flush=True)
    try:
        if todo:
            print(f"estimate: {_estimate(place, todo, num_ranks, abreast)}", flush=True)
        watch = _Watch(place, abreast)
        all_done = Queue(place.cells_dir, num_ranks, abreast, watch.see).run(todo)
    except KeyboardInterrupt:
        print(f"interrupted; `{place.command('run')}` goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(render_status(place))
    print(f"next: {place.command('report')}")
    return 0 if all_done else 1


def _at_least_1(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: got {value}, allowed: at least 1")
    return value


def _plan(place: Place, states: list[tuple[Cell, CellState]], num_ranks: int, abreast: int) -> str:
    """What there is, what is done and how the rest runs."""
    varied = [f"  {key}: {_values(place.cells, key)}" for key in place.study.varied()]
    counts = _counts([state for _, state in states])
    how = f"{num_ranks} rank{'s' * (num_ranks > 1)} a cell, {abreast} cells side by side"
    head = f"{place.study.title}: {len(place.cells)} cells ({counts}), {how}"
    return "\n".join([head, *varied, f"  results: {place.cells_dir}"])


def _values(cells: Sequence[Cell], key: str) -> str:
    values = dict.fromkeys(str(cell.labels[key]) for cell in cells if key in cell.labels)
    return ", ".join(values)


def _estimate(place: Place, todo: Sequence[Cell], num_ranks: int, abreast: int) -> str:
    """Wall time of the missing cells, and what it rests on."""
    paces = dict(known_paces(place.cells_dir, place.cells))
    unknown = [cell for cell in todo if cell.config.method not in paces]
    source = "finished cells of this study"
    if unknown and len(todo) > abreast:
        measured = probe(unknown, num_ranks, abreast)
        source = f"a short timed run of {', '.join(measured)}" + (f"; {source}" if paces else "")
        paces |= measured
    if not paces:
        return "unknown until cells are under way"
    left_s = remaining_s([(cell, 0.0) for cell in todo], paces, abreast)
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left_s))
    return f"{describe_s(left_s)} for {len(todo)} cells, done about {end} (from {source})"


def _states(place: Place) -> list[tuple[Cell, CellState]]:
    return [(cell, read_state(place.cells_dir, cell)) for cell in place.cells]


def _counts(states: Sequence[CellState]) -> str:
    counts = Counter(state.status for state in states)
    return ", ".join(f"{counts[s]} {s}" for s in sorted(counts)) or "none"


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _eta_s(place: Place, states: list[tuple[Cell, CellState]], abreast: int) -> float:
    """Wall seconds until every cell is done, at the pace of the finished and running ones."""
    seen = [(cell.config.method, s.result) for cell, s in states if s.result is not None]
    left = [
        (cell, s.progress_frac if s.status == "running" else 0.0)
        for cell, s in states
        if s.status != "done"
    ]
    return remaining_s(left, mean_paces(seen), abreast)


def render_status(place: Place) -> str:
    """A table of all cells, the counts and the time left."""
    states = _states(place)
    rows = [[cell.name, s.status, *_facts(s)] for cell, s in states]
    table = as_text(("cell", "state", "val %", "virtual s", "wall s", ""), rows)
    abreast = place.study.side_by_side or max(1, _num_cores() // place.study.ranks)
    is_over = all(s.status == "done" for _, s in states)
    eta = "" if is_over else f"; time left {describe_s(_eta_s(place, states, abreast))}"
    return f"{table}\n{_counts([s for _, s in states])} of {len(states)} cells{eta}"


def _facts(state: CellState) -> list[str]:
    """Validation accuracy, times and remark of one cell."""
    remark = state.error or (
        f"{100 * state.progress_frac:.0f} %" if state.status in ("running", "interrupted") else ""
    )
    result = state.result
    if result is None:
        return ["-", "-", "-", remark]
    scores = result.evaluations["val_accuracy"]
    score = f"{100 * scores[-1]:.2f}" if len(scores) else "-"
    return [score, f"{end_s(result, 'now_s'):.1f}", f"{end_s(result, 'wall_s'):.1f}", remark]


@dataclass
class _Watch:
    """Prints a line when cells end, and how far the rest is."""

    place: Place
    abreast: int
    num_ended: int = 0
    looked_s: float = field(default_factory=time.monotonic)

    def see(self, queue: Queue) -> None:
        """Called at every turn of the queue."""
        live = sys.stderr.isatty()
        ended = len(queue.done) + len(queue.failed)
        waited_s = time.monotonic() - self.looked_s
        if ended > self.num_ended or waited_s >= (LIVE_S if live else PLAIN_S):
            self.num_ended, self.looked_s = ended, time.monotonic()
            line = self._line(queue)
            sys.stderr.write(f"\r\x1b[K{line}" if live else f"{line}\n")
            if live and not (queue.waiting or queue.jobs):
                sys.stderr.write("\n")
            sys.stderr.flush()

    def _line(self, queue: Queue) -> str:
        states = _states(self.place)
        left = _eta_s(self.place, states, self.abreast)
        running = [
            f"{cell.slug} {100 * state.progress_frac:.0f} %"
            for cell, state in states
            if state.status == "running"
        ]
        num_done = sum(state.status == "done" for _, state in states)
        now = time.strftime("%H:%M:%S")
        return (
            f"{now} {num_done}/{len(states)} done, {len(queue.failed)} failed, "
            f"{len(running)} running, ETA {describe_s(left)} | {', '.join(running)}"
        )
