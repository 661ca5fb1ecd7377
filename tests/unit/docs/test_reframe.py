"""The ReFrame checks of examples/ run and find the figures that are the same on every machine."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKS = Path(__file__).resolve().parents[3] / "examples" / "reframe" / "fedgmr_checks.py"
REFRAME = Path(sys.executable).parent / "reframe"

pytestmark = pytest.mark.skipif(
    find_spec("reframe") is None or not REFRAME.exists(),
    reason="needs ReFrame: pip install -e .[reframe]",
)


def test_the_checks_run_and_extract_their_figures(tmp_path: Path) -> None:
    """Whether the codec is fast enough is not asked: other tests may run beside this one."""
    report = tmp_path / "report.json"
    words = ["-c", str(CHECKS), "-r", "-S", f"python={sys.executable}", "-n", "CodecCheck|fedavg"]
    options = ["--report-file", str(report), "--prefix", str(tmp_path)]
    ran = subprocess.run(
        [str(REFRAME), *words, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert "Ran 2/2 test case(s)" in ran.stdout, ran.stdout
    (session,) = json.loads(report.read_text())["runs"]
    cases = {case["name"]: case for case in session["testcases"]}
    assert cases["DigitsRun %method=fedavg"]["result"] == "pass", ran.stdout
    found = {
        name.rpartition(":")[2]: value[0]
        for case in cases.values()
        for name, value in case["perfvalues"].items()
    }
    assert (found["frame"], found["server_up"], found["server_down"]) == (1_295_024, 5.7, 57.4)
    assert found["accuracy"] > 50
    assert found["of_copy"] > 0
    assert found["wall_time"] > 0
