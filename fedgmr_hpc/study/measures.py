"""What a study measures in one run, and which of its runs belong together."""

from __future__ import annotations

from collections.abc import Sequence

from fedgmr_hpc.results.series import Run, measure_run
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.study.cells import Cell


def measure(cell: Cell, result: Result) -> Run:
    """Return the series of a cell's result."""
    return measure_run(result, row=cell.row, column=cell.column, labels=cell.labels)


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
