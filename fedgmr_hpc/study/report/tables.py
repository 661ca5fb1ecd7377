"""The tables of a study: rows are its methods, columns its conditions, values over seeds.

Accuracies are test accuracies in percent; differences are in points.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedgmr_hpc.reporting.statistics import Summary, medians, summarize, window_around
from fedgmr_hpc.reporting.tables import Table
from fedgmr_hpc.study.claims import UNITS, ClaimResult, what_would_decide
from fedgmr_hpc.study.measures import Run, columns_of, pairs, rows_of, select_runs

LEGACY_NUM = 10  # evaluations on either side of T (docs/method.md#reported-accuracy)
INTERVALS = (
    "In brackets: 95 % percentile bootstrap of the mean (10,000 seeded resamples); t: half of "
    "Student's interval, given for 2 to 5 seeds, where a bootstrap is too narrow (over 3 seeds it "
    "stays inside their range). One seed has no interval. n: seeds with a value."
)
COSTS = {"times_s": ("virtual s", 1.0), "bytes": ("MB", 1e-6), "client_steps": ("steps", 1.0)}


@dataclass(frozen=True)
class Scale:
    """Where accuracies are compared: T in s, m evaluations, targets 0 to 1, reference row; and
    what is shown: titles of rows and columns by their raw names.
    """

    at_s: float
    last: int
    targets: tuple[float, ...]
    reference: str | None
    command: str
    titles: Mapping[str, str] = field(default_factory=dict)

    def title(self, name: str) -> str:
        """Return what is shown of a row or column."""
        return self.titles.get(name, name)

    @property
    def when(self) -> str:
        """In words."""
        return f"mean of the last {self.last} evaluations at or before T = {self.at_s:g} s"


def accuracy_table(runs: Sequence[Run], scale: Scale) -> Table:
    """Tabulate the test accuracy at the comparison time."""

    def summary(row: str, column: str) -> Summary | None:
        cells = select_runs(runs, row, column)
        return summarize([100 * run.accuracy_at(scale.at_s, scale.last) for run in cells])

    return _grid(
        runs,
        summary,
        scale,
        name="test_accuracy",
        title=f"Test accuracy (%) at {scale.at_s:g} s of virtual time",
        notes=[f"Each run: {scale.when}; a run that ended before T has no value.", INTERVALS],
    )


OWN = {
    "own_mean": ("own_submodels_mean", "mean over the clients"),
    "own_worst": ("own_submodels_worst", "the clients that have the least"),
}


def own_tables(runs: Sequence[Run], scale: Scale) -> list[Table]:
    """Tabulate the accuracy of the clients' own sub-models; no table where none was scored."""
    if not any(np.isfinite(run.own_mean).any() for run in runs):
        return []
    return [_own_table(runs, scale, of, *words) for of, words in OWN.items()]


def _own_table(runs: Sequence[Run], scale: Scale, of: str, name: str, whose: str) -> Table:
    def summary(row: str, column: str) -> Summary | None:
        cells = select_runs(runs, row, column)
        return summarize([100 * run.accuracy_at(scale.at_s, scale.last, of) for run in cells])

    return _grid(
        runs,
        summary,
        scale,
        name=name,
        title=f"Test accuracy (%) of each client's own sub-model, {whose}, at {scale.at_s:g} s",
        notes=[
            "Own: the server's model cut to the density with which the client begins, as it is "
            "sent the newest masks (eval.submodels); methods without sub-models send everybody "
            f"the whole model. Each run: {scale.when}.",
            INTERVALS,
        ],
    )


def difference_table(runs: Sequence[Run], scale: Scale) -> Table | None:
    """Tabulate paired differences to the reference row; None without one or its runs."""
    reference = scale.reference
    if reference is None or reference not in rows_of(runs):
        return None

    def summary(row: str, column: str) -> Summary | None:
        inside = [run for run in runs if run.column == column]
        both = [
            [100 * run.accuracy_at(scale.at_s, scale.last) for run in pair]
            for pair in pairs(inside, row, reference)
        ]
        return summarize([a - b for a, b in both])

    others = [run for run in runs if run.row != reference]
    return _grid(
        others,
        summary,
        scale,
        name="differences",
        title=f"Test accuracy minus that of {scale.title(reference)} (points) at {scale.at_s:g} s",
        notes=["Paired: same seed and condition; n: pairs.", INTERVALS],
        sign="+",
    )


