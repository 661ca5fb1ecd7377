"""`make gpu-check`: what it runs, what its report says, and how it ends (tests/gpu_check.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch

TESTS = Path(__file__).parents[1]
XML = """<testsuites><testsuite>
<testcase classname="tests.unit.a" name="one" />
<testcase classname="tests.unit.a" name="two"><failure message="assert 1 == 2&#10;more">x</failure>
</testcase>
<testcase classname="tests.unit.a" name="three"><skipped message="1 CUDA devices, needs 2" />
</testcase></testsuite></testsuites>"""
RATES = [
    {"transport": "nccl", "down_gb_per_s": 8.0, "up_gb_per_s": 9.0},
    {"transport": "gloo", "error": "no route to host"},
    {"transport": "mpi", "down_gb_per_s": 10.0, "up_gb_per_s": 7.5},
]


def report(**changes: Any) -> dict[str, Any]:
    well = {
        "facts": {"devices": "GPU X, 80 GB; GPU X, 80 GB", "driver": "580.1", "mps": "running"},
        "tests": {"passed": 31, "failed": {}, "skipped": {"1 CUDA devices, needs 2": 2}},
        "bench": {"code": 0, "table": "steps/s  4000", "record": {"bench": "gpu"}},
        "transports": [],
    }
    return well | changes


def test_without_a_device_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_check.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "needs a CUDA device" in err


def test_outcomes_of_tests_are_counted_with_their_reasons() -> None:
    assert gpu_check.read_tests(XML) == {
        "passed": 1,
        "failed": {"tests.unit.a.two": "assert 1 == 2"},
        "skipped": {"1 CUDA devices, needs 2": 1},
    }


def test_the_page_names_devices_tests_tables_and_the_fastest_transport() -> None:
    page = gpu_check.render(report(transports=RATES))
    for text in ("GPU X, 80 GB", "580.1", "31 passed, 0 failed, 2 skipped", "steps/s  4000",
                 "2: 1 CUDA devices, needs 2", "no route to host", "fastest: mpi"):  # fmt: skip
        assert text in page, page
    assert "needs two devices" in gpu_check.render(report())


@pytest.mark.parametrize(
    ("changes", "is_well"),
    [
        ({}, True),
        ({"transports": RATES[::2]}, True),
        ({"transports": RATES}, False),
        ({"tests": {"passed": 30, "failed": {"a": "b"}, "skipped": {}}}, False),
        ({"tests": {"passed": 0, "failed": {}, "skipped": {"no": 30}}}, False),
        ({"bench": {"code": 1, "error": "there is no benchmark 'gpu'"}}, False),
    ],
)
def test_the_exit_code_says_whether_all_went_well(
    changes: dict[str, Any],
    is_well: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = report(**changes)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(gpu_check, "facts", lambda: parts["facts"])
    monkeypatch.setattr(gpu_check, "run_tests", lambda: parts["tests"])
    monkeypatch.setattr(gpu_check, "run_bench", lambda *words: dict(parts["bench"]))
    monkeypatch.setattr(gpu_check, "run_transports", lambda: parts["transports"])
    assert gpu_check.main() == (0 if is_well else 1)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["passed"] == is_well


def test_whatever_needs_a_device_has_the_marker() -> None:
    """Or `gpu-check` would not run it."""
    for path in TESTS.rglob("test_*.py"):
        text = path.read_text()
        if path != Path(__file__):
            assert "skipif(not torch.cuda.is_available" not in text, path


def test_a_process_is_found_by_the_beginning_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "17").mkdir()
    (tmp_path / "17" / "comm").write_text("nvidia-cuda-mps-\n")
    assert gpu_check.is_running(gpu_check.MPS, tmp_path)
    assert not gpu_check.is_running("nvidia-smi", tmp_path)


def test_what_cannot_start_is_an_error_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "TRANSPORTS", {"mpi": ("no_such_mpirun",)})
    (row,) = gpu_check.run_transports()
    assert row["transport"] == "mpi" and "no_such_mpirun" in row["error"]
