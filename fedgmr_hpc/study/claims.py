"""Claims of a study and what its runs say of them: supported, contradicted or undecided.

    kind           paired value, positive where the claim holds                    unit
    difference     accuracy of a minus accuracy of b at T                          points
    gap_narrowing  shortfall of b to `full` minus shortfall of a, each at least 0  points
    stability      std of the last `window` versions seen up to T, b minus a       points
    time_ratio     log2(time of b to `target` / time of a)                         halvings

Pairs share column and seed. A seed's value is the mean over its pairs, one for each condition
(column) that the study plans for the claim, since runs of one seed begin with the same weights. A
seed that lacks one does not count: the mean of other conditions is another quantity. A claim is
supported where Student's 95 % interval of the mean over the seeds lies above zero, contradicted
where it lies below, else undecided; equal values other than zero have no interval. That is a test
at 5 % for each comparison alone; a verdict is firm where it stands after Holm's correction over all
comparisons that could be tested. An accuracy that is never reached counts as reached at the run's
end, which moves a pair's value towards zero; pairs where neither gets there, or where the one that
does not ended first, have no value. A stability claim is contradicted where a run of `a` ends more
than `max_drop` under its best moving mean. A row of which a run has diverged wins nothing: what the
other seeds say for it is undecided.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Literal

from fedgmr_hpc.reporting.paired import (
    MAX_PAIRS,
    MeanTest,
    holm,
    mean_test,
    num_needed,
    smallest_effect,
)
from fedgmr_hpc.reporting.statistics import LEVEL, drop_from_best
from fedgmr_hpc.reporting.words import count_of
from fedgmr_hpc.results.series import Run
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.labels import matches
from fedgmr_hpc.study.measures import pairs, select_runs
from fedgmr_hpc.study.study_file import ClaimSpec, DifferenceClaim, StabilityClaim, TimeRatioClaim

Verdict = Literal["supported", "contradicted", "undecided"]
Place = tuple[str, int]  # the column and seed of a pair
UNITS = {
    "difference": "points",
    "gap_narrowing": "points",
    "stability": "points",
    "time_ratio": "halvings",
}


@dataclass(frozen=True)
class ClaimResult:
    """What the runs say of one claim.

    Attributes:
        test: Of the seeds' values, in UNITS of the kind; None without a pair.
        num_pairs: Pairs that have a value.
        num_missing: Pairs planned of which a run is missing.
        num_without: Pairs of runs without a value.
        num_diverged: Pairs planned of which a run has diverged.
        is_firm: Whether the verdict stands after Holm's correction (`corrected`).
    """

    name: str
    a: str
    b: str
    kind: str
    verdict: Verdict
    test: MeanTest | None
    num_pairs: int
    num_missing: int
    num_without: int = 0
    num_diverged: int = 0
    note: str = ""
    p_holm: float = math.nan
    is_firm: bool = False

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the interval of the mean; None without a test."""
        return self.test.interval if self.test else None


@dataclass(frozen=True)
class Comparison:
    """A claim about two rows, on the study's scale: T in s and m evaluations."""

    spec: ClaimSpec
    a: str
    b: str
    full: str | None
    at_s: float
    last: int


def judge(
    claim: Comparison,
    runs: Sequence[Run],
    planned: Collection[Place],
    diverged: Sequence[Cell] = (),
) -> ClaimResult:
    """Return the finding on a claim.

    Args:
        runs: the finished runs of the study.
        planned: where the study plans pairs for this claim.
        diverged: cells of the study whose model has diverged.
    """
    inside = [run for run in runs if matches(run.labels, claim.spec.where)]
    values = pair_values(claim, inside)
    num_conditions = len({column for column, _ in planned})
    test = mean_test(_seed_means(values, num_conditions))
    found = {(a.column, a.seed) for a, _ in pairs(inside, claim.a, claim.b)}
    gone = {(c.column, c.seed) for c in diverged if c.row in (claim.a, claim.b)} & {*planned}
    verdict, note = _but(claim, decide(test.interval if test else None), inside, diverged)
    return ClaimResult(
        name=claim.spec.name,
        a=claim.a,
        b=claim.b,
        kind=claim.spec.kind,
        verdict=verdict,
        test=test,
        num_pairs=len(values),
        num_missing=len({*planned} - found - gone),
        num_without=len(found - values.keys()),
        num_diverged=len(gone - found),
        note=note,
    )


def _but(
    claim: Comparison, verdict: Verdict, runs: Sequence[Run], diverged: Sequence[Cell]
) -> tuple[Verdict, str]:
    """Return the verdict in the light of runs without a place in the mean, and which those are."""
    gone = [cell for cell in diverged if matches(cell.labels, claim.spec.where)]
    rows = {
        row: [cell.name for cell in gone if cell.row == row]
        for row in (claim.a, claim.b, claim.full)
    }
    names = [name for row in rows.values() for name in row]
    notes = [f"diverged: {', '.join(names)}"] * bool(names)
    if fallen := _collapses(claim, runs):
        verdict, notes = "contradicted", [fallen, *notes]
    winner = {"supported": claim.a, "contradicted": claim.b}.get(verdict)
    return "undecided" if winner and rows[winner] else verdict, "; ".join(notes)