def cost_table(runs: Sequence[Run], scale: Scale) -> Table | None:
    """Tabulate time, bytes and client-steps to the targets; None without targets."""
    if not scale.targets:
        return None
    heads = ["condition", "method", "n"]
    steps = _resolutions(runs)
    units = [unit for unit, _ in COSTS.values()]
    if len(steps) == 1:
        units[0] += f" (\u00b1{next(iter(steps)):g})"
    heads += [f"{unit} to {t:.1%}" for t in scale.targets for unit in units]
    rows, records = [], []
    for column in columns_of(runs):
        for row in rows_of(select_column(runs, column)):
            cells = select_runs(runs, row, column)
            costs = [
                (t, cost, _median([run.cost_to(cost, t, scale.last) for run in cells]))
                for t in scale.targets
                for cost in COSTS
            ]
            names = [scale.title(name) for name in (column, row)]
            rows.append([*names, str(len(cells)), *(_cost(c, v) for _, c, v in costs)])
            records += [
                {
                    "condition": column,
                    "method": row,
                    "n": len(cells),
                    "target": t,
                    "cost": cost,
                    "median": value,
                }
                for t, cost, value in costs
            ]
    return Table(
        name="cost_to_accuracy",
        title="Time, traffic and client-steps to a test accuracy",
        heads=heads,
        rows=rows,
        notes=[
            f"Median over seeds of the first evaluation whose mean over {scale.last} evaluations "
            "reaches the target; a seed that does not reach it counts as infinite. MB: 10^6 bytes "
            "on the server's links, both directions; steps: local SGD steps behind the updates "
            "delivered by then.",
            _resolution_note(steps, scale),
        ],
        num_seeds=_seeds(runs),
        command=scale.command,
        records=records,
    )


def legacy_table(runs: Sequence[Run], scale: Scale) -> Table | None:
    """Return the number that the release reports, or None where no run goes past T.

    See docs/method.md#reported-accuracy.
    """
    lowest = min((run.seed for run in runs), default=0)
    shown: dict[tuple[str, str], tuple[float, float]] = {}
    for run in runs:
        if run.seed == lowest:
            value = window_around(run.refresh_times_s, run.refresh_test, scale.at_s, LEGACY_NUM)
            shown[run.row, run.column] = value
    if all(math.isnan(mean) for mean, _ in shown.values()):
        return None
    columns = columns_of(runs)
    rows = [
        [scale.title(row), *(_plus_minus(shown.get((row, column))) for column in columns)]
        for row in rows_of(runs)
    ]
    return Table(
        name="legacy",
        title=f"Test accuracy (%) as the release reports it, around {scale.at_s:g} s",
        heads=["method", *map(scale.title, columns)],
        rows=rows,
        notes=[
            f"Seed {lowest} alone: mean and standard deviation over {LEGACY_NUM} evaluations "
            "before and after T; the deviation is over time, not over seeds. The release also "
            "takes the greater of two models' accuracies; only the server's is recorded here."
        ],
        num_seeds="1",
        command=scale.command,
    )


def claims_table(findings: Sequence[ClaimResult], runs: Sequence[Run], scale: Scale) -> Table:
    """Tabulate the verdicts, with their figures, of `runs`."""
    heads = ["claim", "compared", "pairs", "mean", "95 % interval", "p", "verdict"]
    return Table(
        name="claims",
        title=f"Claims: {_tally(findings)}",
        heads=[*heads, "what would decide it"],
        rows=[
            [
                f.name,
                f"{scale.title(f.a)} - {scale.title(f.b)}",
                *_tested(f),
                f"{f.verdict}{'*' * f.is_firm}",
                what_would_decide(f) or f.note or "",
            ]
            for f in findings
        ],
        notes=[*_claim_notes(findings), _resolution_note(_resolutions(runs), scale)],
        command=scale.command,
        records=[_claim_record(f) for f in findings],
    )


def _tally(findings: Sequence[ClaimResult]) -> str:
    counts = Counter(f.verdict for f in findings)
    return ", ".join(
        f"{counts[each]} {each}" for each in ("supported", "contradicted", "undecided")
    )


def _tested(found: ClaimResult) -> list[str]:
    """Return pairs, mean, interval and p of a claim."""
    num = found.test.num_values if found.test else 0
    pairs = f"{num} of {num + found.num_missing}" if found.num_missing else str(num)
    if found.test is None:
        return [pairs, "-", "-", "-"]
    mean = f"{found.test.mean:+.2f} {UNITS[found.kind]}"
    return [pairs, mean, _interval(found.test.interval, "+"), _p(found.test.p)]


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if value >= 1e-4 else "< 0.0001"


