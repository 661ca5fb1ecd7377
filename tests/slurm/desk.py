"""Submits the scripts of slurm/ and follows their jobs; shared by the tests of this folder."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import cluster as slurm

from fedgmr_hpc.storage.reader import Result, read_result

BIN = Path(sys.executable).parent
LIMIT_S = 400.0  # what takes a minute when nobody else has the cores
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass(frozen=True)
class Ended:
    """A job's last state."""

    state: str
    exit_code: str
    restarts: int
    run_s: float
    output: str


@dataclass
class Desk:
    """A folder that holds nothing but the scripts, and the environment to submit them with."""

    cluster: slurm.Cluster
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def submit(self, script: str, *words: str, options: tuple[str, ...] = (), **env: str) -> str:
        command = ["sbatch", "--parsable", *options, f"slurm/{script}.sh", *words]
        return self.cluster.run(*command, env={**self.env, **env}, cwd=self.folder)

    def submit_seed(self, seed: int, *words: str, options: tuple[str, ...] = (), **env: str) -> str:
        """A job of array.sh for one seed of the embedded digits."""
        array = (f"--array={seed}", *options)
        return f"{self.submit('array', 'digits', *words, options=array, **env)}_{seed}"

    def signal(self, job: str, name: str, *whom: str) -> None:
        """To the ranks, or with `--batch` to the script."""
        self.cluster.run("scancel", f"--signal={name}", *whom, job, cwd=self.folder)

    def allow(self, job: str, minutes: int) -> None:
        """Give a job a longer time limit."""
        update = ("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        self.cluster.run(*update, cwd=self.folder)

    def fields(self, job: str) -> list[dict[str, str]]:
        shown = self.cluster.run("scontrol", "--oneliner", "show", "job", job, cwd=self.folder)
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in shown.splitlines()]

    def has_said(self, job: str, text: str, times: int = 1) -> bool:
        logs = self.folder.glob(f"*-{job}.out")
        return any(log.read_text().count(text) >= times for log in logs)

    def await_text(self, job: str, text: str, times: int = 1, limit_s: float = LIMIT_S) -> None:
        there = slurm.wait_until(lambda: self.has_said(job, text, times), limit_s)
        assert there, self.tell(job)

    def await_end(self, job: str, limit_s: float = LIMIT_S) -> Ended:
        def has_ended() -> bool:
            return all(task["JobState"] in ENDED for task in self.fields(job))

        began_s = time.monotonic()
        assert slurm.wait_until(has_ended, limit_s), self.tell(job)
        (last,) = self.fields(job)
        run_s = time.monotonic() - began_s
        state, code, restarts = (last[key] for key in ("JobState", "ExitCode", "Restarts"))
        return Ended(state, code, int(restarts), run_s, self.tell(job))

    def result(self, job: str) -> Result:
        """Of a job that has one."""
        (path,) = self.folder.glob(f"results/*-{job}.h5")
        return read_result(path)

    def tell(self, job: str) -> str:
        logs = [log.read_text() for log in self.folder.glob(f"*-{job}.out")]
        return "\n".join([f"{self.fields(job)}", *(logs or ["no log"])])
