"""`study submit`: what is left of a study as one array of jobs, then a job that reports.

One task of the array is one cell (jobtask.py). submitit writes the text for sbatch, carries the
cells to the jobs and keeps what they print in cells/.jobs; slurm/common.sh enters the site. Cells
that are done, queued or running are left alone (jobstates.py). Where something is tuned, an array
of the cells that wait for their values follows the array of their trials; each of its tasks reads
what the trials have chosen. `--dry-run` shows the same texts, `--local` runs the same tasks by
submitit on this machine.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit import Job, LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

from fedgmr_hpc.methods import configs_dir
from fedgmr_hpc.sites import Site, job_values, load_site
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.jobstates import CellJob, Submission, next_folder, write_submission
from fedgmr_hpc.study.jobtask import CellTask, ReportTask
from fedgmr_hpc.study.place import (
    IN_HAND,
    Place,
    at_least_1,
    counts,
    describe_ends,
    job_of,
    render_status,
    states_with_jobs,
)
from fedgmr_hpc.study.runner import GRACE_S, handling, interrupt
from fedgmr_hpc.study.states import ENDED
from fedgmr_hpc.study.tuning import States

SIGNAL_S = 300  # from Slurm's warning to the end of a job's time
AT_MOST = 32  # cells at a time in a cluster, where nobody says
MOST_TASKS = 1000  # of an array; Slurm's own limit (MaxArraySize) is 1001 unless a site sets it
YEAR_MIN = 365 * 24 * 60
POLL_S = 0.2
PYTHON = "exec python"  # takes the batch script's place, so that signals for it arrive
LEFT_ALONE = (*ENDED, *IN_HAND)


@dataclass(frozen=True)
class Plan:
    """What is submitted, and with which facts.

    Args:
        name: of the study; its jobs are called after it.
        cells: the array's, in order.
        folder: of this submission, for submitit's files; not there yet.
        report: what Python is given to report.
        num_nodes: of each cell.
        at_most: cells at a time.
        scripts: the folder slurm/.
        variables: of a job's environment.
        after: ids of jobs that its cells wait for.
    """

    name: str
    cells: tuple[Cell, ...]
    cells_dir: Path
    folder: Path
    report: tuple[str, ...]
    num_ranks: int
    num_nodes: int
    at_most: int
    site: Site
    scripts: Path
    variables: Mapping[str, str]
    after: tuple[str, ...] = ()

    @property
    def report_folder(self) -> Path:
        """For submitit's files of the report job."""
        return self.folder / "report"

    def array_settings(self) -> dict[str, Any]:
        """What submitit is told for the cells."""
        asked = {"ntasks": self.num_ranks, "requeue": True, "signal": f"B:USR1@{SIGNAL_S}"}
        if self.after:
            asked["dependency"] = _afterany(self.after)
        return {
            **self._settings(self.name),
            "nodes": self.num_nodes,
            "cpus_per_task": 1,
            "gpus_per_node": self.site.gpus_per_node,
            "array_parallelism": self.at_most,
            "additional_parameters": asked,
        }

    def report_settings(self, after: Sequence[str]) -> dict[str, Any]:
        """What submitit is told for the report; `after`: the ids of the cells' jobs."""
        asked = {"ntasks": 1, "dependency": _afterany(after)}
        return {**self._settings(f"{self.name}-report"), "additional_parameters": asked}

    def for_sbatch(self) -> dict[str, str]:
        """Options of the site that sbatch reads from its environment, before those in the text."""
        return {key: text for key, text in self.variables.items() if key.startswith("SBATCH_")}

    def _settings(self, name: str) -> dict[str, Any]:
        exports = [f"export {key}={shlex.quote(text)}" for key, text in self.variables.items()]
        source = f"source {shlex.quote(str(self.scripts / 'common.sh'))}"
        keys = ("partition", "account", "qos", "constraint", "mem")
        return {
            "job_name": name,
            **{key: getattr(self.site, key) for key in keys},
            "time": self.site.time_limit,
            "wckey": None,
            "stderr_to_stdout": True,
            "use_srun": False,
            # USR1 must not end Python before it listens
            "setup": [*exports, source, "enter_site", "trap '' USR1"],
        }


