"""The scripts of slurm/ up to where ranks would start: what they say, and what they refuse.

Stand-ins for Slurm's commands do nothing but say how they were called; tests/slurm has a real one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
        ("array", (), {}, "CONFIG: got nothing, allowed: a run of configs/runs, or a file"),
        ("scaling", ("strong",), {}, "scaling: got 'strong', allowed: KIND CONFIG --ranks 2,3"),
        ("femnist", (), {"FEDGMR_VENV": "/nope"}, "FEDGMR_VENV: got /nope, allowed: a folder with"),
        ("femnist", (), {"FEDGMR_DATA": ""}, "FEDGMR_DATA: got '', allowed: the folder that holds"),
        ("cifar10", (), {}, "FEDGMR_DATA: got '"),
        ("scaling", ("weak", "cifar10"), {}, "FEDGMR_DATA: got '"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_started(
    script: str, words: tuple[str, ...], env: dict[str, str], said: str, desk: Path
) -> None:
    modules = {} if said == "python: " else {"FEDGMR_MODULES": "none"}  # fails where it is loaded
    code, lines = run(desk, script, *words, **modules, **env)
    assert (code, len(lines)) == (2, 1) and lines[0].startswith(said), lines
