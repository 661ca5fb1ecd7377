"""The scripts of slurm/ under a real Slurm: three nodes on this machine (see cluster.py)."""

from __future__ import annotations

import csv
import os
import re
import sys
from pathlib import Path

import cluster as slurm
import pytest
from desk import BIN, ENDED, LIMIT_S, Desk

from fedgmr_hpc.storage.reader import read_result

HERE = Path(__file__).parent
REAL = os.environ.get("FEDGMR_DATA")
OPEN_MPI = os.environ.get("FEDGMR_OPEN_MPI")
ENDLESS = (
    "progress=plain",
    "run.max_rounds=100000",
    "run.interval_rounds=2",
    "restoration.patience=1",
    "train.steps=1",
    "eval.client_samples=32",
    "data.max_train=600",
    "data.max_test=200",
)
TINY = tuple(word.replace("100000", "4") for word in ENDLESS)
REAL_RUNS = {  # script: where, and what makes it short
    "femnist": (("--nodes=3", "--ntasks=3"), TINY),
    "imagenet100": (("--nodes=2", "--ntasks=3"), (*TINY, "data.image_size=32")),
    "cifar10": (("--nodes=2", "--ntasks=2"), TINY),
    "stackoverflow": (("--nodes=2", "--ntasks=2"), TINY),
}


