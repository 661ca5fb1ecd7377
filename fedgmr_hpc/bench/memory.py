"""`bench memory`: rank 0 over many rounds, against a flat line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from fedgmr_hpc.bench.case import Benchmark
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.transport.launchers import run_ranks


def measure_memory(rounds: int, ranks: int) -> Benchmark:
    """Return one row: how much the server's resident memory grows after the first quarter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.h5"
        run_ranks(
            ranks,
            "fedgmr_hpc.launch",
            f"run.max_rounds={rounds}",
            "progress=quiet",
            f"results.path={path}",
        )
        merges = read_result(path).merges
    is_late = merges["round"] > rounds // 4
    slope = np.polyfit(merges["round"][is_late], merges["wall_rss_bytes"][is_late], 1)[0]
    mb_per_1000 = float(slope) * 1000 / 1e6
    rows = [
        {
            "rounds": rounds,
            "RSS MB at 1/4": float(merges["wall_rss_bytes"][is_late][0]) / 1e6,
            "RSS MB at the end": float(merges["wall_rss_bytes"][-1]) / 1e6,
            "MB per 1000 rounds": mb_per_1000,
        }
    ]
    return Benchmark(rows, {"mb_per_1000_rounds": mb_per_1000})
