"""What the tables of a study share, and the table of what an accuracy costs.

Rows are methods, columns conditions, values over seeds. Accuracies are test accuracies in percent;
differences are in points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedgmr_hpc.reporting.statistics import medians
from fedgmr_hpc.reporting.tables import Table
from fedgmr_hpc.results.series import TIMES, Run
from fedgmr_hpc.study.measures import columns_of, rows_of, select_runs

Spread = Literal["sd", "interval"]
SECONDS = {TIMES["virtual"]: "virtual s", TIMES["wall"]: "unscaled s"}
COSTS = {"times_s": ("s", 1.0), "bytes": ("MB", 1e-6), "client_steps": ("steps", 1.0)}


@dataclass(frozen=True)
class Scale:
    """Where accuracies are compared, and how they are shown.

    Attributes:
        at_s: T.
        last: m, the evaluations averaged.
        targets: Accuracies, 0 to 1, for what they cost.
        reference: The row that differences refer to.
        command: What to type to make the report again.
        titles: Of rows and columns, by their raw names.
        spread: What stands behind a mean: the standard deviation, or half the 95 % interval.
        setting: What all runs share, in words.
        time: What the runs' times are called (results/series.py).
    """

    at_s: float
    last: int
    targets: tuple[float, ...]
    reference: str | None
    command: str
    titles: Mapping[str, str] = field(default_factory=dict)
    spread: Spread = "sd"
    setting: str = ""
    time: str = TIMES["virtual"]

    def title(self, name: str) -> str:
        """Return what is shown of a row or column."""
        return self.titles.get(name, name)

    @property
    def when(self) -> str:
        """In words."""
        return f"mean of the last {self.last} evaluations at or before T = {self.at_s:g} s"

    @property
    def seconds(self) -> str:
        """The head of a column of the runs' times."""
        return SECONDS.get(self.time, "s")


def cost_table(runs: Sequence[Run], scale: Scale) -> Table | None:
    """Tabulate time, bytes and client-steps to the targets; None without targets."""
    if not scale.targets:
        return None
    columns = columns_of(runs)
    heads = [*["condition"] * (len(columns) > 1), "method", "n"]
    steps = resolutions(runs)
    heads += [f"{unit} to {100 * t:g} %" for t in scale.targets for unit, _ in COSTS.values()]
    rows, records = [], []
    for column in columns:
        for row in rows_of(select_column(runs, column)):
            cells = select_runs(runs, row, column)
            costs = [
                (t, cost, _median([run.cost_to(cost, t, scale.last) for run in cells]))
                for t in scale.targets
                for cost in COSTS
            ]
            names = [*[scale.title(column)] * (len(columns) > 1), scale.title(row)]
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
            "reaches the target; a seed that does not reach it counts as infinite, one whose run "
            f"failed is not counted (n). s: seconds of {scale.time}; MB: 10^6 bytes on the "
            "server's links, both directions; steps: local SGD steps of the updates merged by "
            "then.",
            resolution_note(steps, scale),
        ],
        num_seeds=seeds_of(runs),
        command=scale.command,
        records=records,
    )


def select_column(runs: Sequence[Run], column: str) -> list[Run]:
    """Return the runs of one condition."""
    return [run for run in runs if run.column == column]


def resolutions(runs: Sequence[Run]) -> dict[float, list[str]]:
    """Return the rows by the longest time between two evaluations in any of their runs."""
    steps: dict[float, list[str]] = {}
    for row in rows_of(runs):
        known = [run.resolution_s for run in select_runs(runs, row)]
        if known := [step_s for step_s in known if math.isfinite(step_s)]:
            steps.setdefault(round(max(known), 6), []).append(row)
    return dict(sorted(steps.items()))


def resolution_note(steps: Mapping[float, Sequence[str]], scale: Scale) -> str:
    """Describe how well times to an accuracy are known."""
    if len(steps) == 1:
        step_s = next(iter(steps))
        return f"Evaluated every {step_s:g} s in every run: times are {_lateness(scale.last)}."
    named = "; ".join(
        f"{step_s:g} s {', '.join(map(scale.title, rows))}" for step_s, rows in steps.items()
    )
    return (
        "NOT COMPARABLE below these steps, since the runs were not evaluated at equal times "
        f"(eval.every_s): times are {_lateness(scale.last)}: {named or 'unknown'}."
    )


def _lateness(last: int) -> str:
    """Describe by how much a moving mean may show an accuracy too late."""
    return "at most that much too late" if last == 1 else f"at most {last} times that too late"


def _median(values: Sequence[float]) -> float:
    return float(medians(np.array(values))) if values else math.nan


def _cost(cost: str, value: float) -> str:
    if math.isinf(value):
        return "not reached"
    if not math.isfinite(value):
        return "-"
    amount = value * COSTS[cost][1]
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def seeds_of(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    return f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "0"