def make_venv(folder: Path, program: str) -> dict[str, str]:
    """A venv whose `python -m fedgmr_hpc.launch` is `program` of this Python."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    real = f'[ "$1" != -c ] || exec {sys.executable} "$@"'  # the check before ranks are started
    python.write_text(f'#!/bin/sh\n{real}\nshift 2\nexec {sys.executable} {program} "$@"\n')
    python.chmod(0o755)
    path = f"{BIN}:{os.environ['PATH']}"
    return {"FEDGMR_VENV": str(folder), "PATH": path}


@pytest.mark.skipif(not REAL, reason="set FEDGMR_DATA to the folder with the unpacked real data")
def test_the_scripts_run_on_real_data_over_several_nodes(desk: Desk) -> None:
    jobs = {
        name: desk.submit(name, *words, options=options)
        for name, (options, words) in REAL_RUNS.items()
    }
    for name, job in jobs.items():
        end = desk.await_end(job)
        assert (end.state, end.exit_code) == ("COMPLETED", "0:0"), end.output
        result = desk.result(job)
        assert result.status == "finished" and len(result.merges["version"]) == 4
        assert result.config["data"]["name"] == name
        assert result.provenance["slurm_job_id"] == job
        hosts = set(result.ranks["host"].astype(str))
        assert hosts == ({"n1", "n2", "n3"} if name == "femnist" else {"n1", "n2"})


def test_array_runs_one_seed_a_task_with_the_plugin_that_fits_mpi4py(desk: Desk) -> None:
    options = ("--array=0-2%3", "--ntasks=2")
    job = desk.submit("array", "digits", *TINY, options=options, FEDGMR_MPI="auto")
    assert slurm.wait_until(
        lambda: all(task["JobState"] in ENDED for task in desk.fields(job)), LIMIT_S
    )
    for seed in range(3):
        log = (desk.folder / f"seeds-{job}_{seed}.out").read_text()
        assert f"job {job}_{seed} on n" in log and f"{BIN}/python, start 1: mpi pmi2\n" in log
        assert f"results.path=results/seeds-{job}_{seed}.h5" in log
        assert f"seed {seed}: finished" in log
        assert len(desk.result(f"{job}_{seed}").ranks["rank"]) == 2


def test_a_job_that_gets_no_environment_gives_one_to_its_ranks(desk: Desk, tmp_path: Path) -> None:
    """Some sites have SBATCH_EXPORT=NONE: the job begins bare, and so would each of its steps."""
    (tmp_path / "slurm").symlink_to(HERE.parents[1] / "slurm")
    (tmp_path / ".venv").symlink_to(BIN.parent)
    bare = Desk(desk.cluster, tmp_path, {"SBATCH_EXPORT": "NONE"})
    job = bare.submit_seed(1, *TINY, options=("--ntasks=2",))
    end = bare.await_end(job)
    assert (end.state, end.exit_code) == ("COMPLETED", "0:0"), end.output
    assert "mpi pmi2\n" in end.output
    assert len(bare.result(job).ranks["rank"]) == 2


@pytest.mark.skipif(
    not OPEN_MPI, reason="set FEDGMR_OPEN_MPI to its libmpi.so.40; Slurm's pmix needs libpmix-dev"
)
def test_open_mpi_is_started_by_pmix(desk: Desk) -> None:
    env = {"FEDGMR_MPI": "auto", "MPI4PY_LIBMPI": str(OPEN_MPI)}
    job = desk.submit_seed(8, *TINY, options=("--ntasks=3",), **env)
    end = desk.await_end(job)
    assert end.state == "COMPLETED" and "mpi pmix\n" in end.output, end.output
    assert len(desk.result(job).ranks["rank"]) == 3


def test_strong_scaling_over_two_and_three_nodes_goes_on_after_a_requeue(desk: Desk) -> None:
    words = ("strong", "digits", "--ranks", "2,3", "--repeats", "1", "--warmup", "2", *TINY)
    job = desk.submit("scaling", *words, options=("--nodes=3", "--ntasks=3"))
    desk.await_text(job, "repeat 1 of 1: 0003-ranks")
    desk.signal(job, "USR1", "--batch")
    end = desk.await_end(job)
    assert (end.state, end.restarts) == ("COMPLETED", 1), end.output
    assert "ended by SIGUSR2, new runs: 1;" in end.output
    assert end.output.count(": 0002-ranks") == 1 and end.output.count(": 0003-ranks") == 2
    study = desk.folder / f"results/scaling-{job}"
    for ranks in (2, 3):
        result = read_result(study / f"runs/{ranks:04d}-ranks-repeat0.h5")
        assert sorted(result.ranks["host"].astype(str)) == ["n1", "n2", "n3"][:ranks]
    lines = (study / "speedup.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [(row["ranks"], float(row["client_rounds_per_s"]) > 0) for row in rows] == [
        ("2", True),
        ("3", True),
    ]
    assert "speed-up  efficiency" in end.output


def test_what_is_refused_is_a_line_and_not_requeued(desk: Desk, tmp_path: Path) -> None:
    script = str(desk.folder / "slurm" / "femnist.sh")
    options = ("--ntasks=2", f"--output={tmp_path}/%x-%j.out")
    sbatch = ("sbatch", "--parsable", *options, script)
    elsewhere = desk.cluster.run(*sbatch, env=desk.env, cwd=tmp_path)
    site = {"FEDGMR_DATA": "/nope", "SBATCH_MEM_PER_NODE": "1M"}
    no_data = desk.submit("femnist", options=options, **site)
    assert desk.fields(no_data)[0]["MinMemoryNode"] == "1M"
    said = {
        elsewhere: "submit from the checkout: ",
        no_data: "FEDGMR_DATA must be the folder that holds ",
    }
    for job, text in said.items():
        end = desk.await_end(job)
        log = (tmp_path / f"femnist-{job}.out").read_text()
        assert (end.state, end.exit_code, end.restarts) == ("FAILED", "2:0", 0), log
        assert log.startswith(text) and log.count("\n") == 1


WHERE = """import os, socket
rank = next(os.environ[name] for name in ("RANK", "PMI_RANK") if name in os.environ)
gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
os.write(1, f"rank {rank} on {socket.gethostname()} sees {gpus}\\n".encode())  # in one piece
"""
PLACES = {  # options of sbatch, how ranks start: ranks of each node, and what each sees
    ((), "pmi2"): ((4, 4, 3), "none"),
    ((), "mpirun"): ((4, 4, 3), "none"),
    (("--gpus-per-node=4",), "torch"): ((4, 4, 3), "0,1,2,3"),
    (("--nodes=2", "--ntasks=9"), "pmi2"): ((5, 4), "none"),
    (("--ntasks-per-node=4", "--gpus-per-task=1"), "pmi2"): ((4, 4, 3), r"[0-3]"),
}


def test_ranks_are_dealt_out_over_nodes_of_64_cpus_and_4_gpus(desk: Desk, tmp_path: Path) -> None:
    """Without --ntasks-per-node Slurm puts 9 + 1 + 1 there, and mpirun 5 + 5 + 1 where it is 5."""
    (tmp_path / "where.py").write_text(WHERE)
    (tmp_path / "data" / "imagenet100").mkdir(parents=True)
    env = make_venv(tmp_path / "venv", str(tmp_path / "where.py"))
    env["FEDGMR_DATA"] = str(tmp_path / "data")
    jobs = {
        case: desk.submit("imagenet100", options=case[0], FEDGMR_MPI=case[1], **env)
        for case in PLACES
    }
    for case, (shares, sees) in PLACES.items():
        end = desk.await_end(jobs[case])
        found = re.findall(rf"^rank (\d+) on (n\d) sees {sees}$", end.output, flags=re.MULTILINE)
        hosts = [host for _, host in sorted(found, key=lambda place: int(place[0]))]
        wanted = [f"n{node}" for node, share in enumerate(shares, 1) for _ in range(share)]
        assert end.state == "COMPLETED" and hosts == wanted, (case, end.output)
        assert "warning" not in end.output and "can't honor" not in end.output, end.output


def test_scaling_refuses_more_ranks_than_the_job_has(desk: Desk) -> None:
    job = desk.submit("scaling", "weak", "digits", "--ranks", "2,3", options=("--ntasks=2",))
    end = desk.await_end(job)
    assert (end.state, end.exit_code) == ("FAILED", "2:0"), end.output
    assert "--ranks must be at most 2 in this Slurm job (got 3)" in end.output


def test_a_killed_rank_fails_the_job_and_leaves_nothing_in_the_way(
    desk: Desk, tmp_path: Path
) -> None:
    venv = make_venv(tmp_path / "venv", f"{HERE.parent}/ranks/failing.py death")
    jobs = {
        flavour: desk.submit_seed(
            7, *ENDLESS, options=(f"--nodes={nodes}", "--ntasks=3"), FEDGMR_MPI=flavour, **venv
        )
        for flavour, nodes in (("pmi2", 1), ("mpirun", 3))
    }
    for job in jobs.values():
        desk.await_text(job, "rank 2 of 3")
    for job in jobs.values():
        end = desk.await_end(job)
        assert end.state == "FAILED" and end.exit_code != "2:0" and end.run_s < LIMIT_S / 2, (
            end.output
        )
    again = jobs["pmi2"]
    desk.cluster.run("scontrol", "requeue", again, cwd=desk.folder)
    for rank in range(3):  # MPI has started again, on the same node
        desk.await_text(again, f"rank {rank} of 3", 2)
