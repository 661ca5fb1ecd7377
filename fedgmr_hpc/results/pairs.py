"""What a run on the wall clock and the same run on the virtual clock have in common, as numbers.

Times of both are unscaled seconds. The k-th update of a client in one run is matched with its k-th
in the other. Orders are compared by Spearman's rank correlation, equal times sharing their mean
rank: it sorts where Kendall's tau takes all pairs of 10^5 arrivals, and it weighs a swap by its
distance, so that neighbours milliseconds apart, which no real clock keeps in order, cost little.

Shapes: U updates, A matched arrivals, R rounds that both runs have, S values of staleness,
D densities.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from fedgmr_hpc.config.identity import CELL, differences
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.reporting.statistics import rank_correlation
from fedgmr_hpc.results.series import Values, last_tests, merged_ages
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.storage.schema import Columns

OF_THE_CLOCK = ("clock", "time_scale", "faults")  # in which a pair may differ
MAX_OVERRUN_FRAC = 0.05


def refuse(virtual: Result, wall: Result, noise_results: Sequence[Result]) -> None:
    """Refuse runs that cannot be compared.

    Raises:
        ValueError: a run is not finished, on the wrong clock or shorter than 2 rounds, the
            configurations are of different runs beyond `OF_THE_CLOCK` (and the seed of
            `noise_results`), or too many of the wall clock's client-steps overran.
    """
    _refuse_run(wall, "wall")
    for run in (virtual, *noise_results):
        _refuse_run(run, "virtual")
    _refuse_differing(virtual, wall, OF_THE_CLOCK)
    for run in noise_results:
        _refuse_differing(virtual, run, (*OF_THE_CLOCK, "seed"))
    overran = overrun_frac(wall)
    if overran > MAX_OVERRUN_FRAC:
        raise ValueError(
            f"results {wall.path}: the wall clock overran in {100 * overran:.1f} % of the client-"
            f"steps, and must in at most {100 * MAX_OVERRUN_FRAC:g} %: raise time_scale"
        )


def _refuse_run(run: Result, clock: str) -> None:
    num_rounds = int(run.merges["round"].max(initial=0))
    got_clock = run.config.get("clock")
    facts = {
        "clock": (got_clock == clock, got_clock, repr(clock)),
        "status": (run.status == "finished", run.status, "'finished'"),
        "rounds": (num_rounds >= 2, num_rounds, "2 or more"),
    }
    for name, (is_right, got, allowed) in facts.items():
        if not is_right:
            raise ValueError(must_be(f"results {run.path}: {name}", allowed, got))


def _refuse_differing(a: Result, b: Result, may_differ: Collection[str]) -> None:
    keys = [key for key in differences(a.config, b.config, CELL) if key not in may_differ]
    if keys:
        raise ValueError(
            f"results {b.path}: the configuration differs from that of {a.path} in "
            f"{', '.join(keys)}; it may differ in {', '.join(may_differ)}"
        )


def overrun_frac(wall: Result) -> float:
    """Return the share of client-steps that took longer than they may; 0 if not recorded."""
    return float(np.mean(wall.updates.get("wall_overrun", 0)))


def matched(virtual: Columns, wall: Columns) -> tuple[Values, Values]:
    """Return rows [A] of each run: a client's k-th update in one beside its k-th in the other."""
    left, right = _numbered(virtual["client"]), _numbered(wall["client"])
    rows = [(row, right[key]) for key, row in left.items() if key in right]
    first, second = np.array(rows, dtype=int).reshape(-1, 2).T
    return first, second


def _numbered(clients: Values) -> dict[tuple[int, int], int]:
    """Return the row of every (client, number of its update)."""
    seen: Counter[int] = Counter()
    rows = {}
    for row, client in enumerate(clients.tolist()):
        rows[client, seen[client]] = row
        seen[client] += 1
    return rows


def order_correlations(virtual: Result, wall: Result) -> tuple[float, float]:
    """Return rank correlations of the matched arrivals' times, NaN where nothing has an order.

    The first is over the whole run, near 1 whatever happens inside the rounds; the second is the
    mean over the virtual run's rounds, each taken alone.
    """
    left, right = matched(virtual.updates, wall.updates)
    a, b = virtual.updates["now_s"][left], wall.updates["now_s"][right]
    rounds = _merge_rounds(virtual)[left]
    order = np.argsort(rounds, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(rounds[order])) + 1)
    inside = [rank_correlation(a[rows], b[rows]) for rows in groups if (rounds[rows] >= 0).all()]
    known = [value for value in inside if not math.isnan(value)]
    return rank_correlation(a, b), float(np.mean(known)) if known else math.nan


def _merge_rounds(run: Result) -> Values:
    """Return [U] the round in which each update was first merged, -1 for none."""
    versions = run.updates["version"]
    rows = np.searchsorted(run.merges["version"], versions)
    return np.where(versions > 0, run.merges["round"][rows], -1)


def round_times(virtual: Result, wall: Result) -> tuple[Values, Values]:
    """Return [R] seconds of each round in both runs; the first begins at 0."""
    num_rounds = min(run.merges["round"].max(initial=0) for run in (virtual, wall))
    numbers = np.arange(1, num_rounds + 1)
    first, second = (
        np.diff(run.merges["now_s"][np.searchsorted(run.merges["round"], numbers)], prepend=0.0)
        for run in (virtual, wall)
    )
    return first, second


def staleness_shares(virtual: Result, wall: Result) -> Values:
    """Return [2, S] shares of each run's merged updates by staleness at their first merge.

    Staleness is the version less the base version: a fresh update has 1.
    """
    ages = [merged_ages(run) for run in (virtual, wall)]
    size = max(int(age.max()) for age in ages) + 1
    return np.array([np.bincount(age, minlength=size) / len(age) for age in ages])


def bytes_error(virtual: Columns, wall: Columns) -> float:
    """Return the relative difference of the mean bytes of an update at equal density.

    It is the largest over directions and the densities that both runs have; NaN without any.
    """
    (left, left_bytes), (right, right_bytes) = _mean_bytes(virtual), _mean_bytes(wall)
    _, i, j = np.intersect1d(left, right, return_indices=True)
    errors = np.abs(right_bytes[:, j] / left_bytes[:, i] - 1)
    return float(errors.max()) if errors.size else math.nan


def _mean_bytes(updates: Columns) -> tuple[Values, Values]:
    """Return the densities [D] and the mean bytes of an update up and down at each, [2, D]."""
    densities, place = np.unique(updates["density"], return_inverse=True)
    sums = [np.bincount(place, updates[name]) for name in ("up_bytes", "down_bytes")]
    return densities, np.array(sums) / np.bincount(place)


def final_accuracy(run: Result) -> float:
    """Return the accuracy on the test set, 0 to 1: the mean of the last 3 of a trained model."""
    return float(last_tests(run).mean())
