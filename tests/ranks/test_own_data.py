"""A data set of one's own: the same bytes on 1, 3 and 4 ranks, and after SIGKILL."""

from __future__ import annotations

import time
from pathlib import Path

import killing
import pytest
from launchers import MPIRUN, ROOT, TINY, last_of_each, run_job

from fedgmr_hpc.storage.reader import Result, differing_columns, read_result

WORDS = (
    *TINY,
    f"plugins=[{ROOT / 'examples' / 'own_data.py'}]",
    *("data.name=large_digits", "model.name=conv2_small", "data.partition=pathological"),
    *("data.max_train=300", "run.max_rounds=6", "checkpoint.every_s=0"),
)


def words_of(path: Path) -> list[str]:
    where = (f"data.cache={path.parent / 'cache'}", f"results.path={path}")
    return last_of_each(*WORDS, *where)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run alone in one process."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert killing.wait(killing.start(folder, 1, *words_of(folder / "run.h5"))) == [0]
    return read_result(folder / "run.h5")


def test_four_ranks_that_are_killed_and_go_on_give_the_same_bytes(
    tmp_path: Path, unbroken: Result
) -> None:
    path = tmp_path / "run.h5"
    words = (*words_of(path), "--resume")
    pids = killing.start(tmp_path, 4, *words)
    while not path.with_suffix(".ckpt").exists():
        time.sleep(0.01)
    assert killing.kill(pids, 0)
    assert killing.wait(killing.start(tmp_path, 4, *words)) == [0] * 4
    result = read_result(path)
    assert differing_columns(result, unbroken) == []
    assert 1 in result.checkpoints["is_resume"]


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python")
def test_three_ranks_of_mpirun_give_the_same_bytes(tmp_path: Path, unbroken: Result) -> None:
    ended = run_job(3, *words_of(tmp_path / "run.h5"))
    assert ended.code == 0, ended.output
    assert differing_columns(read_result(tmp_path / "run.h5"), unbroken) == []
