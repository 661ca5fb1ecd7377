"""The one private function of submitit that this package calls, held against its public ones."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import submitit

import fedgmr_hpc
from fedgmr_hpc.study.slurm import sbatch_text
from fedgmr_hpc.study.slurm.sbatch_text import PYTHON, make_sbatch_text

SETTINGS = {"job_name": "tiny", "nodes": 2, "use_srun": False, "wckey": None, "setup": ["true"]}


def test_the_private_text_maker_of_submitit_is_there() -> None:
    """Where this fails after an update of submitit, see `_make_sbatch_string` in its slurm.py."""
    assert submitit.__version__.startswith("1.5.")
    parameters = inspect.signature(sbatch_text._make_sbatch_string).parameters
    assert {"command", "folder", "map_count", "additional_parameters", "setup"} <= set(parameters)


def test_no_other_module_uses_what_is_private_to_submitit() -> None:
    root = Path(fedgmr_hpc.__file__).parent
    private = re.compile(r"submitit[\w.]* import .*\b_\w+|submitit[\w.]*\._\w+")
    users = {p.name for p in root.rglob("*.py") if private.search(p.read_text())}
    assert users == {"sbatch_text.py"}


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_the_text_is_what_a_submission_writes(
    num_tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = {"sbatch": f'/bin/cat "$1" > {tmp_path}/given; echo Submitted batch job 7'}
    for name, script in {**commands, "srun": "true"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    executor = submitit.SlurmExecutor(tmp_path / "jobs", python=PYTHON)
    executor.update_parameters(**SETTINGS)
    executor.submit_array([_nothing] * num_tasks)
    wanted = make_sbatch_text(tmp_path / "jobs", SETTINGS, num_tasks if num_tasks > 1 else None)
    assert (tmp_path / "given").read_text() == wanted


def _nothing() -> None:
    pass
