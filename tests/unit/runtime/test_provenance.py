"""What a result says about where it comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
import torch

from fedgmr_hpc.runtime.provenance import _gpu_driver, collect_provenance, rank_software
from fedgmr_hpc.storage.schema import OTHER_COLUMNS


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


def test_each_rank_says_what_it_runs_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOADEDMODULES", "gcc/13.2:openmpi/5.0")
    transport = SimpleNamespace(name="mpi", library="MPICH Version:      5.0.2\nmore")
    found = rank_software(transport)  # type: ignore[arg-type]
    said = (found["transport"], found["mpi_library"], found["modules"], found["gpu"])
    assert said == ("mpi", "MPICH Version: 5.0.2", "gcc/13.2:openmpi/5.0", "")
    assert f" h5py {h5py.__version__} " in found["versions"]
    assert set(found) == OTHER_COLUMNS["ranks"] - {"cuda_graphs"}  # told by the worker
    driver = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n"
    (tmp_path / "version").write_text(driver)
    assert _gpu_driver(str(tmp_path / "version")) == "535.104.05"
    assert _gpu_driver("/nope") == ""


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
    ignored = Path(__file__).parents[3] / ".gitignore"
    (tmp_path / ".gitignore").write_text(ignored.read_text())
    left = "a.h5 a.h5.old a.log a.trace.json a.ckpt agree/a.h5 probe/a.csv scaling-weak-2/a.csv"
    kept = ["results/2026-11-21/scaling-weak/a.csv", "results/README.md"]
    for name in [*(f"results/{name}" for name in left.split()), "results/2026-11-21/a.h5", *kept]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    words = ["git", "-C", str(tmp_path), "status", "--porcelain", "-uall", "results"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert [line[3:] for line in shown.splitlines()] == kept


def test_the_vector_instructions_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert collect_provenance(tmp_path)["cpu_capability"] == "AVX512"
