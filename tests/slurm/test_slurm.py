"""The scripts of slurm/ under a real Slurm: three nodes on this machine (see cluster.py)."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cluster as slurm
import pytest

from fedgmr_hpc.result import Result, differing_columns, read_result
from fedgmr_hpc.sites import load_site, render_exports

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
REAL = os.environ.get("FEDGMR_DATA")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
TINY = (
    "progress=plain",
    "run.max_rounds=4",
    "run.interval_rounds=2",
    "restoration.patience=1",
    "train.steps=1",
    "eval.client_samples=32",
    "data.max_train=600",
    "data.max_test=200",
)
FLAVOURS = ("pmi2", "mpirun", "torch")
pytestmark = pytest.mark.skipif(not (BIN / "mpirun").exists(), reason="no mpirun beside python")


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
    """Submits scripts from a folder that holds nothing but them."""

    cluster: slurm.Cluster
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def submit(self, script: str, *words: str, options: tuple[str, ...] = (), **env: str) -> str:
        command = ["sbatch", "--parsable", *options, f"slurm/{script}.sh", *words]
        return self.cluster.run(*command, env={**self.env, **env}, cwd=self.folder)

    def fields(self, job: str) -> list[dict[str, str]]:
        shown = self.cluster.run("scontrol", "--oneliner", "show", "job", job, cwd=self.folder)
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in shown.splitlines()]

    def log(self, job: str) -> Path:
        return next(iter(self.folder.glob(f"*-{job}.out")), self.folder / "none.out")

    def await_text(self, job: str, text: str, times: int, limit_s: float = 60.0) -> None:
        def is_there() -> bool:
            return self.log(job).exists() and self.log(job).read_text().count(text) >= times

        assert slurm.wait_until(is_there, limit_s), self.tell(job)

    def await_end(self, job: str, limit_s: float = 100.0) -> Ended:
        def has_ended() -> bool:
            return all(task["JobState"] in ENDED for task in self.fields(job))

        began_s = time.monotonic()
        assert slurm.wait_until(has_ended, limit_s), self.tell(job)
        (last,) = self.fields(job)
        return Ended(
            last["JobState"],
            last["ExitCode"],
            int(last["Restarts"]),
            time.monotonic() - began_s,
            self.log(job).read_text(),
        )

    def tell(self, job: str) -> str:
        log = self.log(job).read_text() if self.log(job).exists() else "no log"
        return f"{self.fields(job)}\n{log}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    if reason := slurm.why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="fedgmr-slurm-"))
    try:
        yield slurm.start(folder)
    finally:
        slurm.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def desk(cluster: slurm.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The site `local`, this Python, and a folder to submit from."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "slurm").symlink_to(ROOT / "slurm")
    lines = render_exports(load_site("local")).splitlines()
    site = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    own = {"FEDGMR_VENV": str(BIN.parent), "FEDGMR_SCRATCH": str(folder / "scratch")}
    return Desk(cluster, folder, {**site, **own, "FEDGMR_DATA": REAL or ""})


def make_venv(folder: Path, program: str) -> dict[str, str]:
    """A venv whose `python -m fedgmr_hpc.launch` is `program` of this Python."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {program} "$@"\n')
    python.chmod(0o755)
    path = f"{BIN}:{os.environ['PATH']}"
    return {"FEDGMR_VENV": str(folder), "PATH": path}


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    return make_venv(tmp_path / "venv", str(HERE / "stand_in.py"))


@pytest.mark.skipif(not REAL, reason="set FEDGMR_DATA to the folder with the unpacked real data")
def test_femnist_runs_on_three_nodes_alike_over_every_launcher(desk: Desk) -> None:
    three = ("--nodes=3", "--ntasks=3")
    jobs = {
        flavour: desk.submit("femnist", *TINY, options=three, FEDGMR_MPI=flavour)
        for flavour in FLAVOURS
    }
    ended = {flavour: desk.await_end(job) for flavour, job in jobs.items()}
    results: dict[str, Result] = {}
    for flavour, end in ended.items():
        assert (end.state, end.exit_code) == ("COMPLETED", "0:0"), end.output
        results[flavour] = read_result(desk.folder / f"results/femnist-{jobs[flavour]}.h5")
    for flavour, result in results.items():
        assert result.status == "finished" and len(result.merges["version"]) == 4
        assert sorted(result.ranks["host"].astype(str)) == ["n1", "n2", "n3"]
        assert result.provenance["slurm_job_id"] == jobs[flavour]
        assert differing_columns(result, results["pmi2"]) == []


def test_array_runs_one_seed_a_task_with_the_plugin_that_fits_mpi4py(desk: Desk) -> None:
    options = ("--array=0-2%3", "--ntasks=2")
    job = desk.submit("array", "digits", *TINY, options=options, FEDGMR_MPI="auto")
    assert slurm.wait_until(
        lambda: all(task["JobState"] in ENDED for task in desk.fields(job)), 100.0
    )
    for seed in range(3):
        log = (desk.folder / f"seeds-{job}_{seed}.out").read_text()
        result = read_result(desk.folder / f"results/seeds-{job}_{seed}.h5")
        assert "start 1: mpi pmi2\n" in log and f"seed {seed}: finished" in log
        assert len(result.ranks["rank"]) == 2


