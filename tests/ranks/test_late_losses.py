"""Ranks that are lost on the wall clock when nothing of the run depends on them any more."""

from __future__ import annotations

import signal
from pathlib import Path

import killing
import pytest
from failing import lost_at_the_end
from launchers import MPIRUN, last_of_each
from test_wall import WALL, run_broken

from fedgmr_hpc.results.series import lost_ranks
from fedgmr_hpc.results.summary import make_report
from fedgmr_hpc.runtime.timeline import read_timeline
from fedgmr_hpc.runtime.wall.worker import LiveWorker
from fedgmr_hpc.storage.reader import read_result


@pytest.mark.parametrize(
    ("how", "num_ranks", "why", "codes"),
    [
        (signal.SIGSTOP, 3, "rank 2 has been silent for 10 s", [0, 1]),
        (signal.SIGSTOP, 2, "rank 1 has been silent for 10 s", [1]),  # else torchrun would wait
        (signal.SIGKILL, 3, "", [0, 1]),  # which gloo may see, or else it is silent
    ],
)
def test_a_traced_run_ends_without_the_spans_of_a_rank_that_is_lost_late(
    how: int,
    num_ranks: int,
    why: str,
    codes: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, victim = tmp_path / "run.h5", num_ranks - 1
    tell_time, told = LiveWorker._tell_time, lost_at_the_end(LiveWorker._tell_time, how)
    monkeypatch.setattr(
        LiveWorker, "_tell_time", lambda w: (told if w.transport.rank == victim else tell_time)(w)
    )
    own = ("trace=true", "run.timeout_s=10", "run.max_rounds=4", f"results.path={path}")
    pids = killing.start(tmp_path, num_ranks, *last_of_each(*WALL, *own))
    try:
        ended = killing.wait(pids[:-1])
    finally:
        killing.end(set(pids[-1:]))
    said = (tmp_path / "ranks.log").read_text()
    assert ended == codes, said
    result = read_result(path)
    assert result.status == "finished" and result.merges["round"][-1] == 4
    assert victim in lost_ranks(result) and victim not in result.ranks["rank"]
    log = (tmp_path / "run.log").read_text()
    assert f"ending without rank {victim}: " in log and why in log
    assert f"the timeline has no spans of rank {victim}, which was lost" in log
    assert 0 in {trace.rank for trace in read_timeline(tmp_path / "run.trace.json")}
    assert "lost before the end: no row in /ranks, no spans" in said
    assert "lost before the end" in make_report([path], tmp_path / "report", sizes=())
    if how == signal.SIGSTOP:  # else gloo may let nothing be heard of the others either
        assert lost_ranks(result) == [victim]
        assert f"lost on the way: rank {victim};" in said and "not every rank closed" not in said


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python")
def test_over_mpi_too(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    own = ("trace=true", "run.timeout_s=10", "run.max_rounds=4")
    ended = run_broken("late silence", path, *own)
    assert ended.code in (0, 9), ended.output  # 9: MPICH's launcher may say whom it killed
    result = read_result(path)
    assert result.status == "finished" and lost_ranks(result) == [2]
    assert [trace.rank for trace in read_timeline(tmp_path / "run.trace.json")] == [0, 1]
    assert "no spans of rank 2, which was lost" in ended.output
