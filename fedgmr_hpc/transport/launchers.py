"""Starts ranks from a program: by srun inside a Slurm job, else by this Python's own mpirun."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from fedgmr_hpc.config.messages import must_be

# What torchrun would set; torch.distributed meets at MASTER_ADDR and MASTER_PORT.
_AS_TORCHRUN = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS"


def rank_command(num_ranks: int, env: Mapping[str, str] = os.environ) -> list[str]:
    """Return the words that go before a program to start it on ranks.

    Inside a Slurm job the ranks are spread over its nodes, one on each while there are as many.
    FEDGMR_MPI says how they meet (configs/sites/example.yaml); without it srun's default counts.

    Raises:
        ValueError: the job has fewer tasks.
    """
    mpi = env.get("FEDGMR_MPI", "auto")
    if "SLURM_JOB_ID" not in env:
        return mpirun_command(num_ranks, env)
    num_tasks = int(env.get("SLURM_NTASKS", num_ranks))
    if num_ranks > num_tasks:
        raise ValueError(must_be("--ranks", f"at most {num_tasks} in this Slurm job", num_ranks))
    num_nodes = int(env.get("SLURM_JOB_NUM_NODES", 1))
    if mpi == "mpirun":  # fills one node after the other, with as many ranks as Slurm says
        shares = f"SLURM_TASKS_PER_NODE={deal_out(num_ranks, num_nodes)}"
        return ["env", shares, *mpirun_command(num_ranks, env)]
    num_nodes = min(num_ranks, num_nodes)
    command = ["srun", f"--nodes={num_nodes}", f"--ntasks={num_ranks}", "--kill-on-bad-exit=1"]
    command.append(f"--cpus-per-task={env.get('SLURM_CPUS_PER_TASK', 1)}")
    if mpi in ("torch", "torchrun"):
        return [*command, "--mpi=none", "sh", "-c", f'{_AS_TORCHRUN} exec "$@"', "sh"]
    return command if mpi == "auto" else [*command, f"--mpi={mpi}"]


def mpirun_command(num_ranks: int, env: Mapping[str, str] = os.environ) -> list[str]:
    """Return this Python's own mpirun, else that on PATH, with the words of FEDGMR_MPIRUN_ARGS.

    Raises:
        ValueError: a quote in these has no end.
    """
    own = Path(sysconfig.get_path("scripts")) / "mpirun"
    given = env.get("FEDGMR_MPIRUN_ARGS", "")
    try:
        more = shlex.split(given)
    except ValueError as error:
        need = "words as a shell splits them"
        line = must_be("FEDGMR_MPIRUN_ARGS", need, given, because=str(error))
        raise ValueError(line) from None
    return [str(own) if own.exists() else "mpirun", "-n", str(num_ranks), *more]


def deal_out(num_ranks: int, num_nodes: int) -> str:
    """Return the ranks of each node in Slurm's words, as srun deals them out: 4(x2),3(x1)."""
    each, more = divmod(num_ranks, num_nodes)
    parts = ((each + 1, more), (max(1, each), num_nodes - more))
    return ",".join(f"{share}(x{nodes})" for share, nodes in parts if nodes)


def run_ranks(num_ranks: int, *command: str) -> None:
    """Run a module of this package on `num_ranks` ranks, to its end.

    Raises:
        RuntimeError: it ended with another exit code than 0.
        ValueError: as `rank_command`.
    """
    ran = subprocess.run([*rank_command(num_ranks), sys.executable, "-m", *command])
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {ran.returncode}")
