"""Starts ranks from a program: the mpirun that belongs to this Python."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path


def run_ranks(num_ranks: int, *command: str) -> None:
    """Runs a module of this package on `num_ranks` ranks, to its end.

    Raises:
        RuntimeError: it ended with another exit code than 0.
    """
    mpirun = Path(sysconfig.get_path("scripts")) / "mpirun"
    launcher = str(mpirun) if mpirun.exists() else "mpirun"
    ran = subprocess.run([launcher, "-n", str(num_ranks), sys.executable, "-m", *command])
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {ran.returncode}")
