"""`doctor` under real launchers, on ranks that are well and on one that is not (ailing.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from launchers import MPIRUN, ROOT, SOON_S, Ended, run_job

needs_mpirun = pytest.mark.skipif(
    not MPIRUN.exists(), reason="no mpirun beside this python: install the mpich wheel"
)
DOCTOR = ("-m", "fedgmr_hpc", "doctor")
LIMIT = ("--limit", "20")


def ail(ailment: str, rank: int, *words: str) -> Ended:
    module = (str(Path(__file__).with_name("ailing.py")), ailment, str(rank), *words)
    return run_job(3, module=module, env={"PYTHONPATH": str(ROOT)})


def findings(ended: Ended) -> dict[str, str]:
    """State and text by check."""
    lines = [line.split(maxsplit=1) for line in ended.output.splitlines() if line[:1].isalpha()]
    states = ("ok", "warn", "FAIL")
    return {n: rest[0] for n, *rest in lines if rest and rest[0].split()[0] in states}


@pytest.mark.parametrize(
    ("launcher", "num_ranks"), [pytest.param("mpirun", 3, marks=needs_mpirun), ("torchrun", 2)]
)
def test_healthy_ranks_pass(launcher: str, num_ranks: int, tmp_path: Path) -> None:
    words = ("digits", f"results.path={tmp_path}/run.h5")
    ended = run_job(num_ranks, *words, launcher=launcher, module=DOCTOR)
    assert ended.code == 0, ended.output
    found = findings(ended)
    assert [*found] == "ranks ping links mpi data results time memory disk".split(), ended.output
    pairs = {3: "3 pairs", 2: "1 pair"}[num_ranks]
    assert pairs in found["ping"] and f"on {num_ranks} ranks" in found["data"]
    assert list(tmp_path.iterdir()) == []


@needs_mpirun
def test_a_stopped_rank_is_named_and_the_others_are_still_checked() -> None:
    ended = ail("silent", 2, *LIMIT)
    assert ended.code != 0 and ended.wall_s < SOON_S, ended.output
    found = findings(ended)
    assert found["ping"].startswith("FAIL  silent for 20 s: rank 2 on "), ended.output
    assert "on 2 ranks" in found["data"] and found["disk"].startswith("ok")


@needs_mpirun
def test_a_rank_that_never_joins_is_named() -> None:
    ended = ail("absent", 1, *LIMIT)
    assert ended.code != 0 and ended.wall_s < SOON_S, ended.output
    stopped = [error for error in ended.errors if "is stopped" in error]
    assert len(stopped) == 1 and "rank 1 of 3 on " in stopped[0], ended.output


@needs_mpirun
def test_a_slow_rank_is_named() -> None:
    ended = ail("slow", 2)
    found = findings(ended)
    assert ended.code == 0, ended.output
    assert found["ping"].startswith("warn  slow to answer: rank 2 on "), ended.output
    assert found["time"].startswith("warn  slow to compute: rank 2 on "), ended.output


@needs_mpirun
def test_other_data_and_a_place_for_no_results_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = ail("other data", 1, f"results.path={tmp_path}/file/run.h5")
    found = findings(ended)
    assert ended.code == 1, ended.output
    assert found["data"].startswith("FAIL  other bytes") and "rank 1 on " in found["data"]
    assert found["results"].startswith("FAIL  cannot write in "), ended.output


@needs_mpirun
def test_a_probe_without_an_end_is_given_up() -> None:
    ended = ail("never done", 1)
    found = findings(ended)
    assert ended.code == 1 and ended.wall_s < SOON_S, ended.output
    assert found["data"].startswith("FAIL  rank 1 on ") and "not done after 20 s" in found["data"]
    assert "on 1 rank" in found["time"], ended.output


@needs_mpirun
def test_bad_input_is_one_error_and_exit_code_2() -> None:
    ended = run_job(3, "clients.count=0", module=DOCTOR)
    assert (ended.code, len(ended.errors)) == (2, 1), ended.output
    assert "clients.count must be at least 1 (got 0)" in ended.errors[0]
