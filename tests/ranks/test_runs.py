"""Whole runs under real launchers: the same bytes on any ranks, and ends that are never a hang."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launchers import LIMIT_S, MPIRUN, SOON_S, TINY, Ended, run_job

import fedgmr_hpc
from fedgmr_hpc.storage.reader import Result, differing_columns, read_result
from fedgmr_hpc.transport.relay import NODE_SIZE

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not MPIRUN.exists(), reason="no mpirun beside this python: install the mpich wheel"
)
ROWS = {
    "fedgmr": (),
    "wo_gmr": ("wire.dtype=fp16",),
    "fedavg": (),
    "fedasync": ("links.client_sigma=1.0",),
    "fedgmr g": ("submodel.score=g", "transmission=whole"),
    "fedgmr int8": ("wire.dtype=int8",),
    "fedbuff int8": ("wire.dtype=int8", "links.client_sigma=1.0"),
    "fedgmr wg": ("submodel.score=wg", "links.client_sigma=1.0", "aggregation.max_entries=4"),
}


def run_tiny(path: Path, num_ranks: int, name: str, launcher: str = "mpirun") -> Result:
    words = (f"method={name.split()[0]}", f"results.path={path}", *TINY, *ROWS[name])
    if name in ("fedavg", "fedasync", "wo_gmr"):
        words = tuple(word for word in words if not word.startswith("restoration."))
    ended = run_job(num_ranks, *words, launcher=launcher)
    assert ended.code == 0, ended.output
    return read_result(path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Every row with server and clients in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        name: run_tiny(folder / f"{index}.h5", 1, name, "none") for index, name in enumerate(ROWS)
    }


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_clients_side_by_side_give_the_same_bytes(
    num_ranks: int, alone: dict[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROWS, "fedgmr side by side", ("train.parallel_clients=3",))
    result = run_tiny(tmp_path / "run.h5", num_ranks, "fedgmr side by side")
    assert differing_columns(result, alone["fedgmr"]) == []


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 9])
def test_fedgmr_is_bit_identical_on_any_number_of_ranks(
    num_ranks: int, alone: dict[str, Result], tmp_path: Path
) -> None:
    result = run_tiny(tmp_path / "run.h5", num_ranks, "fedgmr")
    assert differing_columns(result, alone["fedgmr"]) == []
    assert len(result.merges["version"]) == 12
    assert result.merges["density"][-1].mean() > result.merges["density"][0].mean()
    assert len(result.ranks["rank"]) == max(2, num_ranks)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "fedgmr"])
def test_other_rows_are_bit_identical_too(
    name: str, alone: dict[str, Result], tmp_path: Path
) -> None:
    assert differing_columns(run_tiny(tmp_path / "run.h5", 3, name), alone[name]) == []


def test_norms_measured_by_any_ranks_are_bit_identical(tmp_path: Path) -> None:
    """ResNet-18 with static norms: passes of the whole model and of its sub-models."""
    words = [
        "method=heterofl", "data.name=synthetic_cifar10", "model.name=resnet18", "run.max_rounds=1",
        "run.interval_rounds=1", "train.steps=1", "data.max_train=60", "data.max_test=20",
        "eval.chunk=20", "eval.client_samples=20", "eval.submodels=true", "clients.count=2",
        "clients.shares=[0.2, 0.05]",
    ]  # fmt: skip
    results = []
    for num_ranks, launcher in ((1, "none"), (4, "mpirun")):  # frames relayed to two nodes of 2
        path = tmp_path / f"{num_ranks}.h5"
        own = (f"results.path={path}", f"run.server_threads={num_ranks // 2 + 1}")
        ended = run_job(num_ranks, *words, *own, launcher=launcher, env={NODE_SIZE: "2"})
        assert ended.code == 0, ended.output
        results.append(read_result(path))
    assert differing_columns(*results) == []
    assert len(results[0].submodels["version"]) == 4


def test_torchrun_gives_the_same_bytes(alone: dict[str, Result], tmp_path: Path) -> None:
    result = run_tiny(tmp_path / "run.h5", 3, "fedgmr", "torchrun")
    assert differing_columns(result, alone["fedgmr"]) == []


def test_python_gives_the_same_arrays(alone: dict[str, Result], tmp_path: Path) -> None:
    words = [f"results.path={tmp_path / 'run.h5'}", "progress=quiet"]
    result = fedgmr_hpc.run(fedgmr_hpc.load_config(None, TINY, words))
    assert differing_columns(result, alone["fedgmr"]) in ([], ["config"])
    assert np.array_equal(result.weights, alone["fedgmr"].weights)
    assert result.path == tmp_path / "run.h5" and result.status == "finished"


def test_another_seed_gives_other_results(alone: dict[str, Result], tmp_path: Path) -> None:
    words = ["seed=1", f"results.path={tmp_path / 'run.h5'}", "progress=quiet"]
    result = fedgmr_hpc.run(fedgmr_hpc.load_config(None, TINY, words))
    assert not np.array_equal(result.weights, alone["fedgmr"].weights)


def test_rows_of_a_run_agree_with_one_another(alone: dict[str, Result]) -> None:
    """Weights sum to one, every update is merged once, bytes add up, virtual time never falls."""
    for name, result in alone.items():
        merges, updates = result.merges, result.updates
        sums = merges["weight"].sum(axis=1)
        if name.startswith("fedbuff"):  # weights of changes shrink with their age
            assert ((sums > 0) & (sums < 1 + 1e-9)).all(), name
        else:
            np.testing.assert_allclose(sums, 1.0, err_msg=name)
        assert merges["num_merged"].sum() == len(updates["client"]), name
        assert (np.diff(merges["now_s"]) > 0).all() and (np.diff(updates["now_s"]) >= 0).all()
        assert merges["server_down_bytes"][-1] >= updates["up_bytes"].sum(), name
        # a client of FedBuff may train twice from one version
        key = "now_s" if name.startswith("fedbuff") else "base_version"
        pairs = set(zip(updates["client"], updates[key], strict=True))
        assert len(pairs) == len(updates["client"]), f"{name}: an update was merged twice"
        assert (updates["version"] > updates["base_version"]).all(), name


def test_every_rank_says_who_it_is(tmp_path: Path) -> None:
    ended = run_job(4, *TINY, "run.max_rounds=1", f"results.path={tmp_path / 'run.h5'}")
    assert ended.code == 0
    for rank in range(4):
        assert f"rank {rank} of 4: host " in ended.output


def run_broken(stage: str, folder: Path, *words: str) -> Ended:
    script = (str(HERE / "failing.py"), stage)
    return run_job(3, *TINY, f"results.path={folder / 'run.h5'}", *words, module=script)


@pytest.mark.parametrize("stage", ["receive", "decode", "train", "encode", "send", "evaluate"])
def test_a_failing_worker_ends_the_job_naming_where(stage: str, tmp_path: Path) -> None:
    ended = run_broken(stage, tmp_path)
    assert ended.code not in (0, 2)
    assert ended.wall_s < SOON_S
    (error,) = ended.errors
    assert "rank 2" in error and f"stage {stage}" in error and "broken on purpose" in error
    if stage in ("train", "encode", "send"):
        assert "client " in error and "version " in error
    assert "Traceback" in (tmp_path / "run.log").read_text()
    assert read_result(tmp_path / "run.h5").status.startswith("failed: RankFailed: rank 2")


def test_a_silent_rank_is_named_at_the_deadline(tmp_path: Path) -> None:
    ended = run_broken("silence", tmp_path, "run.timeout_s=10")
    assert ended.code != 0 and ended.wall_s < SOON_S
    (error,) = ended.errors
    assert "silent ranks: [2]" in error


def test_a_killed_rank_ends_the_job(tmp_path: Path) -> None:
    ended = run_broken("death", tmp_path)
    assert ended.code != 0 and ended.wall_s < SOON_S
    assert read_result(tmp_path / "run.h5").status == "running"  # readable up to the last flush


def test_a_terminated_run_says_so_and_keeps_its_rows(tmp_path: Path) -> None:
    """Schedulers send SIGTERM before they kill."""
    path = tmp_path / "run.h5"
    words = (f"results.path={path}", "run.max_rounds=100000", "progress=quiet")
    command = [sys.executable, "-m", "fedgmr_hpc.launch", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            time.sleep(0.2)
            if path.exists() and len(read_result(path).merges["version"]):
                break
        process.terminate()
        _, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75 and error.decode() == ""
    assert read_result(path).status.endswith(", at SIGTERM")


def test_a_reader_that_leaves_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    words = " ".join([*TINY, f"results.path={path}"])
    command = (
        f"{sys.executable} -m fedgmr_hpc.launch {words} 2>/dev/null | true; exit ${{PIPESTATUS[0]}}"
    )
    subprocess.run(["bash", "-c", command], check=True, timeout=LIMIT_S)
    assert read_result(path).status == "finished"


def test_a_level_that_keeps_nothing_still_runs(tmp_path: Path) -> None:
    words = [
        "clients.count=2",
        "clients.shares=[1e-6,1e-6]",
        "links.size=nominal",
        "run.max_rounds=2",
    ]
    words += ["data.max_train=300", "progress=quiet", f"results.path={tmp_path / 'run.h5'}"]
    result = fedgmr_hpc.run(fedgmr_hpc.load_config(None, words))
    assert result.status == "finished" and len(result.merges["version"]) == 2


def test_idle_ranks_and_an_end_at_chance_are_warned_of(tmp_path: Path) -> None:
    words = ["clients.count=1", "clients.shares=[1]", "run.max_rounds=2", "run.interval_rounds=2"]
    words += ["data.max_train=100", "train.learning_rate=100", f"results.path={tmp_path}/run.h5"]
    ended = run_job(3, *words)
    assert ended.code == 0, ended.output
    warned = "2 client ranks for clients.count = 1: 1 more than can train; 2 ranks are enough"
    assert ended.output.count(warned) == 1 and warned in (tmp_path / "run.log").read_text()
    assert "it has diverged; look at train.learning_rate = 100.0" in ended.output
    result = read_result(tmp_path / "run.h5")
    sent, received = (result.merges[f"server_{way}_bytes"][-1] / 1e6 for way in ("up", "down"))
    assert f"server {sent:.1f} MB up {received:.1f} MB down" in ended.output  # the last line
    assert f"{sent:.1f} MB up to the clients, {received:.1f} MB down from them" in ended.output
