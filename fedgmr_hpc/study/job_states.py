"""What Slurm says of the jobs of a study's cells: where they wait or run, or why they have ended.

    cells/.jobs/0001/cells.json     which cells an array runs, in its order; written before it is
                                    submitted
    cells/.jobs/0001/ID_submission.sh, ID_INDEX_0_log.out, ...    submitit's

Jobs are found in the queue by the file that was submitted, which lies in such a folder, so that not
even a killed `study submit` loses one. Slurm's queue forgets ended jobs after some minutes; then
accounting is asked, and where there is none, what the job's log says of its end.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedgmr_hpc.study.notices import warn_once
from fedgmr_hpc.study.states import CellState, Status

QUEUE = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r|%o")
ACCOUNTS = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList")
SETTINGS = ("scontrol", "show", "config")
MOST_TASKS = 1001  # of an array, unless a site sets it (MaxArraySize)
LIMIT_S = 60.0
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"),
    *("BOOT_FAIL", "DEADLINE", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"),
)
_KILLED = re.compile(r"error: \*+ JOB \S+ ON \S+ (?!.*REQUEUE)(.+?) \*+")


@dataclass(frozen=True)
class Submission:
    """An array that was submitted, or was about to be: its folder, and its cells in order."""

    folder: Path
    digests: tuple[str, ...]
    max_parallel: int

    def names(self) -> list[str]:
        """Return Slurm's names of its jobs, cell by cell; none where it was cut short."""
        ids = [path.name.partition("_")[0] for path in self.folder.glob("[0-9]*_submission.sh")]
        if not ids or len(self.digests) == 1:
            return ids
        return [f"{ids[0]}_{index}" for index in range(len(self.digests))]

    def log_of(self, name: str) -> Path:
        """Return the file of what a job prints."""
        return self.folder / f"{name}_0_log.out"


@dataclass(frozen=True)
class CellJob:
    """The last job of a cell. `word`: Slurm's for its state, "" where nobody knows it any more."""

    name: str
    word: str
    nodes: str
    reason: str
    log: Path
    max_parallel: int

    @property
    def phase(self) -> Status | None:
        """Of a cell whose job this is; None once it has ended."""
        if self.word in RUNNING:
            return "running"
        return None if not self.word or self.word.split()[0] in ENDED else "queued"

    def __str__(self) -> str:
        where = f" on {self.nodes}" if self.nodes else ""
        if self.phase == "running":
            return f"job {self.name}{where}"
        if self.phase == "queued":
            return f"job {self.name} ({self.reason})"
        said, log = self.word or "has ended", "/".join(self.log.parts[-3:])
        return f"job {self.name}{where}: {said}, see {log}"


def jobs_dir(cells_dir: Path) -> Path:
    """Return the folder of all submissions of cells."""
    return cells_dir / ".jobs"


def next_folder(cells_dir: Path, ahead: int = 0) -> Path:
    """Return the folder of the next submission, or of one so many further on."""
    names = [path.name for path in jobs_dir(cells_dir).glob("[0-9]*")]
    numbers = [int(name) for name in names if name.isdecimal()]
    return jobs_dir(cells_dir) / f"{max(numbers, default=0) + 1 + ahead:04d}"


def write_submission(submission: Submission) -> None:
    """Record what is about to be submitted, in a new folder."""
    jobs = submission.folder.parent
    jobs.mkdir(parents=True, exist_ok=True)
    jobs.chmod(0o700)
    submission.folder.mkdir()
    content = {"digests": submission.digests, "at_most": submission.max_parallel}
    part = submission.folder / "cells.json.part"
    part.write_text(json.dumps(content))
    os.replace(part, submission.folder / "cells.json")  # whole, or not there


def lock_pickles(folder: Path) -> None:
    """Let only this user read and write the pickles of a submission, since jobs run them.

    Not by this process's umask, which Slurm hands on to the job, and so to its results.
    """
    for path in folder.glob("*.pkl"):
        path.chmod(0o600)