def decide(interval: tuple[float, float] | None) -> Verdict:
    """Return the verdict of a 95 % interval of a value that the claim wants above zero."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "supported" if interval[0] > 0 else "contradicted"


def corrected(findings: Sequence[ClaimResult]) -> list[ClaimResult]:
    """Return all findings of a study, each with whether it stands beside the others; those that
    could not be tested, such as claims about runs to come, are none of the family.
    """
    adjusted = holm([f.test.p if f.test else math.nan for f in findings])
    return [
        replace(f, p_holm=p, is_firm=p < LEVEL and f.verdict == decide(f.interval) != "undecided")
        for f, p in zip(findings, adjusted, strict=True)
    ]


def what_would_decide(found: ClaimResult) -> str:
    """Say how many seeds an undecided claim needs, and what those at hand could have shown.

    It is an estimate from the few values at hand: of 80 % power at their mean and deviation.
    """
    if found.verdict != "undecided":
        return ""
    kinds = [(found.num_missing, "missing pair"), (found.num_without, "pair")]
    missing, without = (f"{count_of(number, kind)}" * bool(number) for number, kind in kinds)
    needs = _needs(found.test, has_more_seeds=bool(missing))
    return "; ".join(filter(None, [missing, without and f"{without} without a value", *needs]))


def _needs(test: MeanTest | None, *, has_more_seeds: bool) -> list[str]:
    if test is None or test.num_values == 1:
        return [] if has_more_seeds else ["more than one seed"]
    if decide(test.interval) != "undecided":
        return ["runs that do not diverge"]
    if not test.sd:
        return ["seeds that differ: all are equal"]
    needed = num_needed(test.mean / test.sd) or f"more than {MAX_PAIRS}"
    least = smallest_effect(test.num_values) * test.sd
    return [f"{needed} seeds", f"{test.num_values} can show {least:.2g}"]


def pair_values(claim: Comparison, runs: Sequence[Run]) -> dict[Place, float]:
    """Return the values of the pairs that have one; see the module docstring."""
    measure: dict[str, Callable[[Comparison, Run, Run], float]] = {
        "difference": _difference,
        "time_ratio": _time_ratio,
        "stability": _steadiness,
        "gap_narrowing": partial(_narrowing, select_runs(runs, claim.full or "")),
    }
    both = pairs(runs, claim.a, claim.b)
    values = {(a.column, a.seed): measure[claim.spec.kind](claim, a, b) for a, b in both}
    return {place: value for place, value in values.items() if not math.isnan(value)}


def _seed_means(values: Mapping[Place, float], num_conditions: int) -> list[float]:
    """Return the mean of each seed that has a value in every condition."""
    of_seeds = defaultdict(list)
    for (_, seed), value in values.items():
        of_seeds[seed].append(value)
    return [fmean(each) for each in of_seeds.values() if len(each) == num_conditions]


def _accuracy(claim: Comparison, run: Run) -> float:
    of = claim.spec.of if isinstance(claim.spec, DifferenceClaim) else "test"
    return 100 * run.accuracy_at(claim.at_s, claim.last, of)


def _difference(claim: Comparison, a: Run, b: Run) -> float:
    return _accuracy(claim, a) - _accuracy(claim, b)


def _time_ratio(claim: Comparison, a: Run, b: Run) -> float:
    """Return log2 of how many times longer `b` takes, at least; NaN where it is not known."""
    assert isinstance(claim.spec, TimeRatioClaim)
    target = claim.spec.target
    times = [run.cost_to("times_s", target, claim.last) for run in (a, b)]
    ends = [run.times_s[-1] if len(run.times_s) else 0.0 for run in (a, b)]
    seen = [min(time_s, end_s) for time_s, end_s in zip(times, ends, strict=True)]
    is_known = [seen[i] == times[i] or seen[i] >= times[1 - i] for i in (0, 1)]
    if not all(is_known) or min(seen) <= 0:
        return math.nan
    return math.log2(seen[1] / seen[0])


def _steadiness(claim: Comparison, a: Run, b: Run) -> float:
    """Return how much more `b` scatters; NaN where a run ended before T, as for an accuracy."""
    assert isinstance(claim.spec, StabilityClaim)
    if not (a.covers(claim.at_s) and b.covers(claim.at_s)):
        return math.nan
    stds = [run.scatter_at(claim.at_s, claim.spec.window) for run in (a, b)]
    return 100 * (stds[1] - stds[0])


def _narrowing(full: Sequence[Run], claim: Comparison, a: Run, b: Run) -> float:
    """Return how much nearer `a` comes to the run of `full` beside it; NaN without one."""
    tops = [run for run in full if (run.column, run.seed) == (a.column, a.seed)]
    if not tops:
        return math.nan
    shortfalls = [_accuracy(claim, tops[0]) - _accuracy(claim, run) for run in (a, b)]
    if any(map(math.isnan, shortfalls)):
        return math.nan
    return max(0.0, shortfalls[1]) - max(0.0, shortfalls[0])


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
