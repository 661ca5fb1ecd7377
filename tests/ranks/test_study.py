"""Studies under real processes: interrupted, failing and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launchers import MPIRUN, ROOT, TINY, Ended, run_job

from fedgmr_hpc.config.files import render_config
from fedgmr_hpc.storage.reader import differing_columns, read_result
from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.locks import is_locked
from fedgmr_hpc.study.states import read_state
from fedgmr_hpc.study.study_file import load_study

STUDY: dict[str, Any] = {
    "title": "tiny",
    "base": "digits",
    "set": dict(word.split("=") for word in TINY[1:]),
    "matrix": {"method": ["fedgmr", "fedavg"], "seed": [0, 1]},
    "comparison_time_s": 5.0,
    "last": 1,
}


def write_study(folder: Path, **changes: Any) -> tuple[Path, list[Cell]]:
    """A study file and its cells; numbers in TINY are text."""
    numbers = {key: int(value) for key, value in STUDY["set"].items()}
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({**STUDY, "set": numbers, **changes}))  # JSON is YAML
    study, words = load_study(path)
    return path, expand(study, words)


def study(action: str, path: Path, *words: str) -> Ended:
    module = ("-m", "fedgmr_hpc", "study", action, str(path), "--out", str(path.parent))
    return run_job(1, *words, launcher="none", module=module, timeout_s=600.0)


def stamps(cells_dir: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cells_dir.glob("*.h5")}


def _hear_interrupts() -> None:
    """Jobs in a script's background ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_study_goes_on_where_it_was(number: signal.Signals, tmp_path: Path) -> None:
    """The second cell is cut short: ended by the study itself, or by whoever killed everything."""
    path, cells = write_study(tmp_path, matrix={"method": ["fedgmr"], "seed": [0, 1, 2]})
    slow = tmp_path / "cells"
    command = [sys.executable, "-m", "fedgmr_hpc", "study", "run", str(path)]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path), "--side-by-side", "1"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    ) as process:
        wait_for(lambda: any(is_done(slow, c) and not is_locked(slow, c) for c in cells))
        wait_for(lambda: list(slow.glob("*.out")))
        process.send_signal(number)
        process.wait(120)
    done = {cell.name for cell in cells if is_done(slow, cell)}
    assert done and len(done) < 3
    before = stamps(slow)
    ended = study("run", path, "--side-by-side", "1")
    assert ended.code == 0, ended.output
    assert all(is_done(slow, cell) for cell in cells)
    assert all(before[f"{name}.h5"] == stamps(slow)[f"{name}.h5"] for name in done)
    assert not list(slow.glob("*.out")) and not list(slow.glob("*.error"))


def is_done(folder: Path, cell: Cell) -> bool:
    return folder.is_dir() and read_state(folder, cell).status == "done"


def wait_for(condition: Any, timeout_s: float = 300.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "nothing happened"
        time.sleep(0.05)


def test_a_half_written_cell_is_run_again(tmp_path: Path) -> None:
    """Its process was killed with the study's, so its file says that it still runs."""
    rounds = {"run.max_rounds": 60}
    path, cells = write_study(tmp_path, matrix={"method": ["fedavg"], "seed": [0]}, set=rounds)
    half = tmp_path / "cells" / f"{cells[0].name}.h5"
    (tmp_path / "run.yaml").write_text(render_config(cells[0].config))
    command = [sys.executable, "-m", "fedgmr_hpc.launch", "--config", str(tmp_path / "run.yaml")]
    words = [f"results.path={half}", "results.flush_s=0.01", "progress=quiet"]
    with subprocess.Popen([*command, *words], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: read_state(half.parent, cells[0]).progress_frac > 0)
        process.kill()
    assert read_state(tmp_path / "cells", cells[0]).status == "interrupted"
    assert study("run", path).code == 0
    assert read_result(half).status == "finished"


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_killed_cell_goes_on_to_the_same_result(is_alone: bool, tmp_path: Path) -> None:
    """Killed with its study, or alone, as where memory is short; then the study says so."""
    settings = {"checkpoint.every_s": 0, "run.max_rounds": 40, "results.flush_s": 0.01}
    path, cells = write_study(tmp_path, matrix={"method": ["fedgmr"], "seed": [0]}, set=settings)
    folder = tmp_path / "cells"
    command = [sys.executable, "-m", "fedgmr_hpc", "study", "run", str(path)]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    ) as process:
        wait_for(lambda: list(folder.glob("*.ckpt.old")))
        (session,) = {os.getsid(pid) for pid in children(process.pid)}
        if not is_alone:
            process.kill()
        os.killpg(session, signal.SIGKILL)
    wait_for(lambda: not is_locked(folder, cells[0]))  # by a process that is about to be gone
    state = read_state(folder, cells[0])
    assert (state.status, process.returncode) == (
        ("failed", 1) if is_alone else ("interrupted", -signal.SIGKILL)
    )
    assert state.error.endswith("(exit code -9)") == is_alone
    assert study("run", path).code == 0
    resumed = read_result(folder / f"{cells[0].name}.h5")
    assert resumed.status == "finished" and 1 in resumed.checkpoints["is_resume"]
    words = ("--config", str(folder / f"{cells[0].name}.yaml"), f"results.path={tmp_path}/whole.h5")
    assert run_job(1, *words, launcher="none").code == 0
    assert differing_columns(resumed, read_result(tmp_path / "whole.h5")) == []
    assert not list(folder.glob("*.ckpt*"))


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("suffix", [".error", ".h5"])
def test_what_a_failed_or_another_cell_left_is_not_gone_on_with(
    suffix: str, tmp_path: Path
) -> None:
    path, cells = write_study(tmp_path, matrix={"method": ["fedavg"], "seed": [0]})
    (tmp_path / "cells").mkdir()
    for left in (suffix, ".ckpt", ".ckpt.old"):
        (tmp_path / "cells" / f"{cells[0].name}{left}").write_text("of something else")
    ended = study("run", path)
    assert ended.code == 0, ended.output
    name, names = cells[0].name, {path.name for path in (tmp_path / "cells").glob("[!.]*")}
    kept = {f"{name}{left}.kept-1" for left in (".h5", ".ckpt", ".ckpt.old")}
    assert names == {f"{name}{each}" for each in (".h5", ".log", ".yaml")} | (
        kept if suffix == ".h5" else set()
    )


