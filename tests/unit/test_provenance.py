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


def test_what_a_run_leaves_in_results_is_no_change(tmp_path: Path) -> None:
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    ignored = Path(__file__).parents[2] / ".gitignore"
    (tmp_path / ".gitignore").write_text(ignored.read_text())
    left = "a.h5 a.h5.old a.log a.trace.json a.ckpt agree/a.h5 probe/a.csv scaling-weak-2/a.csv"
    kept = ["results/2026-11-21/scaling-weak/a.csv", "results/README.md"]
    for name in [*(f"results/{name}" for name in left.split()), "results/2026-11-21/a.h5", *kept]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    words = ["git", "-C", str(tmp_path), "status", "--porcelain", "-uall", "results"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert [line[3:] for line in shown.splitlines()] == kept