def _claim_notes(findings: Sequence[ClaimResult]) -> list[str]:
    num = sum(1 for f in findings if not math.isnan(f.p_holm))
    firm = sum(f.is_firm for f in findings)
    return [
        "Means are positive where the claim holds: points of accuracy, of scatter, or halvings of "
        "the time (1: twice as soon; an accuracy never reached counts as reached at the run's "
        "end). Pairs share seed and condition. Supported: Student's paired 95 % interval lies "
        "above zero; contradicted: below it, or a collapse; else undecided.",
        f"Each verdict is a test at 5 %: of {num} comparisons without any effect, about "
        f"{0.05 * num:.1f} would be decided by chance. *: stands after Holm's correction over all "
        f"{num} ({firm} do).",
        "What would decide it: pairs for 80 % power of the two-sided test at 5 % (noncentral t), "
        "if the observed mean and deviation were the true ones, an estimate as rough as it has few "
        "values; and the smallest effect that the pairs at hand had 80 % power to show.",
    ]


def _claim_record(found: ClaimResult) -> dict[str, Any]:
    test = found.test
    low, high = (test.interval if test else None) or ("", "")
    figures = {"mean": test.mean, "sd": test.sd, "p": test.p} if test else {}
    return {
        "claim": found.name,
        "a": found.a,
        "b": found.b,
        "verdict": found.verdict,
        "stands_after_holm": found.is_firm,
        "n": test.num_values if test else 0,
        "missing": found.num_missing,
        "unit": UNITS[found.kind],
        **figures,
        "low": low,
        "high": high,
        "p_holm": found.p_holm,
        "would_decide": what_would_decide(found),
        "note": found.note,
    }


def select_column(runs: Sequence[Run], column: str) -> list[Run]:
    """Return the runs of one condition."""
    return [run for run in runs if run.column == column]


def _grid(
    runs: Sequence[Run],
    summary: Callable[[str, str], Summary | None],
    scale: Scale,
    *,
    name: str,
    title: str,
    notes: Sequence[str],
    sign: str = "",
) -> Table:
    rows, records, columns = [], [], columns_of(runs)
    for row in rows_of(runs):
        found = [summary(row, column) for column in columns]
        rows.append([scale.title(row), *(_shown(each, sign) for each in found)])
        records += [
            {"method": row, "condition": column, **_numbers(each)}
            for column, each in zip(columns, found, strict=True)
        ]
    heads = ["method", *map(scale.title, columns)]
    return Table(name, title, heads, rows, notes, scale.command, _seeds(runs), records)


def _shown(summary: Summary | None, sign: str) -> str:
    if summary is None:
        return "-"
    interval = f" {_interval(summary.bootstrap, sign)}" if summary.bootstrap else ""
    half = summary.student[1] - summary.mean if summary.student else 0.0
    student = f"t \u00b1{half:.2f}, " if summary.student else ""
    return f"{summary.mean:{sign}.2f}{interval} ({student}n={summary.num_values})"


def _numbers(summary: Summary | None) -> dict[str, Any]:
    if summary is None:
        return {"n": 0}
    low, high = summary.bootstrap or ("", "")
    t_low, t_high = summary.student or ("", "")
    return {
        "n": summary.num_values,
        "mean": summary.mean,
        "min": summary.minimum,
        "max": summary.maximum,
        "bootstrap_low": low,
        "bootstrap_high": high,
        "t_low": t_low,
        "t_high": t_high,
    }


def _interval(interval: tuple[float, float] | None, sign: str) -> str:
    return "-" if interval is None else f"[{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]"


def _plus_minus(value: tuple[float, float] | None) -> str:
    if value is None or math.isnan(value[0]):
        return "-"
    return f"{100 * value[0]:.2f} \u00b1 {100 * value[1]:.2f}"


def _resolutions(runs: Sequence[Run]) -> dict[float, list[str]]:
    """Return the rows by the longest time between two evaluations in any of their runs."""
    steps: dict[float, list[str]] = {}
    for row in rows_of(runs):
        known = [run.resolution_s for run in select_runs(runs, row)]
        if known := [step_s for step_s in known if math.isfinite(step_s)]:
            steps.setdefault(round(max(known), 6), []).append(row)
    return dict(sorted(steps.items()))


def _resolution_note(steps: Mapping[float, Sequence[str]], scale: Scale) -> str:
    """Describe how well times to an accuracy are known."""
    if len(steps) == 1:
        step_s = next(iter(steps))
        return f"Evaluated every {step_s:g} s in every run: times are at most that much too late."
    named = "; ".join(
        f"{step_s:g} s {', '.join(map(scale.title, rows))}" for step_s, rows in steps.items()
    )
    return (
        "NOT COMPARABLE below these steps, since the runs were not evaluated at equal times "
        f"(eval.every_s): times are at most so much too late: {named or 'unknown'}."
    )


def _median(values: Sequence[float]) -> float:
    return float(medians(np.array(values))) if values else math.nan


def _cost(cost: str, value: float) -> str:
    if math.isinf(value):
        return "not reached"
    return f"{value * COSTS[cost][1]:,.0f}" if math.isfinite(value) else "-"


def _seeds(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    return f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "0"
