"""The figures of a study: one panel a condition, one line a method, mean and range over seeds.

Shapes: G points of a grid, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedgmr_hpc.reporting.figures import key, label, legend_below, new_figure, styled
from fedgmr_hpc.reporting.palette import COLOURS
from fedgmr_hpc.results.series import Values
from fedgmr_hpc.study.measures import Run, columns_of, rows_of, select_runs

STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)))
MAX_LINES = 10
MAX_COLUMNS = 3
NUM_POINTS = 300


@dataclass(frozen=True)
class Course:
    """What is drawn against what: names of fields of Run, and factors to the units shown."""

    name: str
    title: str
    x: str
    y: str
    x_label: str
    y_label: str
    x_factor: float = 1.0
    y_factor: float = 1.0
    is_step: bool = False


COURSES = (
    Course("accuracy_vs_time", "Test accuracy over virtual time", "times_s", "test",
           "virtual time (s)", "test accuracy (%)", y_factor=100.0),
    Course("accuracy_vs_bytes", "Test accuracy over traffic", "bytes", "test",
           "server's traffic, both directions (MB)", "test accuracy (%)", 1e-6, 100.0),
    Course("own_mean_vs_time", "Test accuracy of the clients' own sub-models, mean over clients",
           "times_s", "own_mean", "virtual time (s)", "own sub-models' accuracy (%)",
           y_factor=100.0),
    Course("own_worst_vs_time", "Test accuracy of the clients whose own sub-models have the least",
           "times_s", "own_worst", "virtual time (s)", "worst class's accuracy (%)",
           y_factor=100.0),
    Course("density_vs_time", "Mean density over virtual time", "density_times_s", "densities",
           "virtual time (s)", "mean density (fraction of weights)", is_step=True),
)  # fmt: skip


@styled
def draw(runs: Sequence[Run], course: Course, at_s: float | None = None) -> list[Figure]:
    """Draw one figure for at most MAX_LINES methods, more where there are more.

    Args:
        at_s: the comparison time, drawn as a dotted line over time.
    """
    rows = rows_of(runs)
    styles = {
        row: (COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)])
        for i, row in enumerate(rows)
    }
    parts = [rows[i : i + MAX_LINES] for i in range(0, len(rows), MAX_LINES)]
    mark_s = at_s if course.x.endswith("times_s") else None
    return [_draw_part(runs, course, {row: styles[row] for row in part}, mark_s) for part in parts]


def band(xs: Sequence[Values], ys: Sequence[Values], is_step: bool) -> tuple[Values, ...]:
    """Return grid, mean, minimum and maximum [G] over S series, where all of them have values."""
    grid = np.linspace(max(x[0] for x in xs), min(x[-1] for x in xs), NUM_POINTS)
    read = _held if is_step else np.interp
    rows = np.array([read(grid, x, y) for x, y in zip(xs, ys, strict=True)])
    return grid, rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)


def _held(grid: Values, x: Values, y: Values) -> Values:
    """Return the value that holds at each grid point, from its step on."""
    return y[np.maximum(np.searchsorted(x, grid, side="right") - 1, 0)]


def _draw_part(
    runs: Sequence[Run], course: Course, styles: dict[str, Any], at_s: float | None
) -> Figure:
    columns = columns_of([run for run in runs if run.row in styles])
    across = min(MAX_COLUMNS, len(columns))
    down = -(-len(columns) // across)
    size = (max(6.5, 4.2 * across), 3.4 * down + 1.0)
    figure, panels = new_figure(across, down, size, sharey=True)
    for axes, column in zip(panels, columns, strict=False):
        for row, style in styles.items():
            _draw_line(axes, select_runs(runs, row, column), course, style)
        if at_s is not None:
            axes.axvline(at_s, color="grey", linestyle=":", linewidth=1.2)
        label(axes, course.x_label, title=column if len(columns) > 1 else "")
        axes.set_xlim(left=0)
        if course.is_step:
            axes.set_ylim(0, 1.04)
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    for axes in panels[::across]:
        axes.set_ylabel(course.y_label)
    keys = [key(colour, row, line) for row, (colour, line) in styles.items()]
    legend_below(figure, keys, min(5, len(keys)))
    return figure


def _draw_line(axes: Axes, runs: Sequence[Run], course: Course, style: tuple[str, Any]) -> None:
    """Draw the mean over seeds and, for several seeds, their range."""
    xs = [getattr(run, course.x) * course.x_factor for run in runs]
    ys = [getattr(run, course.y) * course.y_factor for run in runs]
    known = [i for i, x in enumerate(xs) if len(x)]
    if not known:
        return
    grid, mean, low, high = band([xs[i] for i in known], [ys[i] for i in known], course.is_step)
    colour, line = style
    axes.plot(grid, mean, color=colour, linestyle=line)
    if len(known) > 1:
        axes.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
