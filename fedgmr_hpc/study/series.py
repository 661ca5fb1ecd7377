"""Series that tables and plots share, read off a result.

Shapes: N merges, M merged updates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.result import Result
from fedgmr_hpc.schema import Columns

Values = NDArray[Any]


def scored(result: Result) -> Columns:
    """The evaluations that curves and comparisons are made of: looks at equal times where the run
    has them (`eval.every_s`), else those of its refreshes, which come with its rounds.
    """
    return result.looks if len(result.looks.get("version", ())) else result.evaluations


def mean_density(result: Result) -> tuple[Values, Values]:
    """Times in s and mean densities, [N], from the initial model on where it was evaluated."""
    times, means = result.merges["now_s"], result.merges["density"].mean(axis=1)
    initial = result.evaluations["version"] == 0
    before = [result.evaluations[name][initial][:1] for name in ("now_s", "mean_density")]
    return np.concatenate([before[0], times]), np.concatenate([before[1], means])


def end_s(result: Result, name: str) -> float:
    """The latest time in column `name`."""
    columns = [result.merges[name], result.evaluations[name]]
    return max((float(column[-1]) for column in columns if len(column)), default=0.0)


def merged_ages(result: Result) -> Values:
    """[M] staleness of the merged updates, when they were first merged: versions since the one that
    they began with; a fresh one has 1.
    """
    version, base = result.updates["version"], result.updates["base_version"]
    return (version - base)[version > 0]
