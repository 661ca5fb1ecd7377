"""Signals, time limits and requeues of the scripts of slurm/ under a real Slurm."""

from __future__ import annotations

import re
from pathlib import Path

import cluster as slurm
import pytest
from desk import LIMIT_S, Desk
from test_slurm import HERE, make_venv

from fedgmr_hpc.storage.reader import differing_columns

FLAVOURS = ("pmi2", "mpirun", "torch", "torchrun")
RUN = (
    "progress=plain",
    "eval.client_samples=32",
    "data.max_train=600",
    "data.max_test=200",
)
SHORT = (*RUN, "run.max_rounds=60")
BEGUN = "evaluation | round 10 "
OVER = "time is nearly over"


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "data" / "femnist").mkdir(parents=True)
    venv = make_venv(tmp_path / "venv", str(HERE / "stand_in.py"))
    return {**venv, "FEDGMR_DATA": str(tmp_path / "data")}


def interrupt(desk: Desk, limited: str, told: list[str]) -> None:
    """Holds the ranks of each job that is to be told in the midst of its run, and tells its script;
    frees each job's ranks when its script has heard. No job waits for another.
    """
    awaited = {limited: OVER, **dict.fromkeys(told, BEGUN)}

    def look() -> bool:
        for job, text in list(awaited.items()):
            if not desk.has_said(job, text):
                continue
            if text == BEGUN:
                desk.signal(job, "STOP")
                desk.signal(job, "USR1", "--batch")
                awaited[job] = OVER
                continue
            if job == limited:
                desk.allow(job, minutes=60)  # to go on beside all the others
            desk.signal(job, "CONT")
            del awaited[job]
        return not awaited

    assert slurm.wait_until(look, 2 * LIMIT_S), [desk.tell(job) for job in awaited]


def test_interrupted_jobs_are_requeued_and_end_as_if_unbroken(desk: Desk) -> None:
    """At a real time limit, and told by USR1 under every other launcher."""
    two = ("--nodes=2", "--ntasks=2")
    limit = ("--time=3", "--signal=B:USR1@70")  # Slurm may be up to a minute early
    limited = desk.submit_seed(5, *SHORT, options=(*two, *limit))
    desk.await_text(limited, BEGUN)
    desk.signal(limited, "STOP")
    told = [desk.submit_seed(5, *SHORT, options=two, FEDGMR_MPI=name) for name in FLAVOURS[1:]]
    whole = desk.submit_seed(5, *SHORT, options=("--ntasks=3",))
    interrupt(desk, limited, told)
    assert desk.await_end(whole).restarts == 0
    for job in [*told, limited]:
        end = desk.await_end(job)
        assert end.state == "COMPLETED" and "resumed from" in end.output, end.output
        assert end.restarts == 1
        assert differing_columns(desk.result(job), desk.result(whole)) == []


def test_a_requeue_that_gained_no_version_fails(desk: Desk, tmp_path: Path) -> None:
    venv = make_venv(tmp_path / "venv", str(HERE / "slow_start.py"))
    job = desk.submit_seed(6, *SHORT, options=("--ntasks=2",), **venv)
    for start in (1, 2):
        desk.await_text(job, "rank 1 of 2", start)
        desk.signal(job, "USR1", "--batch")
    end = desk.await_end(job)
    assert (end.state, end.exit_code, end.restarts) == ("FAILED", "1:0", 1), end.output
    assert "before any version was made since the run was resumed" in end.output


def test_a_cancelled_task_checkpoints_and_only_the_signalled_one_is_requeued(desk: Desk) -> None:
    options = ("--array=3-4", "--ntasks=2")
    job = desk.submit("array", "digits", *RUN, "run.max_rounds=100000", options=options)
    for task in (3, 4):
        desk.await_text(f"{job}_{task}", BEGUN)
    desk.cluster.run("scancel", f"{job}_3", cwd=desk.folder)
    desk.signal(f"{job}_4", "USR1", "--batch")
    desk.await_text(f"{job}_3", "the same command with --resume continues it")
    desk.await_text(f"{job}_4", "resumed from")
    end = desk.await_end(f"{job}_3")
    assert (end.state, end.restarts) == ("CANCELLED", 0), end.output
    assert "requeued" not in end.output
    assert (desk.folder / f"results/seeds-{job}_3.ckpt").exists()
    (other,) = desk.fields(f"{job}_4")
    assert (other["JobState"], other["Restarts"]) == ("RUNNING", "1")
    desk.cluster.run("scancel", job, cwd=desk.folder)


def test_ranks_see_all_gpus_and_the_one_that_writes_is_not_killed(
    desk: Desk, stand_in: dict[str, str]
) -> None:
    env = {**stand_in, "SBATCH_GPUS_PER_NODE": "2"}
    options = ("--nodes=3", "--ntasks=4")
    jobs = [
        desk.submit("femnist", "seed=5", options=options, FEDGMR_MPI=flavour, **env)
        for flavour in FLAVOURS
    ]
    for job in jobs:
        desk.await_text(job, ": words", 4)
        desk.signal(job, "USR1", "--batch")
    for job in jobs:
        end = desk.await_end(job)
        assert (end.state, end.restarts) == ("COMPLETED", 1), end.output
        told = re.findall(r"rank (\d) on (n\d): told by SIGUSR2", end.output)
        assert {rank for rank, _ in told} == {"0", "1", "2", "3"}
        assert {node for _, node in told} == {"n1", "n2", "n3"}
        assert end.output.count("checkpoint written") == 1, end.output
        for restarts in (0, 1):  # the log of the first start is still there
            seen = re.findall(rf"restarts {restarts}, GPUs \d,\d\n", end.output)
            assert len(seen) == 4, end.output
        place = f"results.path=results/femnist-{job}.h5 seed=5"
        words = re.findall(rf"^rank \d .*: words .*{place}$", end.output, flags=re.MULTILINE)
        assert len(words) == 8  # of both starts, so that the second finds its state


def test_a_job_is_requeued_no_more_often_than_the_site_allows(
    desk: Desk, stand_in: dict[str, str]
) -> None:
    env = {**stand_in, "FEDGMR_MAX_REQUEUES": "0"}
    job = desk.submit("femnist", options=("--ntasks=2",), **env)
    desk.await_text(job, ": words", 2)
    desk.signal(job, "USR1", "--batch")
    end = desk.await_end(job)
    assert (end.state, end.exit_code, end.restarts) == ("FAILED", "75:0", 0), end.output
    assert "requeued 0 times already (max_requeues); not again" in end.output
