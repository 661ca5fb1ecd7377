"""Starts real launchers with a deadline; shared by the rank tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from preloaded import preloaded_python

ROOT = Path(__file__).resolve().parents[2]
MPIRUN = Path(sys.executable).with_name("mpirun")
LIMIT_S = 300.0  # a run of a minute where other work has the cores
SOON_S = 90.0  # a failing job's end, its start on a busy machine included; not run.timeout_s
TINY = (
    "progress=plain",
    "run.max_rounds=12",
    "run.interval_rounds=3",
    "restoration.patience=1",
    "train.steps=2",
    "eval.client_samples=64",
    "data.max_train=600",
    "data.max_test=200",
)


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    code: int
    output: str
    wall_s: float

    @property
    def errors(self) -> list[str]:
        """What the program itself reported."""
        return [line for line in self.output.splitlines() if "fedgmr_hpc: error: " in line]


def last_of_each(*words: str) -> list[str]:
    """The words but those whose key a later one has too, since a run takes one for each key."""
    keys = [word.partition("=")[0] for word in words]
    return [w for i, w in enumerate(words) if "=" not in w or keys[i] not in keys[i + 1 :]]


def run_job(
    num_ranks: int,
    *words: str,
    launcher: str = "mpirun",
    module: tuple[str, ...] = ("-m", "fedgmr_hpc.launch"),
    timeout_s: float = LIMIT_S,
    env: dict[str, str] | None = None,
) -> Ended:
    """Runs a job to its end or kills it and fails past the deadline. A later word wins."""
    python = preloaded_python()
    start = {
        "mpirun": [str(MPIRUN), "-n", str(num_ranks), *python],
        "torchrun": [*python, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        + [f"--nproc-per-node={num_ranks}", *python],
        "none": python,
    }[launcher]
    began_s = time.monotonic()
    with subprocess.Popen(
        [*start, *module, *last_of_each(*words)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"no end within {timeout_s:g} s:\n{output}") from None
    return Ended(process.returncode, output, time.monotonic() - began_s)
