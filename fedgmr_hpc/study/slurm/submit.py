"""`study submit`: what is left of a study as one array of jobs, then a job that reports.

One task of the array is one cell (job_task.py). submitit writes the text for sbatch (plan.py),
carries the cells to the jobs and keeps what they print in cells/.jobs, where nobody else may write,
since what is pickled there runs as it is read. Cells that are done, queued or running are left
alone (job_states.py). More cells than the cluster lets an array have go in several, one after the
other. Where something is tuned, an array of the cells that wait for their values follows the array
of their trials; each of its tasks reads what the trials have chosen. `--dry-run` shows the same
texts, `--local` runs the same tasks by submitit on this machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from submitit import Job, LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError

from fedgmr_hpc.config.overrides import leaves, only
from fedgmr_hpc.config.sites import Site, job_values, load_site
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.folder import (
    ACTIVE,
    StudyFolder,
    count_states,
    describe_limits,
    job_of,
    render_status,
    states_with_jobs,
)
from fedgmr_hpc.study.job_states import (
    CellJob,
    Submission,
    lock_pickles,
    most_tasks,
    write_submission,
)
from fedgmr_hpc.study.running.devices import VISIBLE, dealt, visible_devices
from fedgmr_hpc.study.running.runner import GRACE_S
from fedgmr_hpc.study.slurm.job_task import CellTask, ReportTask
from fedgmr_hpc.study.slurm.plan import Plan, make_plan, render_scripts
from fedgmr_hpc.study.slurm.sbatch_text import PYTHON
from fedgmr_hpc.study.states import ENDED
from fedgmr_hpc.study.tuning import States
from fedgmr_hpc.transport.termination import handling, held_back, interrupt

YEAR_MIN = 365 * 24 * 60
POLL_S = 0.2
SKIPPED = (*ENDED, *ACTIVE)


def main(folder: StudyFolder, arguments: argparse.Namespace) -> int:
    """Submit, show or run here what is neither done nor queued nor running; return the exit code,
    1 where nothing else is left than cells whose trials have all failed.

    Raises:
        ValueError: wrong options, no Slurm, or it does not take the jobs.
    """
    needs_slurm = not (arguments.dry_run or arguments.local)
    if needs_slurm:
        _check_slurm()
    states, jobs, unknown = states_with_jobs(folder)
    if unknown and needs_slurm:
        raise ValueError(f"study submit: what is in the queue is not known: {unknown}")
    todo = {cell.digest: cell for cell, state in states if state.status not in SKIPPED}
    ready = [cell for cell in todo.values() if cell.tuning is None]
    waiting = [cell for cell, state in states if state.status == "waiting"]
    untunable = [(cell, s) for cell, s in states if cell.tuning and s.status == "failed"]
    most = len(states) if arguments.local else most_tasks()
    parts = [split_cells(cells, most) for cells in (ready, waiting)]
    plans = [make_plan(folder, part, arguments, n) for n, part in enumerate(sum(parts, []))]
    print(_describe(folder, states, len(ready) + len(waiting)), file=sys.stderr, flush=True)
    for cell, state in untunable:
        print(f"  cannot be submitted: {cell.name}: {state.error}", file=sys.stderr)
    if not plans:
        return 1 if untunable and not arguments.dry_run else 0
    if max(map(len, parts)) > 1:
        print(f"  in parts: an array has at most {most} tasks (MaxArraySize)", file=sys.stderr)
    if waiting:  # each array comes after those before it, so what holds for the first one does
        first = len(parts[0])
        plans[first] = replace(plans[first], after=_awaited(states, jobs))
    for name, text in plans[0].for_sbatch().items():
        print(f"  with {name}={text} for sbatch", file=sys.stderr)
    if arguments.dry_run:
        print(*render_scripts(plans), sep="", end="")
        return 0
    folder.save_overrides()
    return _run_here(folder, plans) if arguments.local else _submit_all(folder, plans)


def split_cells(cells: Sequence[Cell], most: int) -> list[Sequence[Cell]]:
    """Split `cells`, in order, into as few parts of at most `most` as possible."""
    return [cells[start : start + most] for start in range(0, len(cells), most)]


def _awaited(states: States, jobs: Mapping[str, CellJob]) -> tuple[str, ...]:
    """Return the ids of the jobs that have trials in hand."""
    names = [
        job.name.partition("_")[0]
        for cell, state in states
        if cell.is_trial and state.status in ACTIVE and (job := job_of(jobs, cell))
    ]
    return tuple(dict.fromkeys(names))


def add_site(words: list[str], source: str | None) -> list[str]:
    """Return `words`, and where the site keeps the data unless they say it, and its plug-ins.

    Raises:
        ValueError: a wrong site, or plug-ins that are no list.
    """
    if source is None:
        return words
    site = load_site(source)
    root = job_values(site).get("FEDGMR_DATA")
    says_it = any(word.startswith("data.root=") for word in words)
    return [*_with_plugins(words, site), *([f"data.root={root}"] if root and not says_it else [])]


def _with_plugins(words: list[str], site: Site) -> list[str]:
    """Return `words` that name the site's plug-ins, too, as its jobs do."""
    if not site.plugins:
        return words
    named = only("plugins", words)
    plugins = [*site.plugins, *leaves(named).get("plugins", [])]
    others = [word for word in words if word not in named]
    return [f"plugins={json.dumps(list(dict.fromkeys(plugins)), ensure_ascii=False)}", *others]


