"""Write what submitit gives to sbatch, without submitting it, for `study submit --dry-run`.

submitit's public interface makes this text only on the way to sbatch, which a dry run may not have.
Hence this module, and no other, calls a private function of submitit: pyproject.toml bounds its
version, and tests/unit/study/test_sbatch_text.py compares the text with what a submission writes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

PYTHON = "exec python"  # takes the batch script's place, so that signals for it arrive


def make_sbatch_text(
    folder: Path, settings: Mapping[str, Any], num_tasks: int | None = None
) -> str:
    """Return the batch script of an array, or of a single job.

    Args:
        folder: Of submitit's files.
        settings: What `SlurmExecutor.update_parameters` takes.
        num_tasks: Of the array; None for a single job.
    """
    command = f"{PYTHON} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command, folder, map_count=num_tasks, **settings)
