"""What a result says about where it comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import h5py
import pytest

from fedgmr_hpc.provenance import collect_provenance


def test_provenance_has_versions_job_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_JWT", "secret")
    found = collect_provenance(tmp_path)
    assert found["git_commit"] == found["git_dirty"] == "unknown"
    assert found["version_h5py"] == h5py.__version__
    assert found["slurm_job_id"] == "42"
    assert '"SLURM_JOB_ID": "42"' in found["environment"] and "secret" not in found["environment"]
    assert all(isinstance(value, str) for value in found.values())


def test_provenance_sees_commit_and_changes(tmp_path: Path) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    clean = collect_provenance(tmp_path)
    (tmp_path / "new.py").write_text("")
    assert len(clean["git_commit"]) == 40 and clean["git_dirty"] == "false"
    assert collect_provenance(tmp_path)["git_dirty"] == "true"
