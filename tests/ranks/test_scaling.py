"""A scaling study under a real mpirun, from the command to the page."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from launchers import MPIRUN, TINY, run_job

needs_mpirun = pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python")


@needs_mpirun
def test_strong_scaling_measures_predicts_and_writes_one_page(tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = ("scale", "strong", "digits", "--ranks", "2,3", "--repeats", "2", "--warmup", "2")
    module = ("-m", "fedgmr_hpc", *words, "--out", str(out))
    ended = run_job(1, *TINY[1:], "run.max_rounds=6", launcher="none", module=module, timeout_s=900)
    assert ended.code == 0, ended.output
    page = (out / "scaling.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "://" not in page
    lines = [x for x in (out / "speedup.csv").read_text().splitlines() if not x.startswith("#")]
    rows = list(csv.DictReader(lines))
    assert [(r["ranks"], r["repeat"]) for r in rows] == [
        ("2", "0"),
        ("2", "1"),
        ("3", "0"),
        ("3", "1"),
    ]
    assert {r["client_rounds"] for r in rows} == {"40"}  # 4 rounds of 10 clients after the warm-up
    ranks = (out / "ranks.csv").read_text()
    assert ",cpu,1," in ranks and len(ranks.splitlines()) >= 6
    again = run_job(1, *TINY[1:], "run.max_rounds=6", launcher="none", module=module)
    assert again.code == 0 and "repeat 1 of 2" not in again.output, again.output


@needs_mpirun
def test_a_failing_run_ends_the_study_and_says_why(tmp_path: Path) -> None:
    module = ("-m", "fedgmr_hpc", "scale", "strong", "--ranks", "2", "--out", str(tmp_path / "s"))
    # Five samples are too few for ten clients, which shows only when the data are dealt.
    words = ("run.max_rounds=6", "data.max_train=5")
    ended = run_job(1, *words, launcher="none", module=module)
    assert ended.code == 1 and len(ended.errors) == 1
    assert "0002-ranks ended with exit code 2" in ended.errors[0]
