"""`study submit` on a real Slurm: an array on three nodes, a failure, and what goes on after it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster as slurm
import pytest

from fedgmr_hpc.storage.reader import differing_columns, read_result
from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.states import read_state
from fedgmr_hpc.study.study_file import load_study
from fedgmr_hpc.study.tuning import with_chosen_values

BIN = Path(sys.executable).parent
STUDY: dict[str, Any] = {
    "title": "tiny",
    "base": "digits",
    "set": {
        "run.max_rounds": 6,
        "run.interval_rounds": 3,
        "restoration.patience": 1,
        "train.steps": 1,
        "eval.client_samples": 32,
        "data.max_train": 600,
        "data.max_test": 200,
    },
    "matrix": {"method": ["fedgmr", "fedavg"], "seed": [0, 1, 2]},
    "comparison_time_s": 5.0,
    "last": 1,
    "ranks": 2,
}
pytestmark = pytest.mark.skipif(not (BIN / "mpirun").exists(), reason="no mpirun beside python")


@dataclass(frozen=True)
class Desk:
    """A study in a folder of its own, and the cluster that it goes to."""

    cluster: slurm.Cluster
    folder: Path
    venv: Path

    def write(self, **changes: Any) -> list[Cell]:
        (self.folder / "tiny.yaml").write_text(json.dumps({**STUDY, **changes}))  # JSON is YAML
        study, words = load_study(self.folder / "tiny.yaml")
        return expand(study, words)

    def study(self, action: str, *words: str) -> str:
        """What is printed: the terminal's two streams."""
        command = [sys.executable, "-m", "fedgmr_hpc", "study", action, "tiny.yaml", "--out", "out"]
        env = {**self.cluster.env, "FEDGMR_VENV": str(self.venv)}
        done = subprocess.run(
            [*command, *words],
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def submit(self, *words: str) -> tuple[str, str, str]:
        """What is printed, and the ids of the cells' job and of the report's."""
        shown = self.study("submit", "--site", "local", *words)
        cells, report = re.findall(r"^job (\d+): ", shown, flags=re.MULTILINE)
        return shown, cells, report

    def queue(self, job: str) -> list[str]:
        command = ("squeue", "--noheader", "--array", "--format=%F %i %T %R")
        lines = self.cluster.run(*command, cwd=self.folder).splitlines()
        return [line for line in lines if line.startswith(f"{job} ")]

    def await_end(self, job: str, limit_s: float = 600.0) -> None:
        has_ended = slurm.wait_until(lambda: not self.queue(job), limit_s)
        assert has_ended, "\n".join([*self.queue(job), self.logs()])

    @property
    def cells_dir(self) -> Path:
        return self.folder / "out" / "cells"

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self.cells_dir.glob(".jobs/*/*.out"))


@pytest.fixture
def desk(cluster: slurm.Cluster, tmp_path: Path) -> Desk:
    """With a Python that fails for the cell that the file `broken` names."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"""#!/bin/sh
if [ -e {tmp_path}/broken ]; then
    case "$*" in *launch*"$(cat {tmp_path}/broken)"*)
        echo "fedgmr_hpc: error: made to fail"
        exit 9 ;;
    esac
