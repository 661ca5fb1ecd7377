"""The tidy table: a row an evaluation, a column for every key that varies."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_results import write_result
from sample_results import EVALUATION, open_writer, write_run

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.files import load_config, render_config
from fedgmr_hpc.results.tidy import FIGURES, export_tidy, tidy_records, varied_keys
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.storage.rows import LookRow


def config(**keys: Any) -> dict[str, Any]:
    return load_config("digits", keys).model_dump(mode="json")


def write(path: Path, **keys: Any) -> Path:
    """The sample run, of another configuration."""
    sample = read_result(write_run(path.with_suffix(".sample.h5")))
    text = render_config(load_config("digits", keys))
    return write_result(path, dataclasses.replace(sample, config_yaml=text))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_row_says_does_not_vary_but_what_differs_from_it_does() -> None:
    assert varied_keys([config(method="fedgmr"), config(method="heterofl")]) == []
    assert varied_keys([config(seed=0), config(seed=1, device="cpu")]) == []
    keys = {"method": "heterofl", "train.steps": 3, "aggregation.rule": "average"}
    assert varied_keys([config(), config(**keys)]) == ["aggregation.rule", "train.steps"]
    both = {"train.steps": 3}
    assert varied_keys([config(**both), config(method="fedavg", **both)]) == []
    assert varied_keys([config(), {**config(), "method": "of another checkout"}]) == []


def test_runs_of_different_methods_share_one_table(tmp_path: Path) -> None:
    a = write(tmp_path / "a.h5", method="fedgmr", seed=3)
    b = write(tmp_path / "b.h5", **{"method": "heterofl", "clients.count": 3, "links.trace": None})
    c = write(tmp_path / "c.h5", **{"clients.level": "low", "aggregation.staleness": "hinge"})
    out = tmp_path / "all.csv"
    assert main(["results", "export", *map(str, (a, b, c)), "--tidy", "--out", str(out)]) == 0
    rows = rows_of(out)
    varied = ["aggregation.staleness", "clients.count", "clients.level"]
    assert list(rows[0]) == ["run", "method", "seed", "label", *varied, *FIGURES]
    assert [(r["run"], r["method"], r["seed"], r["label"]) for r in rows] == [
        ("a", "fedgmr", "3", "fedgmr"),
        ("b", "heterofl", "0", "heterofl"),
        ("c", "fedgmr", "0", "fedgmr"),
    ]
    assert [[r[key] for key in varied] for r in rows] == [
        ["poly", "10", "high"],
        ["constant", "3", "high"],
        ["hinge", "10", "low"],
    ]
    assert {r["val_accuracy"] for r in rows} == {"0.5"} and {r["test_loss"] for r in rows} == {""}
    assert {(r["server_up_bytes"], r["server_down_bytes"]) for r in rows} == {("200", "400")}


def test_bytes_are_those_of_the_version_and_sub_models_a_mean_over_clients() -> None:
    merges = {
        "version": np.array([1, 2, 3]),
        "server_up_bytes": np.array([10, 20, 30]),
        "server_down_bytes": np.array([1, 2, 3]),
    }
    scores = {name: np.array([0.1, 0.2]) for name in ("now_s", "test_accuracy", "mean_density")}
    scores |= {name: np.array([0.5, np.nan]) for name in ("val_accuracy", "val_loss", "test_loss")}
    scores |= {"version": np.array([0, 2]), "round": np.array([0, 2])}
    submodels = {
        "version": np.array([2, 2]),
        "num_clients": np.array([1, 3]),
        "test_accuracy": np.array([0.2, 0.6]),
    }
    nothing: dict[str, Any] = {}
    result = Result(
        *(Path("x/run.h5"), "finished", "", {"method": "fedavg", "seed": 2}, nothing),
        *(merges, scores, nothing, nothing, nothing, nothing, np.zeros(0, np.float32), ""),
        submodels=submodels,
    )
    first, second = tidy_records([result], ["train.steps"])
    assert (first["server_up_bytes"], first["server_down_bytes"]) == (0, 0)
    assert (second["server_up_bytes"], second["server_down_bytes"]) == (20, 2)
    assert first["submodel_test_accuracy"] is None and second["val_loss"] is None
    assert second["submodel_test_accuracy"] == pytest.approx(0.5)
    assert second["train.steps"] is None and second["run"] == "run"


@pytest.mark.parametrize(("limit_s", "times"), [("null", [1.0, 2.0]), ("1.5", [1.0])])
def test_looks_at_equal_times_come_before_refreshes_until_the_time_is_over(
    limit_s: str, times: list[float], tmp_path: Path
) -> None:
    config = f"run: {{max_time_s: {limit_s}}}\n"
    with open_writer(tmp_path / "run.h5", config_yaml=config) as writer:
        writer.append(EVALUATION)
        writer.append(LookRow(**{**dataclasses.asdict(EVALUATION), "now_s": 1.0}))
        writer.append(LookRow(**{**dataclasses.asdict(EVALUATION), "now_s": 2.0}))
    records = tidy_records([read_result(tmp_path / "run.h5")], [])
    assert [record["now_s"] for record in records] == times


def test_json_lines_keep_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = {"clients.count": 2, "clients.shares": [1.0, 0.5]}
    sources = [write(tmp_path / "a.h5"), write(tmp_path / "b.h5", **shares)]
    out = tmp_path / "all.jsonl"
    words = ["results", "export", *map(str, sources), "--tidy", "--out", str(out)]
    assert main([*words, "--format", "jsonl"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    first, second = map(json.loads, out.read_text().splitlines())
    assert first["clients.shares"] is None and second["clients.shares"] == [1.0, 0.5]
    assert first["test_accuracy"] is None and first["version"] == 2
    assert main([*words[:-1], str(tmp_path / "all.csv")]) == 0
    assert rows_of(tmp_path / "all.csv")[1]["clients.shares"] == "[1.0, 0.5]"


def test_two_files_of_one_stem_are_refused_and_a_text_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    sources = [write(tmp_path / "run.h5"), write(tmp_path / "other" / "run.h5", seed=1)]
    out = tmp_path / "all.csv"
    with pytest.raises(ValueError) as error:
        export_tidy(sources, "csv", str(out))
    assert str(error.value) == "FILE must have another name than the others (got run again)"
    assert not out.exists()
    export_tidy(sources[:1], "csv", str(out))
    assert {row["run"] for row in rows_of(out)} == {"run"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--out", "new.csv", "--join"], "--join must be absent when --tidy is given"),
        (
            ["--out", "new.csv", "--format", "parquet"],
            "--format must be 'csv' or 'jsonl' when --tidy is given (got 'parquet')",
        ),
        (["--out", "there.csv"], "--out must be a new file (got 'there.csv')"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("mine\n")
    write(Path("run.h5"))
    assert main(["results", "export", "run.h5", "--tidy", *words]) == 2
    assert capsys.readouterr().err == f"fedgmr_hpc: error: {line}\n"
    assert not Path("new.csv").exists() and Path("there.csv").read_text() == "mine\n"
    assert main(["results", "export", "run.h5", "--out", "new"]) == 2
    assert "missing: --format, or --tidy" in capsys.readouterr().err
