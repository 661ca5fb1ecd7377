"""The scripts of slurm/ up to where ranks would start: what they say, and what they refuse.

Stand-ins for Slurm's commands do nothing but say how they were called; tests/slurm has a real one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NO_MODULES = "ModuleNotFoundError: No module named 'pydantic'"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder to submit from, with data of one kind and commands that stand in."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "data" / "femnist").mkdir(parents=True)
    put(tmp_path / "bin" / "srun", 'echo "srun $*"')
    put(tmp_path / "bin" / "scontrol", "echo n1")
    put(tmp_path / "bin" / "python", f'echo "{NO_MODULES}" >&2; exit 1')
    put(tmp_path / "venv" / "bin" / "python", f'exec {sys.executable} "$@"')
    return tmp_path


def put(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(desk: Path, script: str, *words: str, **env: str) -> tuple[int, list[str]]:
    """Exit code and lines of a script; variables that are "" are not set."""
    own = {
        "PATH": f"{desk}/bin:/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "femnist",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_SUBMIT_DIR": str(desk),
        "FEDGMR_DATA": f"{desk}/data",
        "FEDGMR_MPI": "torch",
        **env,
    }
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / f"{script}.sh"), *words],
        env={name: value for name, value in own.items() if value},
        cwd=desk,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout.splitlines()


def test_a_job_says_what_it_runs_before_its_ranks(desk: Path) -> None:
    venv = f"{desk}/venv"
    code, lines = run(desk, "femnist", "seed=5", FEDGMR_VENV=venv)
    place = f"data.root={desk}/data/femnist results.path=results/femnist-7.h5 seed=5"
    assert code == 0 and len(lines) == 3, lines
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}"
    head = rf"job 7 on n1, {stamp}, commit \S+, {venv}/bin/python, start 1: mpi torch"
    assert re.fullmatch(head, lines[0])
    assert lines[1] == f"launch --config femnist --resume {place}"
    assert lines[2].startswith("srun --nodes=1 ") and lines[2].endswith(place)


def test_without_a_named_python_the_one_of_make_is_taken(desk: Path) -> None:
    (desk / ".venv").symlink_to(desk / "venv")
    code, lines = run(desk, "array", "digits")
    assert code == 0 and f"{desk}/.venv/bin/python" in lines[0], lines
    assert lines[1].endswith("results.path=results/femnist-7.h5 seed=3")


def test_a_python_that_is_named_is_not_replaced(desk: Path) -> None:
    (desk / ".venv").symlink_to(desk / "venv")
    code, lines = run(desk, "array", "digits", FEDGMR_VENV=str(desk))
    said = f"python: {desk}/bin/python cannot import fedgmr_hpc ({NO_MODULES}): set FEDGMR_VENV"
    assert code == 2 and len(lines) == 1 and lines[0].startswith(said), lines


def test_where_the_files_are_may_be_said_by_a_word(desk: Path) -> None:
    code, lines = run(desk, "femnist", "data.root=/d", FEDGMR_VENV=f"{desk}/venv", FEDGMR_DATA="")
    assert code == 0 and lines[1].count("data.root=") == lines[1].count("data.root=/d") == 1, lines


@pytest.mark.parametrize(
    ("script", "words", "env", "said"),
    [
        ("femnist", (), {"SLURM_SUBMIT_DIR": "/"}, "submit from the checkout: there is no /"),
        ("femnist", (), {"SLURM_JOB_ID": ""}, "SLURM_JOB_ID: not set: submit this script with"),
        ("femnist", (), {}, "python: "),
        ("array", (), {}, "CONFIG must be a run of configs/runs, or a file (got nothing)"),
        ("scaling", ("strong",), {}, "scaling must be given KIND CONFIG --ranks 2,3"),
        (
            "femnist",
            (),
            {"FEDGMR_VENV": "/nope"},
            "FEDGMR_VENV must be a folder with bin/python (got /nope)",
        ),
        ("femnist", (), {"FEDGMR_DATA": ""}, "FEDGMR_DATA must be the folder that holds"),
        ("cifar10", (), {}, "FEDGMR_DATA must be the folder that holds "),
        ("scaling", ("weak", "cifar10"), {}, "FEDGMR_DATA must be the folder that holds "),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_started(
    script: str, words: tuple[str, ...], env: dict[str, str], said: str, desk: Path
) -> None:
    modules = {} if said == "python: " else {"FEDGMR_MODULES": "none"}  # fails where it is loaded
    code, lines = run(desk, script, *words, **modules, **env)
    assert (code, len(lines)) == (2, 1) and lines[0].startswith(said), lines


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("9,1(x2)", ["warning: job 7: its nodes have 9,1(x2) tasks: add --ntasks-per-node=4 to"]),
        ("4(x2),3", []),
        ("5(x3)", []),  # so many may be there; srun deals out evenly
    ],
)
def test_tasks_that_lie_on_one_node_are_told(tasks: str, said: list[str], desk: Path) -> None:
    env = {"SLURM_NTASKS": "11", "SLURM_JOB_NUM_NODES": "3", "SLURM_TASKS_PER_NODE": tasks}
    code, lines = run(desk, "femnist", FEDGMR_VENV=f"{desk}/venv", **env)
    warned = [line.removesuffix(" share them out") for line in lines if "warning" in line]
    assert (code, warned) == (0, said), lines


def test_an_mpi_that_does_not_load_is_refused_and_not_replaced(desk: Path) -> None:
    env = {"FEDGMR_VENV": f"{desk}/venv", "FEDGMR_MPI": "auto"}
    code, lines = run(desk, "femnist", MPI4PY_LIBMPI="/nope/libmpi.so.12", **env)
    said = "mpi: got auto, but mpi4py finds no MPI (/nope/libmpi.so.12: "
    assert (code, len(lines)) == (2, 1) and lines[0].startswith(said), lines
    assert lines[0].endswith(
        "load the site's module for it (modules), or say mpi: torch to do without"
    )
    (code, lines) = run(desk, "femnist", **env)  # it loads, but nothing here can start its ranks
    assert (code, len(lines)) == (2, 1) and "no plugin pmi2 and there is no mpirun" in lines[0]
    code, lines = run(desk, "femnist", MPI4PY_LIBMPI="/nope", **env | {"FEDGMR_MPI": "torch"})
    assert code == 0 and lines[0].endswith(": mpi torch"), lines


def test_mpirun_gets_the_sites_words_and_as_many_ranks_a_node(desk: Path) -> None:
    put(desk / "bin" / "mpirun", 'echo "$SLURM_TASKS_PER_NODE mpirun $*"')
    env = {"FEDGMR_MPI": "mpirun", "FEDGMR_MPIRUN_ARGS": "--bind-to none", "SLURM_NTASKS": "11"}
    venv = f"{desk}/venv"
    code, lines = run(desk, "femnist", FEDGMR_VENV=venv, SLURM_JOB_NUM_NODES="3", **env)
    assert code == 0 and lines[2].startswith("4(x2),3(x1) mpirun -n 11 --bind-to none "), lines


def test_a_results_folder_that_cannot_be_written_ends_the_job(desk: Path) -> None:
    (desk / "taken").touch()
    venv = f"{desk}/venv"
    for words, env in (((), {"FEDGMR_RESULTS": "taken"}), (("results.path=taken/a.h5",), {})):
        code, lines = run(desk, "femnist", *words, FEDGMR_VENV=venv, **env)
        assert (code, len(lines)) == (2, 1), lines
        assert lines[0].startswith(
            "results.path must lie in a folder that can be written (got taken)"
        )


def test_a_large_cache_goes_to_the_node_where_the_site_has_no_scratch(desk: Path) -> None:
    (desk / "data" / "imagenet100").mkdir()
    env = {"FEDGMR_VENV": f"{desk}/venv", "TMPDIR": f"{desk}/tmp", "SLURM_JOB_NAME": "imagenet100"}
    (desk / "tmp").mkdir()
    for scratch, place in (("", f"{desk}/tmp"), ("/s", "/s")):
        _, lines = run(desk, "imagenet100", FEDGMR_SCRATCH=scratch, **env)
        assert f" data.cache={place}/fedgmr_hpc " in lines[1], lines
    code, lines = run(desk, "femnist", **env)
    assert code == 0 and "data.cache" not in lines[1]
