"""The examples that add something of one's own: the same bytes on 1, 3 and 4 ranks, and after
SIGKILL.
"""

from __future__ import annotations

import time
from pathlib import Path

import killing
import pytest
from launchers import MPIRUN, ROOT, TINY, last_of_each, run_job

from fedgmr_hpc.storage.reader import Result, differing_columns, read_result

EXAMPLES = {
    "own_data": ("data.name=large_digits", "model.name=conv2_small", "data.partition=pathological"),
    "own_model": ("model.name=patches",),
    "own_objective": ("train.objective=near",),
    "own_rule": ("aggregation.rule=nesterov", "aggregation.buffered=false"),
    "own_selection": (
        "clients.selection=power_of_choice",
        "clients.sampled=2",
        "clients.candidates=3",
    ),
    "own_score_and_schedule": ("submodel.score=growth", "restoration.trigger=steady"),
}
SHORT = (
    *TINY,
    "clients.count=5",
    "run.max_rounds=6",
    "run.interval_rounds=2",
    "data.max_train=300",
    "data.max_test=100",
    "checkpoint.every_s=0",
)


def words_of(path: Path, name: str) -> list[str]:
    plugin = f"plugins=[{ROOT / 'examples' / name}.py]"
    cache = f"data.cache={path.parent / 'cache'}"
    return last_of_each(*SHORT, plugin, *EXAMPLES[name], cache, f"results.path={path}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Each example in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in EXAMPLES:
        pids = killing.start(folder, 1, *words_of(folder / f"{name}.h5", name))
        assert killing.wait(pids) == [0], (folder / "ranks.log").read_text()[-3000:]
    return {name: read_result(folder / f"{name}.h5") for name in EXAMPLES}


def test_every_plug_in_among_the_examples_is_run() -> None:
    sources = {path.stem: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    assert {name for name, source in sources.items() if "register_" in source} == set(EXAMPLES)
    assert all(len(sources[name].splitlines()) < 60 for name in EXAMPLES)


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python")
@pytest.mark.parametrize("name", EXAMPLES)
def test_three_mpi_ranks_give_the_same_bytes(
    name: str, alone: dict[str, Result], tmp_path: Path
) -> None:
    ended = run_job(3, *words_of(tmp_path / "run.h5", name))
    assert ended.code == 0, ended.output
    assert differing_columns(read_result(tmp_path / "run.h5"), alone[name]) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_four_ranks_that_are_killed_and_go_on_give_the_same_bytes(
    name: str, alone: dict[str, Result], tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    words = (*words_of(path, name), "--resume")
    pids = killing.start(tmp_path, 4, *words)
    while not path.with_suffix(".ckpt").exists():
        time.sleep(0.01)
    assert killing.kill(pids, 2)
    assert killing.wait(killing.start(tmp_path, 4, *words)) == [0] * 4
    result = read_result(path)
    assert differing_columns(result, alone[name]) == []
    assert 1 in result.checkpoints["is_resume"]