def test_scaling_runs_sizes_that_fit_and_reports(desk: Desk) -> None:
    options = ("--nodes=3", "--ntasks=3")
    job = desk.submit("scaling", "digits", *TINY, options=options, RANKS="2 3 5")
    end = desk.await_end(job)
    assert end.state == "COMPLETED", end.output
    for ranks, hosts in ((2, 2), (3, 3)):
        result = read_result(desk.folder / f"results/scaling-{job}-{ranks}.h5")
        assert len(result.ranks["rank"]) == ranks and len(set(result.ranks["host"])) == hosts
    assert "5 ranks: left out, the job has 3 tasks" in end.output
    assert list((desk.folder / f"results/scaling-{job}").iterdir())


@pytest.mark.parametrize("flavour", ["pmi2", "mpirun"])
def test_a_killed_rank_fails_the_job_at_once(desk: Desk, tmp_path: Path, flavour: str) -> None:
    venv = make_venv(tmp_path / "venv", f"{ROOT}/tests/ranks/failing.py death")
    words = ("digits", *TINY, "run.max_rounds=100000")
    options = ("--nodes=3", "--ntasks=3", "--array=7")
    job = desk.submit("array", *words, options=options, FEDGMR_MPI=flavour, **venv)
    desk.await_text(f"{job}_7", "rank 2 of 3", 1)
    end = desk.await_end(f"{job}_7", 40.0)
    assert end.state == "FAILED" and end.run_s < 30, end.output


def test_what_a_killed_rank_leaves_is_not_in_the_way_of_a_requeued_job(
    desk: Desk, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "venv", f"{ROOT}/tests/ranks/failing.py death")
    options = ("--nodes=1", "--ntasks=3", "--array=6")
    job = desk.submit("array", "digits", *TINY, options=options, **venv) + "_6"
    assert desk.await_end(job).state == "FAILED"
    desk.cluster.run("scontrol", "requeue", job, cwd=desk.folder)
    desk.await_text(job, "rank 2 of 3", 2)  # MPI has started again, on the same node
    assert "Abort" not in desk.await_end(job).output


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_usr1_reaches_the_ranks_as_usr2_and_the_job_goes_on(
    desk: Desk, stand_in: dict[str, str], flavour: str
) -> None:
    options = ("--nodes=3", "--ntasks=4")
    gpus = {"SBATCH_GPUS_PER_NODE": "2"}
    env = {**stand_in, **gpus, "FEDGMR_DATA": "/data", "FEDGMR_MPI": flavour}
    job = desk.submit("femnist", "seed=5", options=options, **env)
    desk.await_text(job, "seed=5", 4)
    desk.cluster.run("scancel", "--batch", "--signal=USR1", job, cwd=desk.folder)
    end = desk.await_end(job)
    assert (end.state, end.restarts) == ("COMPLETED", 1), end.output
    told = re.findall(r"rank (\d) on (n\d): told by SIGUSR2", end.output)
    assert sorted(rank for rank, _ in told) == ["0", "1", "2", "3"]
    assert {node for _, node in told} == {"n1", "n2", "n3"}
    assert end.output.count("checkpoint written") == 1, end.output  # nobody killed rank 0
    for restarts in (0, 1):  # the log of the first start is still there; all see all GPUs
        assert end.output.count(f"restarts {restarts}, GPUs 0,1\n") == 4, end.output
    place = f"results.path=results/femnist-{job}.h5"
    assert end.output.count(f"data.root=/data/femnist data.cache={desk.env['FEDGMR_SCRATCH']}") == 8
    assert end.output.count(f"{place} seed=5") == 8  # both starts, so that it finds its state


def test_a_job_is_requeued_no_more_often_than_the_site_allows(
    desk: Desk, stand_in: dict[str, str]
) -> None:
    env = {**stand_in, "FEDGMR_DATA": "/data", "FEDGMR_MAX_REQUEUES": "0"}
    job = desk.submit("femnist", options=("--ntasks=2",), **env)
    desk.await_text(job, "words", 2)
    desk.cluster.run("scancel", "--batch", "--signal=USR1", job, cwd=desk.folder)
    end = desk.await_end(job)
    assert (end.state, end.exit_code, end.restarts) == ("FAILED", "75:0", 0), end.output
    assert "requeued 0 times already (max_requeues); not again" in end.output


def test_only_the_array_task_that_checkpointed_is_requeued(
    desk: Desk, stand_in: dict[str, str]
) -> None:
    job = desk.submit("array", "digits", options=("--array=3-4", "--ntasks=2"), **stand_in)
    for task in (3, 4):
        desk.await_text(f"{job}_{task}", "words", 2)
    desk.cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_4", cwd=desk.folder)
    end = desk.await_end(f"{job}_4")
    assert (end.state, end.restarts) == ("COMPLETED", 1), end.output
    assert f"job {job}_4: checkpointed, requeued" in end.output
    (other,) = desk.fields(f"{job}_3")
    assert (other["JobState"], other["Restarts"]) == ("RUNNING", "0")
    desk.cluster.run("scancel", job, cwd=desk.folder)