def main(place: Place, arguments: argparse.Namespace) -> int:
    """Submits, shows or runs here what nobody has done or has in hand; returns the exit code.

    Raises:
        ValueError: wrong options, no Slurm, or it does not take the jobs.
    """
    needs_slurm = not (arguments.dry_run or arguments.local)
    if needs_slurm:
        _check_slurm()
    states, jobs, unknown = states_with_jobs(place)
    if unknown and needs_slurm:
        raise ValueError(f"study submit: what is in the queue is not known: {unknown}")
    todo = {cell.digest: cell for cell, state in states if state.status not in LEFT_ALONE}
    ready = [cell for cell in todo.values() if cell.tuning is None]
    waiting = [cell for cell, state in states if state.status == "waiting"]
    plans = [
        make_plan(place, cells[:MOST_TASKS], arguments, number)
        for number, cells in enumerate(filter(None, (ready, waiting)))
    ]
    print(_describe(place, states, len(todo)), file=sys.stderr, flush=True)
    if not plans:
        return 0
    plans[-1] = replace(plans[-1], after=_awaited(states, jobs) if waiting else ())
    for name, text in plans[0].for_sbatch().items():
        print(f"  with {name}={text} for sbatch", file=sys.stderr)
    if arguments.dry_run:
        print(*render_texts(plans), sep="", end="")
        return 0
    place.note_words()
    return _run_here(place, plans) if arguments.local else _submit_all(place, plans)


def _awaited(states: States, jobs: Mapping[str, CellJob]) -> tuple[str, ...]:
    """The ids of the jobs that have trials in hand."""
    names = [
        job.name.partition("_")[0]
        for cell, state in states
        if cell.is_trial and state.status in IN_HAND and (job := job_of(jobs, cell))
    ]
    return tuple(dict.fromkeys(names))


def add_site_data(words: list[str], source: str | None) -> list[str]:
    """`words`, and where the site keeps the data unless they say it.

    Raises:
        ValueError: a wrong site.
    """
    root = job_values(load_site(source)).get("FEDGMR_DATA") if source else None
    says_it = any(word.startswith("data.root=") for word in words)
    return [*words, f"data.root={root}"] if root and not says_it else words


def make_plan(
    place: Place, cells: Sequence[Cell], arguments: argparse.Namespace, number: int = 0
) -> Plan:
    """What is submitted for `cells` as the array `number` of several, with the command's options.

    Raises:
        ValueError: wrong options, or no job scripts.
    """
    site = load_site(arguments.site) if arguments.site else Site()
    wished = arguments.ranks
    num_ranks = at_least_1("--ranks", place.study.ranks if wished is None else wished)
    nodes = nodes_for(site, num_ranks) if arguments.nodes is None else arguments.nodes
    abreast = place.abreast(num_ranks, arguments.side_by_side)
    if not arguments.local and arguments.side_by_side is None:
        abreast = place.study.side_by_side or AT_MOST
    cells_dir = place.cells_dir.absolute()
    return Plan(
        name=place.report_dir.name,
        cells=tuple(cells),
        cells_dir=cells_dir,
        folder=next_folder(cells_dir, number),
        report=tuple(place.command_words("report")),
        num_ranks=num_ranks,
        num_nodes=at_least_1("--nodes", nodes),
        at_most=abreast,
        site=site,
        scripts=_find_scripts(),
        variables={**_own_venv(site), **job_values(site, prefix="FEDGMR_")},
    )


def render_texts(plans: Sequence[Plan], job: str = "JOB") -> list[str]:
    """What sbatch is given for the cells and for the report, with ids that `job` stands for."""
    ids = [job if len(plans) == 1 else f"{job}{number}" for number in range(1, len(plans) + 1)]
    texts = []
    for number, plan in enumerate(plans):
        plan = replace(plan, after=(*plan.after, *ids[:number]))
        count = len(plan.cells) if len(plan.cells) > 1 else None
        array = {**plan.array_settings(), "map_count": count}
        texts.append(_make_sbatch_string(_command(plan.folder), plan.folder, **array))
    folder = plans[-1].report_folder
    report = _make_sbatch_string(_command(folder), folder, **plans[-1].report_settings(ids))
    return [*texts, report]


def _afterany(jobs: Sequence[str]) -> str:
    return ":".join(["afterany", *jobs])


def _command(folder: Path) -> str:
    """submitit's command of a job, as its executor makes it."""
    return f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(folder))}"


def _check_slurm() -> None:
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if missing:
        raise ValueError(
            f"study submit: {missing[0]} is not on PATH: submit on a machine of the cluster, or "
            "use --local (runs the cells here) or --dry-run (shows what would be submitted)"
        )


def _describe(place: Place, states: States, num_todo: int) -> str:
    """How many cells there are, and which are left alone, and why."""
    found = counts([state for _, state in states])
    alone = [
        f"  left alone: {cell.name}: {state.status}{state.job and ', ' + state.job}"
        for cell, state in states
        if state.status in LEFT_ALONE
    ]
    head = f"{place.study.title}: {len(states)} cells ({found}), {num_todo} to submit"
    return "\n".join([head, *describe_ends(place), *alone])


def nodes_for(site: Site, num_ranks: int) -> int:
    """Nodes of a cell: enough for a GPU a client rank where the site has GPUs, else one."""
    return math.ceil(max(1, num_ranks - 1) / (site.gpus_per_node or num_ranks))


