"""Digits: the real handwritten digits that scikit-learn ships; no files are needed."""

from __future__ import annotations

import numpy as np

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.source import DatasetSource, Files, Plan, Traits, plan_build, register
from fedgmr_hpc.data.splits import Split, Splits

TRAITS = Traits(10, (1, 8, 8), max_value=16)
SPLIT_STEP = 1001  # a stream of its own, apart from the attempts of make_partition
TEST_FRAC = 0.2


def read_digits() -> Splits:
    """Read 1,797 handwritten digits, 8x8 pixels of 0..16, split 80/20 within each class."""
    # slow to import, and needed only to fill the cache
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    digits = load_digits()
    x = digits.images.astype(np.uint8)[:, None]
    y = digits.target.astype(np.int64)
    is_test = np.zeros(len(y), dtype=bool)
    for label in range(10):
        own = np.flatnonzero(y == label)
        rng = make_rng(0, "partition", client=label, step=SPLIT_STEP)
        is_test[rng.permutation(own)[: round(TEST_FRAC * len(own))]] = True
    group = np.zeros(len(y), np.int32)
    train, test = (Split(x[part], y[part], group[part]) for part in (~is_test, is_test))
    return train, test


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    return plan_build(data.name, TRAITS, ["digits"], read_digits)


register(DatasetSource("digits", TRAITS, _plan))
