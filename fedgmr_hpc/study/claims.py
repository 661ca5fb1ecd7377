"""Claims of a study and what its runs say of them: SUPPORTED, NOT SUPPORTED or INCONCLUSIVE.

    kind           paired value, positive where the claim holds                    unit
    difference     accuracy of a minus accuracy of b at T                          points
    gap_narrowing  shortfall of b to `full` minus shortfall of a, each at least 0  points
    stability      std of the last `window` evaluations up to T, b minus a         points
    time_ratio     log2(time of b to `target` / time of a)                         halvings

Pairs share column and seed. A claim is supported where the 95 % interval over the pairs lies above
zero, not supported where it lies below, else inconclusive. The interval is the percentile bootstrap
of the mean, widened to Student's t for 2 to 5 pairs, where a bootstrap is too narrow: two or three
pairs of one sign would always decide. For time_ratio it is that of the median, since values may be
infinite (only one of the two gets there; nothing is widened then); pairs where neither gets there
are left out. A stability claim is not supported where a run of `a` ends more than `max_drop` under
its best moving mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedgmr_hpc.reporting.statistics import (
    bootstrap_interval,
    drop_from_best,
    medians,
    std_last,
    summarize,
    widest,
)
from fedgmr_hpc.study.cells import matches
from fedgmr_hpc.study.measures import Run, pairs, select_runs
from fedgmr_hpc.study.study_file import ClaimSpec, StabilityClaim, TimeRatioClaim

Verdict = Literal["SUPPORTED", "NOT SUPPORTED", "INCONCLUSIVE"]
UNITS = {
    "difference": "points",
    "gap_narrowing": "points",
    "stability": "points",
    "time_ratio": "halvings of time",
}


@dataclass(frozen=True)
class ClaimResult:
    """What the runs say of one claim; `value` and `interval` are in UNITS of its kind."""

    name: str
    a: str
    b: str
    kind: str
    verdict: Verdict
    value: float  # NaN without a pair
    interval: tuple[float, float] | None
    num_pairs: int
    num_missing: int  # pairs planned and not there, or without a value
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """A claim about two rows, on the study's scale: T in s and m evaluations."""

    spec: ClaimSpec
    a: str
    b: str
    full: str | None
    at_s: float
    last: int


def judge(claim: Comparison, runs: Sequence[Run], num_planned: int) -> ClaimResult:
    """Return the finding on a claim.

    Args:
        runs: the finished runs of the study.
        num_planned: pairs that the study plans for this claim.
    """
    values = paired_values(claim, runs)
    value, interval = _estimate(values, claim.spec.kind)
    verdict = decide(interval)
    note = _collapses(claim, _inside(claim, runs))
    return ClaimResult(
        name=claim.spec.name,
        a=claim.a,
        b=claim.b,
        kind=claim.spec.kind,
        verdict="NOT SUPPORTED" if note else verdict,
        value=value,
        interval=interval,
        num_pairs=len(values),
        num_missing=num_planned - len(values),
        note=note or _note(values),
    )


def decide(interval: tuple[float, float] | None) -> Verdict:
    """Return the verdict of a 95 % interval of a value that the claim wants above zero."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "INCONCLUSIVE"
    return "SUPPORTED" if interval[0] > 0 else "NOT SUPPORTED"


def paired_values(claim: Comparison, runs: Sequence[Run]) -> list[float]:
    """Return one value for every pair that has one; see the module docstring."""
    runs = _inside(claim, runs)
    measure = {
        "difference": _difference,
        "time_ratio": _time_ratio,
        "stability": _steadiness,
    }
    if claim.spec.kind == "gap_narrowing":
        values = _narrowings(claim, runs)
    else:
        values = [measure[claim.spec.kind](claim, *p) for p in pairs(runs, claim.a, claim.b)]
    return [value for value in values if not math.isnan(value)]


def _inside(claim: Comparison, runs: Sequence[Run]) -> list[Run]:
    """Return the runs under the conditions of the claim."""
    return [run for run in runs if matches(run.labels, claim.spec.where)]


def _accuracy(claim: Comparison, run: Run) -> float:
    return 100 * run.accuracy_at(claim.at_s, claim.last)


def _difference(claim: Comparison, a: Run, b: Run) -> float:
    return _accuracy(claim, a) - _accuracy(claim, b)


def _time_ratio(claim: Comparison, a: Run, b: Run) -> float:
    """Return log2 of how many times longer `b` takes; NaN where neither reaches the target."""
    assert isinstance(claim.spec, TimeRatioClaim)
    target = claim.spec.target
    times = [run.cost_to("times_s", target, claim.last) for run in (a, b)]
    if math.isinf(times[0]) and math.isinf(times[1]):
        return math.nan
    with np.errstate(divide="ignore"):
        return float(np.log2(times[1]) - np.log2(times[0]))


def _steadiness(claim: Comparison, a: Run, b: Run) -> float:
    assert isinstance(claim.spec, StabilityClaim)
    stds = [std_last(r.times_s, r.test, claim.at_s, claim.spec.window) for r in (a, b)]
    return 100 * (stds[1] - stds[0])


def _narrowings(claim: Comparison, runs: Sequence[Run]) -> list[float]:
    full = claim.full or ""
    best = {(r.column, r.seed): _accuracy(claim, r) for r in select_runs(runs, full)}
    values = []
    for a, b in pairs(runs, claim.a, claim.b):
        top = best.get((a.column, a.seed), math.nan)
        shortfalls = [top - _accuracy(claim, run) for run in (a, b)]
        if not any(math.isnan(shortfall) for shortfall in shortfalls):
            values.append(max(0.0, shortfalls[1]) - max(0.0, shortfalls[0]))
    return values


def _estimate(values: Sequence[float], kind: str) -> tuple[float, tuple[float, float] | None]:
    if not values:
        return math.nan, None
    summary = summarize(values)
    if kind == "time_ratio":
        array = np.array(values)
        student = summary.student if summary and np.isfinite(array).all() else None
        interval = widest(bootstrap_interval(array, statistic="median"), student)
        return float(medians(array)), interval
    return (summary.mean, summary.widest) if summary else (math.nan, None)


def _collapses(claim: Comparison, runs: Sequence[Run]) -> str:
    """Return the runs of `a` that end far under their best, in words; empty for none."""
    if not isinstance(claim.spec, StabilityClaim):
        return ""
    allowed = claim.spec.max_drop
    fallen = [
        f"{run.name} by {100 * drop:.1f} points"
        for run in select_runs(runs, claim.a)
        if (drop := drop_from_best(run.times_s, run.test, claim.at_s, claim.last)) > allowed
    ]
    return f"collapse under the best moving mean: {', '.join(fallen)}" if fallen else ""


def _note(values: Sequence[float]) -> str:
    if not values:
        return "no pair with a value"
    if len(values) == 1:
        return "one pair has no interval"
    return ""
