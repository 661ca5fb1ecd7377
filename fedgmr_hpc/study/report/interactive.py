"""The interactive page of a study, beside its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedgmr_hpc.reporting.interactive import PAGE, Chart, write_interactive
from fedgmr_hpc.results.interactive.curves import NOTE, columns, curve
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.report.tables import Scale

Finished = Sequence[tuple[Cell, Result]]


def chart_of(title: str, finished: Finished, scale: Scale) -> Chart:
    """Return the curves of finished cells: a method a row, a condition a column."""
    return Chart(
        title,
        columns([result.config for _, result in finished]),
        [
            curve(result, name=c.name, method=c.row, condition=c.column, seed=c.seed)
            for c, result in finished
        ],
        notes=[NOTE, f"Dotted: the comparison time, {scale.at_s:g} s."],
        titles=scale.titles,
        marks={"time_s": scale.at_s},
        links=[("report.html", "Back to the report")],
    )


def write_page_of_curves(
    title: str, finished: Finished, scale: Scale, folder: Path
) -> tuple[list[tuple[str, str]], list[str]]:
    """Write `interactive.html`; return the link to it, or a line that says why it is missing.

    Raises:
        OSError: `folder` cannot be written.
    """
    try:
        path = write_interactive(chart_of(title, finished, scale), folder / PAGE)
    except ValueError as error:
        return [], [f"No interactive page: {error}"]
    return [(path.name, "Interactive curves: read points, choose axes and methods")], []