fi
exec {sys.executable} "$@"
"""
    )
    python.chmod(0o755)
    return Desk(cluster, tmp_path, tmp_path / "venv")


def test_one_of_six_cells_fails_and_alone_is_submitted_again(desk: Desk) -> None:
    cells, options = desk.write(), ("--nodes", "2", "--side-by-side", "3")
    (desk.folder / "broken").write_text(cells[4].name)
    texts = desk.study("submit", "--site", "local", *options, "--dry-run")
    _, job, report = desk.submit(*options)
    given = [
        path.read_text()
        for path in (
            desk.cells_dir / f".jobs/0001/{job}_submission.sh",
            desk.cells_dir / f".jobs/0001/report/{report}_submission.sh",
        )
    ]
    assert texts.endswith("".join(given).replace(f"afterany:{job}", "afterany:JOB"))
    at_once = desk.study("submit", "--site", "local", *options)
    assert "0 to submit" in at_once and f"queued, job {job}_5 (" in at_once

    def shows_nodes() -> bool:
        return bool(re.search(rf"running .*job {job}_\d on n\[?\d", desk.study("status")))

    assert slurm.wait_until(shows_nodes, 300.0)
    assert "PENDING (Dependency)" in desk.queue(report)[0]
    desk.await_end(report)
    shown = desk.study("status")
    assert "5 done, 1 failed of 6 cells" in shown, desk.logs()
    assert re.search(rf"{cells[4].name} +failed ", shown)
    assert re.search(rf"\n{cells[4].name}: .*made to fail \(exit code \d+\)\n", shown)
    page = desk.folder / "out" / "tiny" / "report.md"
    assert "5 of 6 cells finished" in page.read_text()
    hosts = read_state(desk.cells_dir, cells[0]).result.ranks["host"]  # type: ignore[union-attr]
    assert len(set(hosts.astype(str))) == 2
    before = {path: path.stat().st_mtime_ns for path in desk.cells_dir.glob("*.h5")}
    (desk.folder / "broken").unlink()
    again, _, report = desk.submit(*options)
    assert "6 cells (5 done, 1 failed), 1 to submit" in again
    assert again.count("left alone: ") == again.count(": done") == 5
    desk.await_end(report)
    assert "6 done of 6 cells" in desk.study("status"), desk.logs()
    assert "6 of 6 cells finished" in page.read_text()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_cells_of_a_tuned_study_wait_for_the_trials(desk: Desk) -> None:
    """Two arrays and a report: the second's task reads what the first's have chosen."""
    tune = {"train.learning_rate": [0.1, 0.2]}
    *trials, cell = desk.write(matrix={"method": ["fedgmr"], "seed": [0]}, tune=tune, ranks=1)
    shown = desk.study("submit", "--site", "local")
    first, second, report = re.findall(r"^job (\d+): ", shown, flags=re.MULTILINE)
    assert f"job {second}: 1 cells, 32 at a time, after {first}" in shown
    assert "PENDING (Dependency)" in desk.queue(second)[0]
    again = desk.study("submit", "--site", "local")
    assert "0 to submit" in again and f"queued, job {second} (Dependency)" in again
    desk.await_end(report)
    assert "3 done of 3 cells" in desk.study("status"), desk.logs()
    run = with_chosen_values(desk.cells_dir, cell)
    assert [read_state(desk.cells_dir, each).status for each in (*trials, run)] == ["done"] * 3
    page = (desk.folder / "out" / "tiny" / "report.md").read_text()
    assert "1 of 1 cells finished, 2 of 2 trials" in page


def test_a_cell_goes_on_after_a_cancel_and_a_requeue(desk: Desk) -> None:
    """Cancelled at first; submitted again it is told that its time is over, and requeued."""
    settings = {**STUDY["set"], "run.max_rounds": 150, "results.flush_s": 0.1}
    one = {"method": ["fedgmr"], "seed": [0]}
    (cell,) = desk.write(matrix=one, set=settings, comparison_time_s=1e4)  # bounds a run

    def has_done(part: float) -> bool:
        return read_state(desk.cells_dir, cell).progress_frac > part

    _, job, _ = desk.submit()
    assert slurm.wait_until(lambda: has_done(0.1), 300.0), desk.logs()
    desk.cluster.run("scancel", job, cwd=desk.folder)
    desk.await_end(job)
    shown = desk.study("status")
    assert re.search(rf"interrupted .* %, job {job} on n\d: CANCELLED, see", shown), shown
    part = read_state(desk.cells_dir, cell).progress_frac
    again, job, _ = desk.submit()
    assert "1 cells (1 interrupted), 1 to submit" in again
    assert slurm.wait_until(lambda: has_done(part + 0.1), 300.0), desk.logs()
    desk.cluster.run("scancel", "--batch", "--signal=USR1", job, cwd=desk.folder)
    desk.await_end(job)
    assert f"job {job}: checkpointed, requeued" in desk.logs()
    result = read_state(desk.cells_dir, cell).result
    assert result is not None and result.status == "finished", desk.logs()
    assert {"resume_1", "resume_2"} <= result.provenance.keys()
    whole = ["-m", "fedgmr_hpc.launch", "--config", str(desk.cells_dir / f"{cell.name}.yaml")]
    path = desk.folder / "whole.h5"
    subprocess.run(
        [sys.executable, *whole, f"results.path={path}"], check=True, env=desk.cluster.env
    )
    assert differing_columns(result, read_result(path)) == []
