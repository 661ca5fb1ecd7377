"""`python -m fedgmr_hpc study run|submit|status|report STUDY [--out DIR] [key=value ...]`.

    run      runs what is missing, was cut short or has failed, on this machine
    submit   the same as an array of Slurm jobs, then a job that reports; see submit.py; data.root
             is where the site's `data` is, unless a word says it
    status   every cell: done, queued, running, failed, interrupted, missing, or waiting for the
             trials of what is tuned; the time left
    report   tables, figures and verdicts of what is done

DIR (default results/studies) holds `cells/`, shared by all studies of DIR, and a folder for each
study with its report. With `--dry-run`, `run` and `submit` only say what they would do. Else they
note their `key=value` words there; `status` and `report` without words take them over.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedgmr_hpc.reporting.words import describe_s
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.cost import remaining_s
from fedgmr_hpc.study.folder import (
    DEFAULT_OUT,
    StudyFolder,
    at_least_1,
    check_time_limits,
    count_states,
    describe_limits,
    eta_s,
    open_study,
    render_status,
)
from fedgmr_hpc.study.runner import Queue, known_paces, measure_paces
from fedgmr_hpc.study.states import ENDED
from fedgmr_hpc.study.tuning import States

ACTIONS = ("run", "submit", "status", "report")
LIVE_S, PLAIN_S = 2.0, 30.0  # seconds between two looks at running cells, terminal or not
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Runs an action; returns its exit code: 0 done, 1 a cell failed, 130 interrupted.

    Raises:
        ValueError: a wrong word, study or cell.
    """
    arguments = _make_parser().parse_intermixed_args(argv)
    names = [word for word in arguments.words if "=" not in word]
    if len(names) != 2 or names[0] not in ACTIONS:
        got = " ".join(names) or "nothing"
        raise ValueError(f"study: got {got}, need one of {', '.join(ACTIONS)}, and a study")
    action, source = names
    _check_options(action, arguments)
    words = [word for word in arguments.words if "=" in word]
    if action == "submit":
        from fedgmr_hpc.study.slurm.submit import add_site_data

        words = add_site_data(words, arguments.site)
    folder = open_study(
        source, words, arguments.out, reuses_overrides=action in ("status", "report")
    )
    if action in ("run", "submit"):
        check_time_limits(folder)
    if action == "submit":
        from fedgmr_hpc.study.slurm.submit import main as submit

        return _until_interrupted(folder, action, lambda: submit(folder, arguments))
    if action == "run":
        return _until_interrupted(folder, action, lambda: _run(folder, arguments))
    if action == "status":
        print(render_status(folder))
        return 0
    from fedgmr_hpc.study.report.page import write_report

    print(
        write_report(
            folder.study, folder.cells, folder.cells_dir, folder.report_dir, folder.command
        )
    )
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fedgmr_hpc study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="ACTION STUDY [key=value ...]")
    parser.add_argument("--out", help=f"folder of cells and reports (default: {DEFAULT_OUT})")
    begin = parser.add_argument_group("run and submit")
    begin.add_argument("--ranks", type=int, help="ranks of a cell, the server included")
    begin.add_argument(
        "--max-parallel", "--side-by-side", type=int, metavar="N", help="cells at a time"
    )
    begin.add_argument(
        "--dry-run", action="store_true", help="print the plan, or what sbatch would be given"
    )
    submit = parser.add_argument_group("submit")
    submit.add_argument("--site", help="a site's file, or its name in configs/sites")
    submit.add_argument(
        "--nodes", type=int, help="of a cell (default: one, or a GPU for each client rank)"
    )
    submit.add_argument("--local", action="store_true", help="run the jobs on this machine")
    return parser


def _check_options(action: str, arguments: argparse.Namespace) -> None:
    """Refuses what an action does not take, rather than doing something else than was meant."""
    takers = {
        **dict.fromkeys(("ranks", "max_parallel", "dry_run"), ("run", "submit")),
        **dict.fromkeys(("site", "nodes", "local"), ("submit",)),
    }
    for name, actions in takers.items():
        if getattr(arguments, name) not in (None, False) and action not in actions:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option}: got it with {action}, allowed with {' and '.join(actions)}"
            )


