"""Series that tables and plots share, read off a result.

Shapes: N merges, M merged updates, E evaluations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.storage.schema import Columns

Values = NDArray[Any]


def scored(result: Result) -> Columns:
    """Return the evaluations that curves and comparisons are made of.

    These are the looks at equal times where the run has them (`eval.every_s`), else the evaluations
    at its refreshes.
    """
    return result.looks if len(result.looks.get("version", ())) else result.evaluations


def own_accuracies(result: Result, versions: Values) -> tuple[Values, Values]:
    """Return [E] test accuracies of the clients' own sub-models: mean and worst class.

    Each sub-model is cut as for its class of clients; NaN where a version was not cut.
    """
    rows = result.submodels
    if not len(rows.get("version", ())):
        unknown = np.full(len(versions), np.nan)
        return unknown, unknown
    known, starts = np.unique(rows["version"], return_index=True)
    weights = rows["num_clients"]
    total = np.add.reduceat(rows["test_accuracy"] * weights, starts)
    means = total / np.add.reduceat(weights, starts)
    worst = np.minimum.reduceat(rows["test_accuracy"], starts)
    at = np.minimum(np.searchsorted(known, versions), len(known) - 1)
    is_cut = known[at] == versions
    return np.where(is_cut, means[at], np.nan), np.where(is_cut, worst[at], np.nan)


def mean_density(result: Result) -> tuple[Values, Values]:
    """Return times in s and mean densities, [N], from the initial model on if it was evaluated."""
    times, means = result.merges["now_s"], result.merges["density"].mean(axis=1)
    initial = result.evaluations["version"] == 0
    before = [result.evaluations[name][initial][:1] for name in ("now_s", "mean_density")]
    return np.concatenate([before[0], times]), np.concatenate([before[1], means])


def end_s(result: Result, name: str) -> float:
    """Return the latest time in column `name`."""
    columns = [result.merges[name], result.evaluations[name]]
    return max((float(column[-1]) for column in columns if len(column)), default=0.0)


def last_tests(result: Result) -> Values:
    """Return the last test accuracies, at most 3, of models that were trained if there are any."""
    evaluations = scored(result)
    test = evaluations["test_accuracy"]
    is_known = np.isfinite(test)
    is_trained = is_known & (evaluations["version"] > 0)
    return test[is_trained if is_trained.any() else is_known][-3:]


def merged_ages(result: Result) -> Values:
    """Return [M] staleness of the merged updates when they were first merged; a fresh one has 1."""
    version, base = result.updates["version"], result.updates["base_version"]
    return (version - base)[version > 0]