def test_jobs_run_on_this_machine_as_on_a_cluster(tmp_path: Path) -> None:
    """A cell that fails, another that does not, then the report; the same again does the rest."""
    few = {"method": ["fedavg"], "data.max_train": [5, 600], "seed": [0]}
    path, cells = write_study(tmp_path, matrix=few)
    ended = study("submit", path, "--local", "--side-by-side", "2")
    assert ended.code == 1, ended.output
    assert [read_state(tmp_path / "cells", c).status for c in cells] == ["failed", "done"]
    assert "1 of 2 cells finished" in (tmp_path / "tiny" / "report.md").read_text()
    again = study("submit", path, "--local", "--dry-run")
    assert again.code == 0 and f"left alone: {cells[1].name}: done" in again.output
    assert "2 cells (1 done, 1 failed), 1 to submit" in again.output


def test_one_failing_cell_does_not_stop_the_others(tmp_path: Path) -> None:
    """Five samples are too few for ten clients, which shows only when the data are dealt."""
    path, cells = write_study(
        tmp_path, matrix={"method": ["fedavg"], "data.max_train": [600, 5, 700], "seed": [0]}
    )
    folder = tmp_path / "cells"
    first = study("run", path)
    assert first.code == 1, first.output
    assert [read_state(folder, cell).status for cell in cells] == ["done", "failed", "done"]
    before = stamps(folder)
    error = (folder / f"{cells[1].name}.error").stat().st_mtime_ns
    shown = study("status", path)
    assert shown.code == 0 and "failed" in shown.output and "(exit code 2)" in shown.output
    assert "2 done, 1 failed of 3 cells" in shown.output
    assert study("run", path).code == 1
    assert stamps(folder) == before
    assert (folder / f"{cells[1].name}.error").stat().st_mtime_ns > error


def test_a_report_names_what_failed_and_reads_the_rest(tmp_path: Path) -> None:
    path, cells = write_study(tmp_path, reference="fedgmr", targets=[0.05])
    for cell in cells[:1]:
        (tmp_path / "cells").mkdir()
        (tmp_path / "cells" / f"{cell.name}.error").write_text("made to fail (exit code 1)\n")
    assert study("run", path, "seed=[1]").code == 0  # seeds of the command line, remembered
    remembered = study("report", path)
    assert remembered.code == 0 and "2 of 2 cells finished" in remembered.output
    ended = study("report", path, "seed=[0, 1]")
    assert "2 of 4 cells finished" in ended.output
    assert "1 cell failed: made to fail (exit code 1): FedGMR (1 of 2)" in ended.output
    made = {p.relative_to(tmp_path / "tiny").as_posix() for p in (tmp_path / "tiny").rglob("*.*")}
    assert {
        "report.md",
        "report.html",
        "tables/differences.csv",
        "tables/test_accuracy.tex",
    } <= made
    assert {"figures/accuracy_vs_time.png", "figures/density_vs_time.pdf"} <= made
    page = (tmp_path / "tiny" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "http" not in page


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python: install mpich")
def test_cells_run_on_ranks_and_are_not_run_again(tmp_path: Path) -> None:
    path, cells = write_study(tmp_path, matrix={"method": ["fedavg"], "seed": [0]}, ranks=2)
    assert study("run", path).code == 0
    result = read_state(tmp_path / "cells", cells[0]).result
    assert result is not None and len(result.ranks["rank"]) == 2
    before = stamps(tmp_path / "cells")
    again = study("run", path, "--ranks", "1")
    assert again.code == 0 and "1 cells (1 done)" in again.output
    assert stamps(tmp_path / "cells") == before
    assert not is_locked(tmp_path / "cells", cells[0])


def test_every_mistake_is_reported_before_anything_starts(tmp_path: Path) -> None:
    path, _ = write_study(tmp_path)
    ended = study("run", path, "train.batch=0", "clients.level=odd")
    assert ended.code == 2 and not (tmp_path / "cells").exists()
    assert len(ended.errors) == 2 and "(in 4 cells, the first: fedgmr-s0)" in ended.errors[0]