def _until_interrupted(folder: StudyFolder, action: str, work: Callable[[], int]) -> int:
    try:
        return work()
    except KeyboardInterrupt:
        print(f"interrupted; `{folder.command(action)}` goes on", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(folder: StudyFolder, arguments: argparse.Namespace) -> int:
    ranks, is_dry = arguments.ranks, arguments.dry_run
    num_ranks = at_least_1("--ranks", folder.study.ranks if ranks is None else ranks)
    max_parallel = folder.max_parallel(num_ranks, arguments.max_parallel)
    if not is_dry:
        folder.save_overrides()
        folder.cells_dir.mkdir(parents=True, exist_ok=True)
    states = folder.states()
    todo = [cell for cell, state in states if state.status not in ENDED]
    print(_plan(folder, states, num_ranks, max_parallel), flush=True)
    if is_dry:
        print("\n".join(f"  {state.status}: {cell.name}" for cell, state in states))
    if todo:
        print(
            f"estimate: {_estimate(folder, states, num_ranks, max_parallel, not is_dry)}",
            flush=True,
        )
    if is_dry:
        return 0
    _run_all(folder, num_ranks, max_parallel)
    print(render_status(folder))
    print(f"next: {folder.command('report')}")
    return 0 if all(state.status in ENDED for _, state in folder.states()) else 1


def _run_all(folder: StudyFolder, num_ranks: int, max_parallel: int) -> None:
    """Runs what can run, then what waited for that, each cell once."""
    begun: set[str] = set()
    while todo := [
        cell
        for cell, state in folder.states()
        if state.status not in ENDED and cell.tuning is None and cell.digest not in begun
    ]:
        begun |= {cell.digest for cell in todo}
        Queue(folder.cells_dir, num_ranks, max_parallel, _Watch(folder, max_parallel).see).run(todo)


def _plan(folder: StudyFolder, states: States, num_ranks: int, max_parallel: int) -> str:
    """What there is, what is done and how the rest runs."""
    varied = [f"  {key}: {_values(folder.cells, key)}" for key in folder.study.varied()]
    found = count_states([state for _, state in states])
    how = f"{num_ranks} rank{'s' * (num_ranks > 1)} a cell, {max_parallel} at a time"
    head = f"{folder.study.title}: {len(folder.cells)} cells ({found}), {how}"
    return "\n".join([head, *varied, *describe_limits(folder), f"  results: {folder.cells_dir}"])


def _values(cells: Sequence[Cell], key: str) -> str:
    values = dict.fromkeys(str(cell.labels[key]) for cell in cells if key in cell.labels)
    return ", ".join(values)


def _estimate(
    folder: StudyFolder, states: States, num_ranks: int, max_parallel: int, measures: bool
) -> str:
    """Wall time of the missing cells, and what it rests on; short runs where it `measures`."""
    todo = [cell for cell, state in states if state.status not in ENDED]
    paces = dict(known_paces(states))
    unknown = [cell for cell in todo if cell.config.method not in paces]
    source = "finished cells of this study"
    if measures and unknown and len(todo) > max_parallel:
        measured = measure_paces(unknown, num_ranks, max_parallel)
        source = f"a short timed run of {', '.join(measured)}" + (f"; {source}" if paces else "")
        paces |= measured
    lacking = ", ".join(dict.fromkeys(m for cell in todo if (m := cell.config.method) not in paces))
    if not paces:
        return f"unknown: no pace of {lacking} is measured yet; the first cells of a run give it"
    if lacking:
        source += f"; no pace of {lacking} is measured yet, the mean stands in"
    left_s = remaining_s([(cell, 0.0) for cell in todo], paces, max_parallel)
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left_s))
    return f"{describe_s(left_s)} for {len(todo)} cells, done about {end} (from {source})"


@dataclass
class _Watch:
    """Prints a line when cells end, and how far the rest is."""

    folder: StudyFolder
    max_parallel: int
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
        states = self.folder.states()
        left = eta_s(states, states, self.max_parallel)
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