def most_tasks() -> int:
    """Return how many tasks an array may have here, by default Slurm's own limit."""
    try:
        shown = "\n".join(_ask(list(SETTINGS)))
    except ValueError:
        return MOST_TASKS
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, flags=re.MULTILINE)
    return max(1, int(found.group(1))) if found else MOST_TASKS


def read_submissions(cells_dir: Path) -> list[Submission]:
    """Return all submissions, the oldest first, without those that cannot be read, which a line
    on stderr names.
    """
    paths = sorted(jobs_dir(cells_dir).glob("[0-9]*/cells.json"))
    return [found for path in paths if (found := _read_submission(path)) is not None]


def _read_submission(path: Path) -> Submission | None:
    try:
        if not path.parent.name.isdecimal():
            raise ValueError("its folder's name is no number")
        content = json.loads(path.read_text())
        return Submission(path.parent, tuple(content["digests"]), int(content["at_most"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        warn_once(f"{path}: passed over, with the jobs that it names: {why}")
        return None


def read_jobs(cells_dir: Path) -> dict[str, CellJob]:
    """Return the last job of every cell that was submitted, by the cell's digest.

    Raises:
        ValueError: something was submitted, and the queue can't be asked; says why.
    """
    submissions = read_submissions(cells_dir)
    if not submissions:
        return {}
    queue = _read_queue()
    unseen = [
        name
        for submission in submissions
        for name in submission.names()
        if name not in queue.get(submission.folder, {})
    ]
    accounts = _read_accounts(unseen) if unseen else {}
    jobs: dict[str, CellJob] = {}
    for submission in submissions:
        seen = queue.get(submission.folder, {})
        for name in submission.names() or sorted(seen, key=_index):
            job = seen.get(name) or accounts.get(name) or ("", "", "")
            log = submission.log_of(name)
            word, nodes, reason = (job[0] or _last_words(log), *job[1:])
            digest = submission.digests[_index(name)]
            jobs[digest] = CellJob(name, word, nodes, reason, log, submission.max_parallel)
    return jobs


def with_job(state: CellState, job: CellJob | None) -> CellState:
    """Return a cell's state as its files say, and what its last job adds to that.

    A lock may be seen on the job's own machine only; so a job in the queue outweighs the files.
    """
    if job is None or state.status in ("done", "diverged"):
        return state
    if job.phase:
        status = "running" if state.status == "running" else job.phase
        return replace(state, status=status, error="", job=str(job))
    if state.status in ("running", "failed") or job.word == "COMPLETED":
        return state
    is_lost = state.status == "missing" and job.word
    return replace(state, status="failed" if is_lost else state.status, job=str(job))


def _index(name: str) -> int:
    """Return a job's place in its array: 3 of 17_3, 0 of 17."""
    return int(name.partition("_")[2] or 0)


_Found = dict[str, tuple[str, str, str]]  # job name -> word, nodes, reason


def _read_queue() -> dict[Path, _Found]:
    """Return this user's jobs by the folder of what was submitted."""
    found: dict[Path, _Found] = {}
    for line in _ask([*QUEUE, f"--user={getpass.getuser()}"]):
        name, word, nodes, reason, command = line.split("|", 4)
        found.setdefault(Path(command).parent, {})[name] = (word, nodes, reason)
    return found


def _read_accounts(names: Sequence[str]) -> _Found:
    """Return jobs that have left the queue; none where Slurm keeps no accounts."""
    ids = sorted({name.partition("_")[0] for name in names})
    try:
        lines = _ask([*ACCOUNTS, f"--jobs={','.join(ids)}"])
    except ValueError:
        return {}
    rows = (line.split("|") for line in lines)
    return {name: (word, nodes, "") for name, word, nodes in rows}


def _ask(command: list[str]) -> list[str]:
    """Return the lines that a Slurm command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except FileNotFoundError:
        raise ValueError(f"{command[0]} is not on PATH") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{command[0]} did not answer within {LIMIT_S:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ValueError(f"{command[0]}: {said}")
    return done.stdout.splitlines()


def _last_words(log: Path) -> str:
    """Return what Slurm wrote into the log of a job that it killed."""
    said = _KILLED.findall(log.read_text(errors="replace")) if log.exists() else []
    return str(said[-1]) if said else ""
