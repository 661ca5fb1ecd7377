"""What a study measures in one run: series over its evaluations, as plain arrays.

Where a run has looks at equal times (`eval.every_s`), these are its evaluations, and those of its
refreshes count for the release's own number alone.

Shapes: E evaluations with a test accuracy, F of them at refreshes, N densities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedgmr_hpc.reporting.statistics import cost_to_reach, mean_last
from fedgmr_hpc.results.series import Values, mean_density, own_accuracies, scored
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.study.cells import Cell


@dataclass(frozen=True)
class Run:
    """One finished cell. Accuracies are 0 to 1; bytes and client-steps are since the start."""

    row: str
    column: str
    seed: int
    name: str
    times_s: Values  # [E] virtual
    test: Values  # [E]
    val: Values  # [E]
    own_mean: Values  # [E] of the clients' own sub-models on the test set; NaN where not scored
    own_worst: Values  # [E] of the class of clients that has the least
    bytes: Values  # [E] server's links, both directions
    client_steps: Values  # [E] local steps behind the updates delivered so far
    density_times_s: Values  # [N] virtual
    densities: Values  # [N] means over the clients
    refresh_times_s: Values  # [F] virtual, of the refreshes alone
    refresh_test: Values  # [F]
    labels: dict[str, object]

    @property
    def resolution_s(self) -> float:
        """Longest time between two evaluations: how much later than it happened anything is seen;
        NaN for fewer than two.
        """
        return float(np.diff(self.times_s).max()) if len(self.times_s) > 1 else np.nan

    def accuracy_at(self, at_s: float, last: int, of: str = "test") -> float:
        """Return the test accuracy at `at_s`, or that of another field.

        It is NaN where the run ended more than an evaluation before.
        """
        values = getattr(self, of)
        return mean_last(self.times_s, values, at_s, last) if self.covers(at_s) else np.nan

    def validation_at(self, at_s: float, last: int) -> float:
        """Return the validation accuracy at `at_s`, as `accuracy_at` does."""
        return self.accuracy_at(at_s, last, "val")

    def covers(self, at_s: float) -> bool:
        """Return whether the next evaluation would have come after `at_s`."""
        return len(self.times_s) > 1 and bool(self.times_s[-1] + self.resolution_s >= at_s)

    def cost_to(self, cost: str, target: float, last: int) -> float:
        """Return `times_s`, `bytes` or `client_steps` until `target`; infinite if never."""
        return cost_to_reach(self.test, getattr(self, cost), target, last)


def measure(cell: Cell, result: Result) -> Run:
    """Return the series of a cell's result."""
    evaluations, merges = scored(result), result.merges
    known = np.isfinite(evaluations["test_accuracy"])
    refreshes = result.evaluations
    is_tested = np.isfinite(refreshes["test_accuracy"])
    versions = evaluations["version"][known]
    num_merged = np.searchsorted(merges["version"], versions, side="right")
    moved = merges["server_up_bytes"] + merges["server_down_bytes"]
    times, densities = mean_density(result)
    own_mean, own_worst = own_accuracies(result, versions)
    return Run(
        row=cell.row,
        column=cell.column,
        seed=cell.seed,
        name=cell.name,
        times_s=evaluations["now_s"][known],
        test=evaluations["test_accuracy"][known],
        val=evaluations["val_accuracy"][known],
        own_mean=own_mean,
        own_worst=own_worst,
        bytes=np.concatenate([[0], moved])[num_merged],
        client_steps=_client_steps(result, evaluations["now_s"][known]),
        density_times_s=times,
        densities=densities,
        refresh_times_s=refreshes["now_s"][is_tested],
        refresh_test=refreshes["test_accuracy"][is_tested],
        labels=dict(cell.labels),
    )


def _client_steps(result: Result, times_s: Values) -> Values:
    """Return local steps of the updates that had arrived at each time: samples over the batch."""
    batch = int(result.config["train"]["batch"])
    order = np.argsort(result.updates["now_s"], kind="stable")
    steps = np.cumsum(result.updates["num_samples"][order] / batch)
    arrived = np.searchsorted(result.updates["now_s"][order], times_s, side="right")
    return np.concatenate([[0.0], steps])[arrived]


def rows_of(runs: Sequence[Run]) -> list[str]:
    """Return the rows, in order of appearance."""
    return list(dict.fromkeys(run.row for run in runs))


def columns_of(runs: Sequence[Run]) -> list[str]:
    """Return the columns, in order of appearance."""
    return list(dict.fromkeys(run.column for run in runs))


def select_runs(runs: Sequence[Run], row: str, column: str | None = None) -> list[Run]:
    """Return the runs of a row, in one column or in all."""
    return [run for run in runs if run.row == row and column in (None, run.column)]


def pairs(runs: Sequence[Run], a: str, b: str) -> list[tuple[Run, Run]]:
    """Run of rows `a` and `b` with the same column and seed."""
    second = {(run.column, run.seed): run for run in select_runs(runs, b)}
    return [
        (run, second[run.column, run.seed])
        for run in select_runs(runs, a)
        if (run.column, run.seed) in second
    ]