def _find_scripts() -> Path:
    folder = configs_dir().parent / "slurm"
    if not (folder / "common.sh").is_file():
        raise ValueError("study submit: no job scripts (slurm/) here: install a checkout, pip -e")
    return folder


def _own_venv(site: Site) -> dict[str, str]:
    """This Python for the jobs, unless the site or the user names one."""
    is_named = site.venv is not None or "FEDGMR_VENV" in os.environ
    has_own = not is_named and Path(sys.prefix, "bin/python").exists()
    return {"FEDGMR_VENV": sys.prefix} if has_own else {}


def _submit_all(place: Place, plans: Sequence[Plan]) -> int:
    """Submits the arrays, each after those before it, and their report.

    Raises:
        ValueError: Slurm does not take them; says why, and what it has taken.
    """
    os.environ.update(plans[0].for_sbatch())
    jobs: list[str] = []
    with _uninterrupted():
        for plan in plans:
            jobs.append(_submit_cells(replace(plan, after=(*plan.after, *jobs))))
        last = plans[-1]
        after = _submit(last.report_folder, last.report_settings(jobs), [ReportTask(last.report)])
    print(f"job {after}: the report, after them\nnext: {place.command('status')}")
    return 0


def _submit_cells(plan: Plan) -> str:
    """Submits the cells' array; returns its id."""
    tasks = [CellTask(cell, plan.cells_dir, plan.num_ranks, plan.scripts) for cell in plan.cells]
    digests = tuple(cell.digest for cell in plan.cells)
    write_submission(Submission(plan.folder, digests, plan.at_most))
    try:
        job = _submit(plan.folder, plan.array_settings(), tasks)
    except ValueError:
        shutil.rmtree(plan.folder)
        raise
    after = f", after {' and '.join(plan.after)}" if plan.after else ""
    print(f"job {job}: {len(tasks)} cells, {plan.at_most} at a time{after}; logs: {plan.folder}")
    return job


def _submit(folder: Path, settings: Mapping[str, Any], tasks: Sequence[Any]) -> str:
    """Submits an array, or a job where there is one task; returns its id."""
    executor = SlurmExecutor(folder, python=PYTHON)
    executor.update_parameters(**settings)
    try:
        with redirect_stderr(io.StringIO()):  # where submitit shows the error, too
            jobs = executor.submit_array(tasks)
    except FailedJobError as error:
        raise ValueError(str(error).strip() or "sbatch: failed without a word") from None
    return str(jobs[0].job_id).partition("_")[0]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and TERM wait, also for what is started meanwhile: nothing is submitted half-way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_here(place: Place, plans: Sequence[Plan]) -> int:
    """Runs the same tasks on this machine, `at_most` at a time, then the report."""
    os.environ.update(plans[0].variables)
    print(f"meanwhile: {place.command('status')}", flush=True)
    for plan in plans:
        _run_cells_here(plan)
    _run_locally(plans[-1].report_folder, [ReportTask(plans[-1].report)], 1)
    states = place.states()
    print(f"{render_status(place)}\nreport: {place.report_dir}")
    return 0 if all(state.status in ENDED for _, state in states) else 1


def _run_cells_here(plan: Plan) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    tasks = [CellTask(cell, plan.cells_dir, plan.num_ranks, None, visible) for cell in plan.cells]
    print(f"{len(tasks)} cells, {plan.at_most} at a time; logs: {plan.folder}", flush=True)
    _run_locally(plan.folder, tasks, plan.at_most)


def _run_locally(folder: Path, tasks: Sequence[Any], at_most: int) -> None:
    """Runs `tasks` by submitit.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, with the jobs told to end.
    """
    executor = LocalExecutor(folder)
    executor.update_parameters(timeout_min=YEAR_MIN, stderr_to_stdout=True)
    waiting = list(tasks)
    running: list[Job[Any]] = []
    try:
        with handling(signal.SIGTERM, interrupt):
            while waiting or running:
                running = [job for job in running if not job.done()]
                if waiting and len(running) < at_most:
                    with handling(signal.SIGINT, signal.SIG_IGN):  # Ctrl-C is for this process
                        running.append(executor.submit(waiting.pop(0)))
                else:
                    time.sleep(POLL_S)
    except KeyboardInterrupt:
        _end(running)
        raise


def _end(jobs: Sequence[Job[Any]]) -> None:
    """Tells local jobs to checkpoint and end, again and again, since some may just begin."""
    end_s = time.monotonic() + GRACE_S
    while (left := [job for job in jobs if not job.done()]) and time.monotonic() < end_s:
        for job in left:
            os.kill(int(job.job_id), signal.SIGTERM)  # the process that looks after it
        time.sleep(1.0)
