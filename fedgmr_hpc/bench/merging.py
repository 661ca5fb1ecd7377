"""`bench merge`: one buffered mask-aware merge, against a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedgmr_hpc.bench.case import Benchmark, Row, conv2_masks, copy_gb_per_s, median_s
from fedgmr_hpc.config.choices.registry import AGGREGATIONS
from fedgmr_hpc.fl.aggregation import BufferEntry, Merge, merge
from fedgmr_hpc.fl.threads import Threads

HIGH = (1.0, 0.5, 0.2, 0.1) + (0.05,) * 6


def measure_merge(repeats: int) -> Benchmark:
    """Return rows for a buffer of the level `high` and one of ten full models, each merged by one
    thread and by two.
    """
    weights, masks = conv2_masks()
    packed, dense = masks.pack(weights), np.zeros(1, np.float32)
    rows = []
    for name, densities in (("level high", HIGH), ("all full", (1.0,) * 10)):
        entries = [
            BufferEntry(
                client, 0, packed[: masks.counts[masks.level(d)]] + client, None, dense, 100
            )
            for client, d in enumerate(densities)
        ]
        ages = [1.0 / (1 + client % 3) for client in range(len(entries))]
        what = Merge(packed, dense, entries, ages)
        for num in (1, 2):
            rows.append({"buffer": name, "threads": num, **_measure(what, Threads(num), repeats)})
    return Benchmark(rows)


def _measure(what: Merge, threads: Threads, repeats: int) -> Row:
    rule = AGGREGATIONS["mask_aware"]()

    def call() -> Any:
        return merge(rule, what, threads=threads).packed

    expected = mask_aware_mean(what.packed, what.entries, what.weights)
    np.testing.assert_allclose(call(), expected, rtol=1e-5, atol=1e-5)
    # Read the model and every update once, write the new model once.
    moved = sum(entry.values.nbytes for entry in what.entries) + 2 * what.packed.nbytes
    merge_s, ceiling = median_s(repeats, call), copy_gb_per_s(moved, repeats)
    rate = moved / merge_s / 1e9
    return {
        "moved MB": moved / 1e6,
        "merge ms": merge_s * 1e3,
        "GB/s": rate,
        "copy GB/s": ceiling,
        "of copy": rate / ceiling,
    }


def mask_aware_mean(
    packed: np.ndarray[Any, Any], entries: Sequence[BufferEntry], weights: Sequence[float]
) -> np.ndarray[Any, Any]:
    """Return what a merge must give, in float64: each entry's mean over those that hold it."""
    total, weight = np.zeros(len(packed)), np.zeros(len(packed))
    for entry, each in zip(entries, weights, strict=True):
        total[: len(entry.values)] += each * entry.values.astype(np.float64)
        weight[: len(entry.values)] += each
    mean = packed.astype(np.float64)
    np.divide(total, weight, out=mean, where=weight > 0)
    return mean
