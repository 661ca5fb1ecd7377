"""`bench mask`: one refresh (rank all entries, cut masks), against one sort of as many keys."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fedgmr_hpc.bench.case import DENSITIES, Benchmark, conv2, median_s
from fedgmr_hpc.fl.submodels import MaskSet, PrunableLayer, cut_masks, rank_entries


def measure_refresh(repeats: int) -> Benchmark:
    """Return a row for Conv2, and one for a single layer of ten million entries."""
    rows = []
    weights, layers = conv2()
    big = np.resize(weights, 10_000_000)
    cases = [("conv2", weights, layers), ("10 M", big, [PrunableLayer("all", 0, len(big), 1.0)])]
    for name, values, parts in cases:

        def call(values: Any = values, parts: Any = parts) -> MaskSet:
            keys = rank_entries(values.copy(), np.abs(values), parts, floor_frac=0.02)
            return cut_masks(keys, DENSITIES, mask_id=1)

        masks = call()
        assert masks.perm is not None and (np.bincount(masks.perm) == 1).all()
        if len(parts) == 1:  # with one layer nothing but |W| ranks
            ranked = np.abs(values)[masks.perm]
            assert all(ranked[:k].min() >= ranked[k:].max(initial=0.0) for k in masks.counts)
        keys = np.random.default_rng(0).integers(0, 2**63, len(values), dtype=np.uint64)
        mask_s, sort_s = median_s(repeats, call), median_s(repeats, partial(np.sort, keys))
        rows.append(
            {
                "entries": name,
                "refresh ms": mask_s * 1e3,
                "one sort ms": sort_s * 1e3,
                "sorts": mask_s / sort_s,
            }
        )
    return Benchmark(rows)
