"""What slurm/common.sh does before any rank starts; Slurm's commands are stand-ins here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = Path(__file__).parents[2] / "slurm" / "common.sh"
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "job",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NTASKS": "2",
    "SLURM_TASKS_PER_NODE": "2",
}
PROGRAMS = {"scontrol": "echo n1", "srun": "echo none pmi2 pmix cray_shasta >&2"}
CRAY = "MPI VERSION    : CRAY MPICH version 8.1.25.17 (ANL base 3.4a2)"


def run_shell(
    folder: Path, lines: str, job: dict[str, str] = JOB, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run lines of bash in a job, after common.sh."""
    programs = folder / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = f"source {shlex.quote(str(COMMON))}\n{lines}"
    return subprocess.run(
        ["bash", "-c", script],
        env={"PATH": path, "HOME": str(folder / "home"), **job, **env},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def with_profile(folder: Path, text: str) -> str:
    """Return lines of bash that make `text` the machine's /etc/profile."""
    (folder / "profile").write_text(text)
    path = shlex.quote(str(folder / "profile"))
    return f"source() {{ [[ $1 == /etc/profile ]] && builtin source {path}; }}\n"


ROUGH = """\
false
false | true
echo "$NOT_SET"
module() { [[ $2 != bad/1 ]] && echo "$NOT_SET" && false | true && echo "loaded $2"; }
false
"""


def test_a_profile_whose_commands_fail_does_not_end_the_job(tmp_path: Path) -> None:
    lines = with_profile(tmp_path, ROUGH) + "enter_site; echo $-; shopt -qo pipefail"
    done = run_shell(tmp_path, lines, FEDGMR_MODULES="gcc/1 mpi/2", FEDGMR_MPI="pmi2")
    assert done.returncode == 0, done.stderr
    assert "loaded gcc/1\n" in done.stdout and "loaded mpi/2\n" in done.stdout
    *_, said, flags = done.stdout.splitlines()
    assert said.endswith("start 1: mpi pmi2") and {"e", "u"} <= set(flags)


@pytest.mark.parametrize(
    ("profile", "line"),
    [
        (ROUGH, "modules: must be modules that load here (got bad/1)"),
        (
            "false",
            "modules: must be left out where /etc/profile defines no module (got gcc/1 bad/1)",
        ),
    ],
)
def test_a_module_that_does_not_load_is_refused(tmp_path: Path, profile: str, line: str) -> None:
    lines = with_profile(tmp_path, profile) + "enter_site"
    done = run_shell(tmp_path, lines, FEDGMR_MODULES="gcc/1 bad/1")
    assert (done.returncode, done.stderr) == (2, f"{line}\n")


def test_a_job_without_a_number_of_ranks_is_refused(tmp_path: Path) -> None:
    """As `salloc` without -n makes it."""
    job = {name: value for name, value in JOB.items() if name != "SLURM_NTASKS"}
    done = run_shell(tmp_path, "enter_site", job)
    line = "SLURM_NTASKS: not set: give sbatch or salloc the number of ranks, --ntasks=N\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.parametrize(
    ("library", "plugin"),
    [
        (CRAY, "cray_shasta"),
        ("MPICH Version: 5.0.2", "pmi2"),
        ("Open MPI v5.0.3, package: Open MPI builder", "pmix"),
    ],
)
def test_the_plugin_follows_from_the_mpi_library(tmp_path: Path, library: str, plugin: str) -> None:
    says = f'python() {{ [[ $2 != *version* ]] || echo "{library}"; }}\n'
    assert run_shell(tmp_path, f"{says}choose_mpi").stdout == f"{plugin}\n"


def test_results_under_the_home_folder_are_looked_for_there(tmp_path: Path) -> None:
    done = run_shell(tmp_path, "check_results run.max_rounds=4 'results.path=~/deep/x.h5'")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "deep").is_dir() and not (tmp_path / "~").exists()


def test_steps_of_a_job_without_an_environment_have_one(tmp_path: Path) -> None:
    """Slurm sets this in jobs of `sbatch --export=NONE`; srun obeys it."""
    lines = "enter_site; echo $SLURM_EXPORT_ENV"
    done = run_shell(tmp_path, lines, FEDGMR_MPI="pmi2", SLURM_EXPORT_ENV="NONE")
    assert done.stdout.endswith("\nALL\n"), done.stderr
