"""The tidy table of a study: its finished runs, and what it varies and tunes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import fedgmr_hpc
from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.study.folder import open_study
from fedgmr_hpc.study.states import result_path

STUDY: dict[str, Any] = {
    "title": "tiny",
    "base": "digits",
    "set": {"run.max_rounds": 2, "run.interval_rounds": 1, "train.steps": 1, "data.max_train": 200},
    "matrix": {"method": ["fedavg", "fedasync"], "seed": [1], "train.batch": [4, 8]},
    "tune": {"train.learning_rate": [0.1, 0.2]},
    "tune_seeds": [7],
    "comparison_time_s": 4.0,
    "last": 1,
}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "tiny.yaml").write_text(json.dumps(STUDY))  # JSON is YAML
    return ["study", "export", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out")]


def finish_fedavg(words: list[str]) -> None:
    """Run the trials and cells of one method with batches of 4."""
    for _ in range(2):  # trials, then what they have chosen
        folder = open_study(words[2], [], words[4], reuses_overrides=False)
        for cell, state in folder.states():
            is_wanted = cell.labels == {"method": "fedavg", "train.batch": 4} | (
                {} if cell.is_trial else {"seed": 1}
            )
            if is_wanted and state.status == "missing":
                keys = {"results.path": result_path(folder.cells_dir, cell), "progress": "quiet"}
                fedgmr_hpc.run(cell.config.model_dump(mode="json"), keys)


def test_finished_runs_are_rows_and_what_varies_or_is_tuned_columns(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert "tiny.yaml: no run has finished; `python -m fedgmr" in capsys.readouterr().err
    finish_fedavg(words)
    assert main(words) == 0
    out = tmp_path / "out" / "tiny" / "tidy.csv"
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: 1 run; 3 more have not finished"
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[1:7] == [
        *("method", "seed", "label", "train.batch", "train.learning_rate", "round")
    ]
    assert [(row["method"], row["seed"], row["label"], row["version"]) for row in rows] == [
        ("fedavg", "1", "fedavg", version) for version in ("0", "1", "2")
    ]
    assert {row["train.batch"] for row in rows} == {"4"}
    assert {row["train.learning_rate"] for row in rows} <= {"0.1", "0.2"}
    assert main([*words, "--format", "jsonl"]) == 0
    lines = out.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line)["train.batch"] for line in lines] == [4, 4, 4]
