"""One Slurm of three nodes for all tests of this folder, started when the first asks for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cluster as slurm
import pytest
from desk import BIN, Desk

from fedgmr_hpc.config.sites import load_site, render_exports

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """The running Slurm; skips, naming the reason, where none can be started."""
    if reason := slurm.why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="fedgmr-slurm-"))
    try:
        yield slurm.start(folder)
    finally:
        slurm.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def desk(cluster: slurm.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The site `local`, this Python, and a folder to submit from."""
    if not (BIN / "mpirun").exists():
        pytest.skip("no mpirun beside python")
    folder = tmp_path_factory.mktemp("desk")
    (folder / "slurm").symlink_to(ROOT / "slurm")
    lines = render_exports(load_site("local")).splitlines()
    site = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    own = {"FEDGMR_VENV": str(BIN.parent), "FEDGMR_SCRATCH": str(folder / "scratch")}
    data = os.environ.get("FEDGMR_DATA", "")
    return Desk(cluster, folder, {**site, **own, "FEDGMR_DATA": data})
