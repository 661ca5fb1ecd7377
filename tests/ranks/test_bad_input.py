"""Bad input under a real launcher: one clear error, exit code 2 on every rank, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from launchers import MPIRUN, run_job

pytestmark = pytest.mark.skipif(
    not MPIRUN.exists(), reason="no mpirun beside this python: install the mpich wheel"
)


def truncated_cifar(folder: Path) -> None:
    home = folder / "cifar-10-batches-bin"
    home.mkdir()
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        (home / name).write_bytes(np.zeros(3073 * 4, np.uint8).tobytes())
    (home / "data_batch_3.bin").write_bytes(b"\0" * 5000)


def leaf_without_y(folder: Path) -> None:
    for split in ("train", "test"):
        home = folder / "data" / split
        home.mkdir(parents=True)
        user = {"x": [[1.0] * 784] * 2, "y": [1, 2]}
        users = {"users": ["a"], "num_samples": [2], "user_data": {"a": user}}
        if split == "train":
            del user["y"]
        (home / "all_data_0.json").write_text(json.dumps(users))


CASES = {
    "unknown method": (["method=fedsgd"], ["there is no method 'fedsgd'; did you mean 'fedgmr'?"]),
    "density": (["clients.shares=[1.5]"], ["clients.shares.0", "1.5", "at most 1 "]),
    "no clients": (["clients.count=0"], ["clients.count", "0", "at least 1"]),
    "too many clients": (["clients.count=5000"], ["clients.count", "5000"]),
    "missing folder": (
        ["data.name=femnist", "model.name=conv2", "data.root={folder}/nowhere"],
        ["nowhere", "prepare femnist"],
    ),
    "truncated CIFAR": (
        ["data.name=cifar10", "model.name=vgg11", "data.root={folder}"],
        ["data_batch_3.bin", "5000", "3073"],
    ),
    "LEAF without y": (
        ["data.name=femnist", "model.name=conv2", "data.root={folder}"],
        ["all_data_0.json", "user", "y"],
    ),
    "wrong model": (["model.name=conv2"], ["model.name", "conv2", "digits"]),
    "no TF32 on a CPU": (
        ["train.precision=tf32", "device=cpu"],
        ["train.precision must be 'fp32'", "computes on cpu (got 'tf32')", "CUDA devices"],
    ),
    "results exist": (["results.path={folder}/taken.h5"], ["results.path", "taken.h5", "exists"]),
}
MAKE = {"truncated CIFAR": truncated_cifar, "LEAF without y": leaf_without_y}


RUNS = [
    *((case, 3) for case in CASES),
    ("unknown method", 1),
    ("missing folder", 1),
    ("no TF32 on a CPU", 1),
]


@pytest.mark.parametrize(("case", "num_ranks"), RUNS)
def test_bad_input_is_one_error_and_exit_code_2(case: str, num_ranks: int, tmp_path: Path) -> None:
    MAKE.get(case, lambda folder: None)(tmp_path)
    (tmp_path / "taken.h5").write_text("")
    words, expected = CASES[case]
    words = [f"data.cache={tmp_path / 'cache'}", *(word.format(folder=tmp_path) for word in words)]
    ended = run_job(num_ranks, *words, launcher="none" if num_ranks == 1 else "mpirun")
    assert ended.code == 2, ended.output
    assert "Traceback" not in ended.output
    (error,) = ended.errors
    for text in expected:
        assert text in error, error


def test_ranks_of_another_launcher_are_refused(tmp_path: Path) -> None:
    """MPICH's mpirun is not used here, but the environment claims four Open MPI ranks."""
    env = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}
    ended = run_job(1, launcher="none", env=env)
    assert ended.code == 2, ended.output
    (error,) = ended.errors
    assert "OMPI_COMM_WORLD_SIZE" in error and "Open MPI" in error and "MPICH" in error
