"""Whole runs on a CUDA device: the same bytes on any ranks that share it, close to the CPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from launchers import TINY, run_job

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