def _check_slurm() -> None:
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if missing:
        raise ValueError(
            f"study submit: {missing[0]} is not on PATH: submit on a machine of the cluster, or "
            "use --local (runs the cells here) or --dry-run (shows what would be submitted)"
        )


def _describe(folder: StudyFolder, states: States, num_todo: int) -> str:
    """Return how many cells there are, and which are left alone, and why."""
    found = count_states([state for _, state in states])
    alone = [
        f"  left alone: {cell.name}: {state.status}{state.job and ', ' + state.job}"
        for cell, state in states
        if state.status in SKIPPED
    ]
    head = f"{folder.study.title}: {len(states)} cells ({found}), {num_todo} to submit"
    return "\n".join([head, *describe_limits(folder), *alone])


def _submit_all(folder: StudyFolder, plans: Sequence[Plan]) -> int:
    """Submit the arrays, each after those before it, and their report.

    Raises:
        ValueError: Slurm does not take them; says why, and what it has taken.
    """
    os.environ.update(plans[0].for_sbatch())
    jobs: list[str] = []
    with held_back():
        for plan in plans:
            jobs.append(_submit_cells(replace(plan, after=(*plan.after, *jobs))))
        last = plans[-1]
        after = _submit(last.report_folder, last.report_settings(jobs), [ReportTask(last.report)])
    print(f"job {after}: the report, after them\nnext: {folder.command('status')}")
    return 0


def _submit_cells(plan: Plan) -> str:
    """Submit the cells' array; return its id."""
    tasks = [CellTask(cell, plan.cells_dir, plan.num_ranks, plan.scripts) for cell in plan.cells]
    digests = tuple(cell.digest for cell in plan.cells)
    write_submission(Submission(plan.folder, digests, plan.max_parallel))
    try:
        job = _submit(plan.folder, plan.array_settings(), tasks)
    except ValueError:
        shutil.rmtree(plan.folder)
        raise
    after = f", after {' and '.join(plan.after)}" if plan.after else ""
    print(
        f"job {job}: {len(tasks)} cells, {plan.max_parallel} at a time{after}; logs: {plan.folder}"
    )
    return job


def _submit(folder: Path, settings: Mapping[str, Any], tasks: Sequence[Any]) -> str:
    """Submit an array, or a job where there is one task; return its id."""
    executor = SlurmExecutor(folder, python=PYTHON)
    executor.update_parameters(**settings)
    try:
        with redirect_stderr(io.StringIO()):  # where submitit shows the error, too
            jobs = executor.submit_array(tasks)
    except FailedJobError as error:
        raise ValueError(str(error).strip() or "sbatch: failed without a word") from None
    lock_pickles(folder)
    return str(jobs[0].job_id).partition("_")[0]


def _run_here(folder: StudyFolder, plans: Sequence[Plan]) -> int:
    """Run the same tasks on this machine, `max_parallel` at a time, then the report."""
    os.environ.update(plans[0].variables)
    print(f"meanwhile: {folder.command('status')}", flush=True)
    for plan in plans:
        _run_cells_here(plan)
    _run_locally(plans[-1].report_folder, [ReportTask(plans[-1].report)], 1)
    states = folder.states()
    print(f"{render_status(folder)}\nreport: {folder.report_dir}")
    return 0 if all(state.status in ENDED for _, state in states) else 1


def _run_cells_here(plan: Plan) -> None:
    tasks = tasks_here(plan)
    print(f"{len(tasks)} cells, {plan.max_parallel} at a time; logs: {plan.folder}", flush=True)
    _run_locally(plan.folder, tasks, plan.max_parallel)


def tasks_here(plan: Plan) -> list[CellTask]:
    """Return the tasks of a plan on this machine, to which its GPUs are dealt in turn."""
    visible, devices = os.environ.get(VISIBLE), visible_devices(os.environ)
    return [
        CellTask(
            cell,
            plan.cells_dir,
            plan.num_ranks,
            None,
            dealt(devices, plan.num_ranks, index).get(VISIBLE, visible),
        )
        for index, cell in enumerate(plan.cells)
    ]


def _run_locally(folder: Path, tasks: Sequence[Any], max_parallel: int) -> None:
    """Run `tasks` by submitit.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, once the jobs were asked to end.
    """
    executor = LocalExecutor(folder)
    executor.update_parameters(timeout_min=YEAR_MIN, stderr_to_stdout=True)
    waiting = list(tasks)
    running: list[Job[Any]] = []
    try:
        with handling(signal.SIGTERM, interrupt):
            while waiting or running:
                running = [job for job in running if not job.done()]
                if waiting and len(running) < max_parallel:
                    with handling(signal.SIGINT, signal.SIG_IGN):  # Ctrl-C is for this process
                        running.append(executor.submit(waiting.pop(0)))
                    lock_pickles(folder)
                else:
                    time.sleep(POLL_S)
    except KeyboardInterrupt:
        _end(running)
        raise


def _end(jobs: Sequence[Job[Any]]) -> None:
    """Ask local jobs to checkpoint and end, again and again, since some may just begin."""
    end_s = time.monotonic() + GRACE_S
    while (left := [job for job in jobs if not job.done()]) and time.monotonic() < end_s:
        for job in left:
            os.kill(int(job.job_id), signal.SIGTERM)  # the process that looks after it
        time.sleep(1.0)
