"""How ranks are started from a program, by what the environment says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fedgmr_hpc.study.running.runner import start_here
from fedgmr_hpc.transport.launchers import deal_out, rank_command

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS": "11"}
COMMON = (Path(__file__).parents[3] / "slurm" / "common.sh").read_text()
SHELL_DEAL_OUT = "".join(re.findall(r"^deal_out\(\) .*?^}", COMMON, flags=re.MULTILINE | re.DOTALL))
STEP = ["--kill-on-bad-exit=1", "--cpus-per-task=1"]


def test_outside_slurm_mpirun_starts_the_ranks() -> None:
    command = rank_command(5, {"FEDGMR_MPI": "pmi2"})
    assert command[0].endswith("mpirun") and command[1:] == ["-n", "5"]
    inside = rank_command(5, {**JOB, "FEDGMR_MPI": "mpirun"})
    assert inside == ["env", "SLURM_TASKS_PER_NODE=2(x2),1(x1)", *command]


def test_further_words_are_for_mpirun_alone() -> None:
    env = {"FEDGMR_MPIRUN_ARGS": "--oversubscribe -x 'A=b c'"}
    words = ["-n", "2", "--oversubscribe", "-x", "A=b c"]
    assert rank_command(2, env)[1:] == words
    assert rank_command(2, {**JOB, **env, "FEDGMR_MPI": "mpirun"})[3:] == words
    assert "--oversubscribe" not in rank_command(2, {**JOB, **env})
    with pytest.raises(ValueError, match="^FEDGMR_MPIRUN_ARGS must be words"):
        rank_command(2, {"FEDGMR_MPIRUN_ARGS": "'-x"})


def test_a_study_on_one_machine_takes_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGMR_MPIRUN_ARGS", "--oversubscribe")
    assert start_here(2, [])[1:4] == ["-n", "2", "--oversubscribe"]


@pytest.mark.parametrize(
    ("ranks", "nodes", "shares"),
    [(11, 3, "4(x2),3(x1)"), (9, 2, "5(x1),4(x1)"), (12, 3, "4(x3)"), (2, 3, "1(x2),1(x1)")],
)
def test_ranks_are_dealt_out_evenly(ranks: int, nodes: int, shares: str) -> None:
    assert deal_out(ranks, nodes) == shares
    script = f"SLURM_JOB_NUM_NODES={nodes}; {SHELL_DEAL_OUT}; deal_out {ranks}"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [shares]


@pytest.mark.parametrize(
    ("num_ranks", "env", "command"),
    [
        (2, {}, ["srun", "--nodes=2", "--ntasks=2", *STEP]),
        (11, {"FEDGMR_MPI": "pmix"}, ["srun", "--nodes=3", "--ntasks=11", *STEP, "--mpi=pmix"]),
        (5, {"SLURM_CPUS_PER_TASK": "4"}, ["srun", "--nodes=3", "--ntasks=5", STEP[0],
                                           "--cpus-per-task=4"]),
    ],
)  # fmt: skip
def test_inside_a_slurm_job_srun_spreads_them(num_ranks, env, command) -> None:  # type: ignore[no-untyped-def]
    assert rank_command(num_ranks, {**JOB, **env}) == command


def test_without_an_mpi_each_rank_is_told_what_torchrun_would_say() -> None:
    words = rank_command(2, {**JOB, "FEDGMR_MPI": "torch"})
    assert "--mpi=none" in words
    env = {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    shown = ["sh", "-c", "echo $RANK $LOCAL_RANK $WORLD_SIZE"]
    said = subprocess.run([*words[words.index("sh") :], *shown], env=env, capture_output=True)
    assert said.stdout == b"1 0 2\n"


def test_a_job_with_fewer_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="^--ranks must be at most 11 in this Slurm job .got 12"):
        rank_command(12, JOB)
