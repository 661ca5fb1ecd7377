"""The table of `bench gpu`: local steps on one GPU, then runs whose ranks share it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgmr_hpc.bench.case import Benchmark, Row
from fedgmr_hpc.bench.gpu.cases import IMAGES_GOAL, STEPS_GOAL, Case, case_row, make_cases
from fedgmr_hpc.bench.gpu.steps import time_steps
from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.transport.launchers import run_ranks

HOURS_GOAL = 3  # of the paper's run, on one GPU of the class of an H100
RANKS = (1, 2, 4)
ROUNDS = 20_000  # of the paper's run


def measure_gpu(quick: bool, device: str = "cuda") -> Benchmark:
    """Return a row for each way to train on the device, and one for each number of ranks.

    Args:
        quick: Tiny images and few steps, as a smoke test; then the device may be `cpu`.
        device: `cuda`, or `cpu`.

    Raises:
        ValueError: There is no such device, or the CPU is to be measured.
        AssertionError: A way to train gives other weights.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(must("bench gpu", "find a CUDA device", found="none"))
    if device == "cpu" and not quick:
        raise ValueError(must_be("--device", "cuda without --quick", device))
    with tempfile.TemporaryDirectory() as folder:
        cases = list(make_cases(Path(folder), quick))
        rows = [row for case in cases for row in time_steps(case, device, quick)]
        runs = time_runs(cases[0], device, quick, Path(folder))
    images = max(row["a second"] for row in rows if row["unit"] == "images")
    summary = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "images_per_s": images,
        "steps_per_s": max(row["a second"] for row in rows if row["unit"] == "steps"),
        "hours": ROUNDS * min(row["s a round"] for row in runs) / 3600,
        "goals": {"images_per_s": IMAGES_GOAL, "steps_per_s": STEPS_GOAL, "hours": HOURS_GOAL},
    }
    shown = [{key: row[key] for key in rows[0]} for row in (*rows, *runs)]
    return Benchmark(shown, summary)


def time_runs(case: Case, device: str, quick: bool, folder: Path) -> list[Row]:
    """Return a row for each number of client ranks that share the device, refreshes included."""
    rows = []
    interval = 2 if quick else 50
    for ranks in RANKS[:1] if quick else RANKS:
        for side_by_side in (1, 4):
            path = folder / f"{ranks}-{side_by_side}.h5"
            words = (
                f"device={device}",
                f"train.parallel_clients={side_by_side}",
                f"run.interval_rounds={interval}",
                f"run.max_rounds={2 * interval + 1}",
                f"results.path={path}",
            )
            more: tuple[Any, ...] = (*case.words, "progress=quiet", *words)
            run_ranks(1 + ranks, "fedgmr_hpc.launch", "--config", case.run, *more)
            result = read_result(path)
            merges, config = result.merges, case.config(*words)
            part = slice(interval, 2 * interval)
            round_s = float(np.diff(merges["wall_s"])[part].mean())
            steps_per_s = float(merges["num_merged"][part].mean()) * config.train.steps / round_s
            how = "; ".join(sorted({str(each) for each in result.ranks["cuda_graphs"][1:]}))
            rows.append(case_row(case, steps_per_s, config, how, ranks) | {"s a round": round_s})
    return rows
