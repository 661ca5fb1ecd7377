"""What `study run` says and refuses before anything is run."""

from __future__ import annotations

import json
import re
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.reporting.live import LiveText
from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.running import local_run
from fedgmr_hpc.study.running.runner import Queue
from fedgmr_hpc.study.states import CellState, progress_of
from fedgmr_hpc.study.study_file import load_study

STUDY: dict[str, Any] = {
    "title": "tiny",
    "base": "digits",
    "set": {"run.max_rounds": 2, "run.interval_rounds": 1, "train.steps": 1, "data.max_train": 600},
    "matrix": {"method": ["fedavg", "fedasync"], "seed": [0]},
    "comparison_time_s": 50.0,
}


def run(folder: Path, *words: str, action: str = "run") -> int:
    (folder / "tiny.yaml").write_text(json.dumps(STUDY))  # JSON is YAML
    return main(["study", action, str(folder / "tiny.yaml"), "--out", str(folder / "out"), *words])


def test_a_dry_run_says_what_is_left_and_what_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "2 cells (2 missing)" in shown and shown.count("  missing: ") == 2
    assert "\n  until: 52.5 s of virtual time, 2 rounds (compared at 50 s)\n" in shown
    assert "estimate: unknown: no pace of fedavg, fedasync is measured yet;" in shown
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, "method=fedavg") == 0
    capsys.readouterr()
    assert run(tmp_path, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "2 cells (1 done, 1 missing)" in shown
    assert re.search(r"\n  done: fedavg-s0-\w{10}\n  missing: fedasync-s0-\w{10}\n", shown)
    assert re.search(r"\nestimate: \d+ s for 1 cells, .*no pace of fedasync is measured", shown)
    assert len(list((tmp_path / "out" / "cells").glob("*.h5"))) == 1


def test_what_went_wrong_stands_below_the_table_of_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long error does not widen the table of the other cells; what a cell waits for is short."""
    _, failed = expand(*load_study(STUDY))
    error = f"run.max_rounds must be {'very ' * 50}small (exit code 2)"
    (tmp_path / "out/cells").mkdir(parents=True)
    (tmp_path / f"out/cells/{failed.name}.error").write_text(f"{error}\n")
    assert run(tmp_path, action="status") == 0
    *table, below, counts = capsys.readouterr().out.splitlines()
    assert re.search(rf"\n{failed.name} +failed +-", "\n".join(table))
    assert max(map(len, table)) < 80 and below == f"{failed.name}: {error}"
    assert counts.startswith("1 failed, 1 missing of 2 cells; time left unknown")
    monkeypatch.setitem(STUDY, "tune", {"train.learning_rate": [0.1, 0.2]})
    monkeypatch.setitem(STUDY, "tune_seeds", [7])
    assert run(tmp_path, action="status") == 0
    *table, counts = capsys.readouterr().out.splitlines()
    assert re.search(
        r"\nfedasync-s0-\w+ +waiting( +-){3} +0 of 2 trials have ended$", "\n".join(table)
    )
    assert counts.startswith("4 missing, 2 waiting of 6 cells")


def test_a_look_at_a_study_reads_no_file_of_cells_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = {**STUDY, "tune": {"train.learning_rate": [0.1, 0.2]}, "tune_seeds": [7]}
    study, words = load_study(tuned)
    cells = expand(study, words)
    ended = [CellState(status, tmp_path) for status in ("done", "diverged", "failed", "missing")]
    waiting = [CellState("waiting", tmp_path)] * 2
    read: list[str] = []

    def look(folder: Path, cell: Cell) -> CellState:
        read.append(cell.name)
        return CellState("done", folder)

    monkeypatch.setattr(local_run, "read_state", look)
    states = list(zip(cells, [*ended, *waiting], strict=True))
    shown = StringIO()
    watch = local_run._Watch(tmp_path, states, 1, LiveText(shown, plain_interval_s=0.0), study)
    for done in ("3/6", "3/6"):
        watch.see(Queue(tmp_path, 1, 1))
        assert done in shown.getvalue().splitlines()[-1]
    assert read == [cell.name for cell in cells[2:4]]


def test_runs_that_end_before_they_are_compared_are_told_once_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--max-parallel", "1", "seed=[0,1]") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 2 and warnings[0].startswith("fedgmr_hpc: warning: fedavg-s0 ended at ")
    assert warnings[1].startswith("fedgmr_hpc: warning: fedasync-s0 ended at ")
    end = "s (run.max_rounds 2), before comparison_time_s, 50 s: it has no value there"
    assert all(line.endswith(end) for line in warnings)
    assert run(tmp_path, "--max-parallel", "1", "seed=[0,1]", "run.max_rounds=2") == 0
    assert "warning" not in capsys.readouterr().err  # of no cell that was done before


def test_cells_that_can_run_by_now_do_not_wait_for_those_that_still_run(tmp_path: Path) -> None:
    first, second, third = expand(
        *load_study({**STUDY, "matrix": {"method": ["fedavg"], "seed": [0, 1, 2]}})
    )
    flag = tmp_path / "third"
    code = {
        first.name: "pass",
        second.name: f"import pathlib, time\nend = time.time() + 30\nwhile time.time() < end and "
        f"not pathlib.Path({str(flag)!r}).exists(): time.sleep(0.02)\ntime.sleep(1)",
        third.name: f"open({str(flag)!r}, 'w')",
    }

    def launcher(ranks: int, words: list[str]) -> list[str]:
        return [sys.executable, "-c", code[Path(words[1]).stem]]

    later = [[third]]
    queue = Queue(tmp_path, 1, 2, launcher=launcher, more=lambda: later.pop() if later else ())
    assert not queue.run([first, second])
    assert [cell.name for cell in queue.failed] == [first.name, third.name, second.name]


@pytest.mark.parametrize("action", ["run", "submit"])
def test_a_comparison_that_no_cell_can_reach_is_refused(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--dry-run", "run.max_time_s=49", action=action) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "run.max_time_s must be null, or at least 50, the study's comparison_time_s (got 49)"
        in line
    )
    for fine in ("50", "null"):
        assert run(tmp_path, "--dry-run", f"run.max_time_s={fine}", action=action) == 0


def test_one_cell_that_can_reach_the_comparison_is_enough(tmp_path: Path) -> None:
    matrix = {"method": ["fedavg"], "run.max_time_s": [10, 60]}
    (tmp_path / "two.yaml").write_text(json.dumps({**STUDY, "matrix": matrix}))
    assert main(["study", "run", str(tmp_path / "two.yaml"), "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("limit_s", "num_rounds", "now_s", "part"),
    [("null", 1, 9.0, 0.5), ("60", 0, 45.0, 0.75), ("60", 1, 15.0, 0.5), ("60", 1, 90.0, 1.0)],
)
def test_progress_is_of_rounds_or_of_virtual_time_where_that_is_more(
    limit_s: str, num_rounds: int, now_s: float, part: float
) -> None:
    cell = expand(*load_study(STUDY, [f"run.max_time_s={limit_s}"]))[0]
    assert progress_of(cell, num_rounds, now_s) == part


def test_trials_that_end_before_they_are_judged_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = {"tune": {"train.learning_rate": [0.1, 0.2]}, "tune_time_s": 90}
    (tmp_path / "tuned.yaml").write_text(json.dumps({**STUDY, **tune}))
    words = ["study", "run", str(tmp_path / "tuned.yaml"), "--dry-run"]
    assert main([*words, "run.max_time_s=80"]) == 2
    assert "at least 90, the study's tune_time_s (got 80)" in capsys.readouterr().err
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "\n  tune train.learning_rate: 0.1, 0.2\n  trials: 4 of the cells, 2 for a row" in shown
