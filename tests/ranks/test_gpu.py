"""Whole runs on a CUDA device: the same bytes on any ranks that share it, close to the CPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from launchers import TINY, run_job

from fedgmr_hpc.runtime.replay import NEAR_FRAC
from fedgmr_hpc.storage.reader import Result, differing_columns, read_result

pytestmark = pytest.mark.gpu


def run_tiny(path: Path, num_ranks: int, *words: str) -> Result:
    launcher = "none" if num_ranks == 1 else "torchrun"
    ended = run_job(num_ranks, *TINY, f"results.path={path}", *words, launcher=launcher)
    assert ended.code == 0, ended.output
    assert "deterministic" not in ended.output  # no operation lacked a repeatable algorithm
    return read_result(path)


@pytest.mark.parametrize("method", ["fedgmr", "heterofl", "fjord", "fiarse", "fedasync"])
def test_ranks_that_share_a_device_give_the_bytes_of_one_process(
    method: str, tmp_path: Path
) -> None:
    words = ("device=cuda", f"method={method}")
    alone = run_tiny(tmp_path / "alone.h5", 1, *words)
    assert differing_columns(run_tiny(tmp_path / "ranks.h5", 3, *words), alone) == []


def test_a_device_trains_what_the_cpu_trains(tmp_path: Path) -> None:
    results = [
        run_tiny(tmp_path / f"{device}.h5", 1, f"device={device}") for device in ("cpu", "cuda")
    ]
    cpu, cuda = (result.weights for result in results)
    assert cpu is not None and cuda is not None
    assert np.abs(cpu - cuda).max() < 1e-3 * np.abs(cpu).max()


@pytest.mark.parametrize("words", [["train.parallel_clients=4"], ["train.cuda_graphs=false"]])
def test_how_a_device_is_used_changes_no_bit(words: list[str], tmp_path: Path) -> None:
    alone = run_tiny(tmp_path / "alone.h5", 1, "device=cuda")
    other = run_tiny(tmp_path / "other.h5", 1, "device=cuda", *words)
    assert differing_columns(other, alone) == []
    assert alone.ranks["cuda_graphs"][1].startswith("replayed")


def test_samples_that_are_sent_give_the_bytes_of_those_that_are_kept(tmp_path: Path) -> None:
    words = ("device=cuda", "data.augment=crop_flip", "data.device_memory_frac=")
    kept, sent = (
        run_tiny(tmp_path / f"{frac}.h5", 1, *words[:2], f"{words[2]}{frac}") for frac in (0.4, 0)
    )
    assert differing_columns(kept, sent) == []


def distance(one: Result, other: Result) -> float:
    """By how much of their norm the final weights differ."""
    return float(np.linalg.norm(one.weights - other.weights) / np.linalg.norm(other.weights))


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_precision_gives_the_same_bytes_on_any_ranks_near_those_of_fp32(
    precision: str, tmp_path: Path
) -> None:
    plain = ("device=cuda", "method=fedavg")  # which decides nothing that rounding could turn
    words = (*plain, f"train.precision={precision}")
    exact = run_tiny(tmp_path / "exact.h5", 1, *plain)
    alone = run_tiny(tmp_path / "alone.h5", 1, *words)
    assert differing_columns(run_tiny(tmp_path / "ranks.h5", 3, *words), alone) == []
    assert 0 < distance(alone, exact) < 0.1


def test_the_fastest_algorithms_train_nearly_the_same_and_replay_nearly(tmp_path: Path) -> None:
    plain = ("device=cuda", "method=fedavg")
    exact = run_tiny(tmp_path / "exact.h5", 1, *plain)
    fast = run_tiny(tmp_path / "fast.h5", 1, *plain, "train.deterministic=false")
    assert distance(fast, exact) < NEAR_FRAC
    ended = run_job(
        1, f"results.path={tmp_path / 'again.h5'}", "--replay", str(fast.path), launcher="none"
    )
    assert ended.code == 0 and "without train.deterministic at most" in ended.output, ended.output
