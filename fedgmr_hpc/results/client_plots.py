"""The figures of what the clients hold: their densities, and what their sub-models are worth.

Accuracies are in percent. Shapes: N merges, C clients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, to_hex
from matplotlib.figure import Figure

from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.reporting.curves import Curve, draw_curves, scale_accuracy, scale_cost
from fedgmr_hpc.reporting.figures import (
    fit_lines,
    key,
    legend_below,
    method_key,
    new_panels,
    shades,
)
from fedgmr_hpc.reporting.palette import MARKERS, Style
from fedgmr_hpc.reporting.words import count_of
from fedgmr_hpc.results.labels import Rows, score_of
from fedgmr_hpc.results.series import Run, Values, end_s, measure_run, time_name
from fedgmr_hpc.storage.reader import Result

MAX_STEPS = 8  # densities with a colour each; more have a scale of colours
WHOLE = Style("#000000", "", (), 1.4)


def draw_clients(result: Result) -> Figure:
    """Draw the density of every client over time: a row a client, those of the greatest share of
    bandwidth at the top.
    """
    figure, ((axes,),) = new_panels(1)
    shares = _shares(result)
    order = np.argsort(-shares, kind="stable")
    times, densities = result.merges["now_s"], result.merges["density"][:, order].T
    edges = np.concatenate([[0.0], times[1:], [end_s(result, "now_s")]])
    norm, colours = _colours(densities)
    mesh = axes.pcolormesh(edges, np.arange(len(order) + 1), densities, norm=norm, cmap=colours,
                           rasterized=True)  # fmt: skip
    _name_clients(axes, shares[order])
    scale_cost(axes, [edges], f"{time_name(result.config)} (s)")
    axes.set_xlim(0, edges[-1])
    _add_bar(figure, axes, mesh, densities, shares)
    return figure


def _shares(result: Result) -> Values:
    """Return [C] shares of bandwidth; of a file that lacks them, the first densities."""
    first: Values = result.merges["density"][0]
    clients = result.config.get("clients")
    if clients is None:
        return first
    shares = make_config({"clients": clients}).clients.bandwidth_shares()
    return np.array(shares) if len(shares) == len(first) else first


def _colours(densities: Values) -> tuple[Any, Any]:
    """Return the scale of colours: a colour a step where there are few, dark for small ones."""
    steps = np.unique(densities)
    if len(steps) > MAX_STEPS:
        return LogNorm(steps[0], steps[-1]), "viridis"
    return BoundaryNorm(_bounds(steps), len(steps)), ListedColormap(shades(len(steps)))


def _bounds(steps: Values) -> Values:
    """Return where the colours of densities change."""
    middles = np.sqrt(steps[1:] * steps[:-1])
    return np.concatenate([[steps[0] / 2], middles, [steps[-1] * 2]])


def _add_bar(figure: Figure, axes: Axes, mesh: QuadMesh, densities: Values, shares: Values) -> None:
    """Add what the colours mean: every step that is drawn, or the rungs of the ladder."""
    steps = np.unique(densities)
    bar = figure.colorbar(mesh, ax=axes, label="density of the client's sub-model")
    if len(steps) > MAX_STEPS:
        ticks = steps = np.unique(shares)
    else:
        ticks = (_bounds(steps)[1:] + _bounds(steps)[:-1]) / 2
    bar.set_ticks(ticks.tolist(), labels=[f"{step:.3g}" for step in steps])
    bar.ax.minorticks_off()


def _name_clients(axes: Axes, shares: Values) -> None:
    """Name each class of clients at its middle, from the top on, and part it from the next."""
    levels, starts, numbers = np.unique(-shares, return_index=True, return_counts=True)
    names = [f"{-level:g} ({number})" for level, number in zip(levels, numbers, strict=True)]
    axes.set(ylim=(len(shares), 0), ylabel="share of bandwidth (number of clients)")
    axes.set_yticks(starts + numbers / 2, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    for start in starts[1:]:
        axes.axhline(start, color="white")


def draw_classes(result: Result) -> Figure:
    """Draw the accuracy of the sub-models of each class of clients over time, dark where they are
    small, and that of the whole model.
    """
    curves: dict[str, Curve] = {}
    styles: dict[str, Style] = {}
    run, rows = measure_run(result, ""), result.submodels
    for place, (density, values) in enumerate(run.classes.items()):
        clients = count_of(int(rows["num_clients"][rows["density"] == density][0]), "client")
        name, is_cut = f"density {density:g} ({clients})", np.isfinite(values)
        curves[name] = Curve([run.times_s[is_cut]], [100 * values[is_cut]])
        colour = to_hex(shades(len(run.classes))[place])
        styles[name] = Style(colour, MARKERS[place % len(MARKERS)])
    curves["whole model"] = Curve([run.times_s], [100 * run.test])
    styles["whole model"] = WHOLE
    figure, ((axes,),) = new_panels(1)
    draw_curves(axes, curves, styles)
    scale_cost(axes, [x for curve in curves.values() for x in curve.xs], f"{run.time} (s)")
    drawn = [y for curve in curves.values() for y in curve.ys]
    scale_accuracy(axes, drawn, "test accuracy of sub-models")
    keys = [method_key(styles[name], name) for name in reversed(curves)]
    legend_below(figure, keys)
    return figure


def with_submodels(runs: Sequence[Run], rows: Rows) -> list[Run]:
    """Return the runs whose sub-models were scored until they are compared."""
    return [
        run
        for run in runs
        if run.row in rows.order
        and run.classes
        and math.isfinite(score_of(run, run.own_mean, rows.at_s, rows.last))
    ]


def draw_submodels(shown: Sequence[Run], rows: Rows) -> Figure:
    """Draw, for every row, the accuracy of the sub-model of each class of clients beside that of
    the whole model, at the comparison time or at the end: means over seeds.

    Args:
        shown: runs, at least one, as `with_submodels` returns them.
    """
    columns = list(dict.fromkeys(run.column for run in shown))
    order = [row for row in rows.order if any(run.row == row for run in shown)]
    densities = sorted({density for run in shown for density in run.classes})
    colours = dict(zip(densities, shades(len(densities)), strict=True))
    figure, grid = new_panels(len(columns))
    fit_lines(figure, len(order), len(grid))
    panels = dict(zip(columns, (axes for row in grid for axes in row), strict=True))
    drawn = []
    for column, axes in panels.items():
        for place, row in enumerate(order):
            same = [run for run in shown if (run.row, run.column) == (row, column)]
            drawn += _draw_dots(axes, place, same, rows, colours) if same else []
    for column, axes in panels.items():
        scale_accuracy(axes, [np.array(drawn)], "test accuracy", along="x")
        axes.set(title=column if len(columns) > 1 else "", ylim=(len(order) - 0.5, -0.5))
        axes.set_yticks(range(len(order)), [rows.name(row) for row in order])
        axes.grid(axis="y", visible=False)
    keys = [key(colours[each], f"own density {each:g}", "", marker="o") for each in densities]
    numbers = sorted(Counter((run.row, run.column) for run in shown).values())
    several = f"{numbers[0]} to {numbers[-1]}" if numbers[0] < numbers[-1] else f"{numbers[0]}"
    note = f"means over {several} seeds" if numbers[-1] > 1 else ""
    legend_below(figure, [key("0.2", "whole model", "", **_bar()), *keys], note)
    return figure


def _bar() -> dict[str, Any]:
    """Return the mark of whole models, which stands out above and below a dot."""
    size = matplotlib.rcParams["lines.markersize"]
    return {"marker": "|", "markersize": 2.2 * size, "markeredgewidth": 0.35 * size}


def _draw_dots(
    axes: Axes, place: int, runs: Sequence[Run], rows: Rows, colours: Mapping[float, Any]
) -> list[float]:
    """Draw a line of dots; return the accuracies drawn."""

    def mean(values: Sequence[Values]) -> float:
        scores = [
            score_of(run, v, rows.at_s, rows.last) for run, v in zip(runs, values, strict=True)
        ]
        return 100 * float(np.mean(scores))

    whole = mean([run.test for run in runs])
    own = {
        density: mean([run.classes[density] for run in runs])
        for density in colours
        if all(density in run.classes for run in runs)
    }
    axes.plot([min(own.values()), max([whole, *own.values()])], [place] * 2, color="0.85", zorder=1)
    axes.plot([whole], [place], color="0.2", **_bar())
    for density, accuracy in own.items():
        axes.plot([accuracy], [place], "o", color=colours[density])
    return [whole, *own.values()]
