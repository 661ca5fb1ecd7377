"""An installed wheel needs no checkout: it brings configurations and job scripts along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which a wheel of this checkout was installed."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*PIP, *build], check=True, timeout=TIMEOUT_S)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    options = ["--no-deps", "--no-compile", "--target", str(target)]
    subprocess.run([*PIP, "install", *options, str(wheel)], check=True, timeout=TIMEOUT_S)
    return target


def run_in(folder: Path, installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedgmr_hpc", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def test_a_run_and_a_submission_work_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    package = installed / "fedgmr_hpc"
    scripts = package / "slurm"
    assert os.access(scripts / "rank.sh", os.X_OK) and os.access(scripts / "node.sh", os.X_OK)
    words = ("run.max_rounds=1", "results.path=run.h5", "progress=quiet")
    ran = run_in(tmp_path, installed, "launch", *words)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "run.h5").exists()
    shown = run_in(tmp_path, installed, "study", "submit", "quick", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert f"source {scripts}/common.sh" in shown.stdout and "12 to submit" in shown.stderr
