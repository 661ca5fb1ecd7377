"""The figures of runs: accuracy against what it costs, density, and the clients' own sub-models.

Rows are what is compared: methods, or runs of one that differ. The runs of a row in one condition
differ by their seeds alone and are one curve.

Accuracies are in percent.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedgmr_hpc.reporting.curves import (
    Curve,
    describe_band,
    draw_curves,
    scale_accuracy,
    scale_cost,
)
from fedgmr_hpc.reporting.figures import (
    file_name,
    key,
    legend_below,
    method_key,
    new_panels,
    save,
    style_of,
)
from fedgmr_hpc.reporting.palette import LINES, Style
from fedgmr_hpc.results.client_plots import (
    draw_classes,
    draw_clients,
    draw_submodels,
    with_submodels,
)
from fedgmr_hpc.results.labels import Rows, names_of
from fedgmr_hpc.results.series import Run, common_time, measure_run
from fedgmr_hpc.storage.reader import Result

GREY = "#777777"
NARROW = 20  # characters of a line below one of several panels
VALIDATION = "validation accuracy"
UNITS = {"bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")), "client_steps": ((1e6, "million "),)}


@dataclass(frozen=True)
class Course:
    """What is drawn against what: names of fields of Run, and what the axes are called."""

    name: str
    title: str
    x: str
    y: str
    x_label: str  # with places for the {unit} that fits, and for {time}
    y_label: str

    @property
    def is_step(self) -> bool:
        """Whether a value holds until the next one."""
        return self.y == "densities"


DENSITY = Course("density_vs_time", "Mean density over time", "density_times_s",
                 "densities", "{time} (s)", "mean density of the clients")  # fmt: skip
COURSES = (
    Course("accuracy_vs_time", "Test accuracy over time",
           "times_s", "test", "{time} (s)", "test accuracy"),
    Course("accuracy_vs_bytes", "Test accuracy over traffic",
           "bytes", "test", "server's traffic, both ways ({unit})", "test accuracy"),
    Course("accuracy_vs_steps", "Test accuracy over the clients' local steps",
           "client_steps", "test", "{unit}local steps of all clients", "test accuracy"),
    DENSITY,
)  # fmt: skip


def draw_course(runs: Sequence[Run], course: Course, rows: Rows) -> Figure:
    """Draw a panel a condition and a curve a row: mean and range over seeds."""
    if course.is_step:
        rows = with_fixed_together(runs, rows)
    per_x, unit = _unit(runs, course)
    x_label = course.x_label.format(unit=unit, time=common_time(run.time for run in runs))
    panels = _curves(runs, course, rows, per_x)
    curves = [curve for panel in panels.values() for curve in panel.values()]
    figure, grid = new_panels(len(panels))
    at_s = rows.at_s if course.x.endswith("times_s") else None
    styles = {**rows.styles, VALIDATION: Style(GREY, "", LINES[1], 0.8)}
    for axes, (column, panel) in zip((a for row in grid for a in row), panels.items(), strict=True):
        draw_curves(axes, panel, styles)
        scale_cost(axes, [x for curve in curves for x in curve.xs], x_label)
        if len(panels) > 1:
            axes.set_xlabel(textwrap.fill(axes.get_xlabel(), NARROW))
        axes.set_title(column if len(panels) > 1 else "")
        if at_s is not None:
            axes.axvline(at_s, color="0.4", linestyle=":")
    _scale_up(grid, course, curves)
    shown = dict.fromkeys(row for panel in panels.values() for row in panel)
    keys = [method_key(styles[row], rows.name(row)) for row in shown]
    if at_s is not None:
        keys.append(key("0.4", f"compared at T = {at_s:,g} s", ":"))
    legend_below(figure, keys, describe_band(curves))
    return figure


def _unit(runs: Sequence[Run], course: Course) -> tuple[float, str]:
    """Return the unit of what is spent, and its name."""
    most = max((float(x[-1]) for run in runs if len(x := getattr(run, course.x))), default=0.0)
    fitting = [unit for unit in UNITS.get(course.x, ()) if most >= 2 * unit[0]]
    return fitting[0] if fitting else (1e6, "MB") if course.x == "bytes" else (1.0, "")


def _curves(
    runs: Sequence[Run], course: Course, rows: Rows, per_x: float
) -> dict[str, dict[str, Curve]]:
    """Return curves by condition and row; a run alone has its validation accuracy, too."""
    factor = 1.0 if course.is_step else 100.0
    shown = [run for run in runs if run.row in rows.order]
    panels: dict[str, dict[str, Curve]] = {}
    for column in dict.fromkeys(run.column for run in shown):
        for row in rows.order:
            same = [run for run in shown if (run.row, run.column) == (row, column)]
            xs = [getattr(run, course.x) / per_x for run in same]
            ys = [factor * getattr(run, course.y) for run in same]
            if same:
                panels.setdefault(column, {})[row] = Curve(xs, ys, course.is_step)
    if len(shown) == 1 and course.y == "test":
        (run,) = shown
        known = np.isfinite(run.val)
        curve = Curve([getattr(run, course.x)[known] / per_x], [100 * run.val[known]])
        panels[run.column][VALIDATION] = curve
    return panels


def with_fixed_together(runs: Sequence[Run], rows: Rows) -> Rows:
    """Return rows of which those that hold the same densities at all times are one line."""
    alike: dict[frozenset[tuple[str, float]], list[str]] = {}
    for row in rows.order:
        of_row = [run for run in runs if run.row == row and len(run.densities)]
        held = frozenset((run.column, each) for run in of_row for each in set(run.densities))
        if of_row and len(held) == len({run.column for run in of_row}):
            alike.setdefault(held, []).append(row)
    groups = [(held, same) for held, same in alike.items() if len(same) > 1]
    names, styles = dict(rows.names), dict(rows.styles)
    for place, (held, same) in enumerate(groups):
        values = {f"{density:.3g}" for _, density in held}
        held_at = f"{values.pop()} throughout" if len(values) == 1 else "as at first"
        names[same[0]] = f"{held_at}: {', '.join(map(rows.name, same))}"
        styles[same[0]] = Style(GREY, "", LINES[place % len(LINES)])
    left_out = {row for _, same in groups for row in same[1:]}
    order = [row for row in rows.order if row not in left_out]
    return replace(rows, order=order, names=names, styles=styles)


def _scale_up(grid: Sequence[Sequence[Axes]], course: Course, curves: Sequence[Curve]) -> None:
    """Scale the axis upwards, which all panels share, and label the outermost alone."""
    first = grid[0][0]
    if course.is_step:
        first.set(ylim=(0, 1.04), ylabel=course.y_label)
    else:
        scale_accuracy(first, [y for curve in curves for y in curve.ys], course.y_label)
    for row in grid:
        row[0].set_ylabel(first.get_ylabel())
    for above, below in zip(grid, grid[1:], strict=False):
        for axes in above[: len(below)]:
            axes.set_xlabel("")


def write_figures(
    results: Sequence[Result], folder: Path, formats: Sequence[str], sizes: Sequence[str]
) -> list[Path]:
    """Draw all figures of runs; return their paths.

    Args:
        formats: of the files: `png`, `pdf`, `svg`.
        sizes: what they are for: `page`, `slide`, `column`.

    Raises:
        OSError: `folder` cannot be written.
    """
    runs = runs_of(results)
    suffixes = [f".{form}" for form in formats]
    paths = []
    for size in sizes:
        with style_of(size):
            for stem, figure in _figures(results, runs):
                path = folder / file_name(stem, size)
                save(figure, *(path.with_suffix(suffix) for suffix in suffixes))
                paths += [path.with_suffix(suffix) for suffix in suffixes]
    return paths


def _figures(results: Sequence[Result], runs: Sequence[Run]) -> Iterator[tuple[str, Figure]]:
    """Yield each figure that has something to show, with the stem of its file."""
    rows = Rows.of(runs)
    for course in COURSES:
        if any(len(getattr(run, course.x)) for run in runs):
            yield course.name, draw_course(runs, course, rows)
    if len(results) == 1 and len(results[0].merges["version"]):
        yield "client_densities", draw_clients(results[0])
    if len(results) == 1 and len(results[0].submodels["version"]):
        yield "submodels_vs_time", draw_classes(results[0])
    if shown := with_submodels(runs, rows):
        yield "submodels", draw_submodels(shown, rows)


def runs_of(results: Sequence[Result]) -> list[Run]:
    """Return what is measured in runs, each called by what tells it from the others."""
    names = names_of(results)
    return [measure_run(result, name) for result, name in zip(results, names, strict=True)]


def draw_run(result: Result, what: str) -> Figure:
    """Draw one run.

    Args:
        what: `accuracy`, `density`, or `submodels` where they were scored.
    """
    with style_of("page"):
        if what == "accuracy":
            runs = runs_of([result])
            return draw_course(runs, COURSES[0], Rows.of(runs))
        return draw_clients(result) if what == "density" else draw_classes(result)
