"""`--json`: one document on stdout, and nothing else there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedgmr_hpc.cli.command_line import main

TINY = ("clients.count=2", "train.steps=1", "data.max_train=200", "run.interval_rounds=1")
STUDY: dict[str, Any] = {
    "title": "tiny",
    "base": "digits",
    "set": {"run.max_rounds": 2, "run.interval_rounds": 1, "train.steps": 1, "data.max_train": 600},
    "matrix": {"method": ["fedavg", "fedasync"], "seed": [0]},
    "comparison_time_s": 50.0,
}


def read_json(capfd: pytest.CaptureFixture[str], code: int, *words: str) -> Any:
    """The document that a command line prints, also by processes that it starts."""
    assert main(words) == code
    return json.loads(capfd.readouterr().out)


def test_doctor(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [f"data.cache={tmp_path / 'cache'}", f"results.path={tmp_path}/run.h5"]
    found = read_json(capfd, 0, "doctor", "digits", "--json", *words)
    names = [finding["check"] for finding in found["findings"]]
    assert names == "ranks ping links mpi data results time memory disk".split()
    assert {finding["state"] for finding in found["findings"]} == {"ok"} and not found["failed"]


def test_doctor_that_fails(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [f"data.root={tmp_path}/none", f"results.path={tmp_path}/run.h5"]
    found = read_json(capfd, 1, "doctor", "femnist", "--json", *words)
    assert found["failed"] and any(each["state"] == "FAIL" for each in found["findings"])


def test_bench(capfd: pytest.CaptureFixture[str]) -> None:
    found = read_json(capfd, 0, "bench", "mask", "--quick", "--json")
    assert found["bench"] == "mask" and found["outside"] == 0


def test_bench_that_starts_ranks(capfd: pytest.CaptureFixture[str]) -> None:
    found = read_json(capfd, 0, "bench", "server", "--quick", "--json", "--ranks", "2")
    assert found["bench"] == "server" and found["ranks"] == 2


def test_study_status(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(STUDY))  # JSON is YAML
    words = ("study", "status", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path), "--json")
    found = read_json(capfd, 0, *words)
    assert found["counts"] == {"missing": 2} and found["time_left_s"] is None
    assert [cell["state"] for cell in found["cells"]] == ["missing", "missing"]


def test_results_verify(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("no HDF5")
    found = read_json(capfd, 1, "results", "verify", str(tmp_path / "a.h5"), "--json")
    (file,) = found["files"]
    assert not file["sound"] and "cannot be read" in file["findings"][0]


def test_scale_and_its_report(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "s"))
    words = ("--ranks", "2", "--repeats", "1", "--warmup", "1", "run.max_rounds=4", *TINY)
    found = read_json(capfd, 0, "scale", "strong", "digits", "--json", *words, *out)
    (point,) = found["points"]
    assert (point["ranks"], point["speedup"]) == (2, 1.0) and found["kind"] == "strong"
    assert read_json(capfd, 0, "scale", "report", str(tmp_path / "s"), "--json") == found
    assert len(list((tmp_path / "s" / "runs").glob("*.h5"))) == 1
