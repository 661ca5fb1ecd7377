"""A worker that cannot be made ends the run at once, not after `run.timeout_s` of silence."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedgmr_hpc
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.runtime import worker

KEYS = {"run.max_rounds": 1, "data.max_train": 300, "data.max_test": 50, "progress": "quiet"}


def test_clients_that_do_not_fit_into_memory_end_the_run_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(worker, "VersionEvaluator", fail)
    with pytest.raises(RunError, match="rank 1.*RuntimeError: out of memory"):
        fedgmr_hpc.run("digits", KEYS, **{"run.timeout_s": 5, "results.path": tmp_path / "run.h5"})
