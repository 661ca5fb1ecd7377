"""The figures of `report`: accuracy, density and sub-models over time.

Times are virtual, or unscaled on the wall clock. Shapes: N merges, E evaluations, C clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedgmr_hpc.reporting.figures import (
    colours_of,
    key,
    legend_below,
    new_figure,
    shade_of,
    shades,
    styled,
)
from fedgmr_hpc.reporting.words import count_of
from fedgmr_hpc.results.series import end_s, mean_density, scored
from fedgmr_hpc.storage.reader import Result

SIZE = (9.0, 5.5)  # inches
MAX_MARKED = 40  # lines with more points are drawn without markers


@styled
def plot_accuracy(results: Sequence[Result], names: Sequence[str]) -> Figure:
    """Draw test (solid) and validation (dashed) accuracy of the server's model over time."""
    figure, axes, unit_s = _time_axes(results)
    axes.set_ylabel("accuracy (%)")
    colours = colours_of(len(results))
    for colour, result in zip(colours, results, strict=True):
        _plot_column(axes, result, "val_accuracy", unit_s, color=colour, linestyle="--", alpha=0.7)
        marker = "o" if len(scored(result)["version"]) <= MAX_MARKED else ""
        _plot_column(axes, result, "test_accuracy", unit_s, color=colour, marker=marker)
    styles = [key("0.4", "test"), key("0.4", "validation", "--")]
    _finish_plot(figure, [*_run_keys(colours, names), *styles])
    return figure


def _plot_column(axes: Axes, result: Result, name: str, unit_s: float, **style: Any) -> None:
    """Draw the finite values of one accuracy, in percent."""
    evaluations = scored(result)
    known = np.isfinite(evaluations[name])
    times, values = evaluations["now_s"] / unit_s, evaluations[name]
    axes.plot(times[known], 100 * values[known], markersize=4, **style)


@styled
def plot_submodels(results: Sequence[Result], names: Sequence[str]) -> Figure:
    """Draw the accuracy of the server's model cut to the clients' densities.

    One run alone is drawn over time, several at their ends against the density.
    """
    return _plot_classes(results[0]) if len(results) == 1 else _plot_ends(results, names)


def _plot_classes(result: Result) -> Figure:
    """Draw one line a density, dark where it is small."""
    figure, axes, unit_s = _time_axes([result])
    axes.set_ylabel("test accuracy of sub-models (%)")
    rows, keys = result.submodels, []
    densities = np.unique(rows["density"])
    for density, shade in zip(densities, shades(len(densities)), strict=True):
        of_class = rows["density"] == density
        times, values = rows["now_s"][of_class] / unit_s, 100 * rows["test_accuracy"][of_class]
        axes.plot(times, values, color=shade)
        clients = count_of(int(rows["num_clients"][of_class][0]), "client")
        keys.append(key(shade, f"density {density:g} ({clients})"))
    _finish_plot(figure, keys)
    return figure


def _plot_ends(results: Sequence[Result], names: Sequence[str]) -> Figure:
    """Draw one line a run; methods that give everybody the whole model have a point."""
    figure, (axes,) = new_figure(1, size=SIZE)
    colours = colours_of(len(results))
    for colour, result in zip(colours, results, strict=True):
        rows = result.submodels
        last = rows["version"] == rows["version"].max(initial=0)
        values = 100 * rows["test_accuracy"][last]
        axes.plot(rows["density"][last], values, color=colour, marker="o")
    axes.set(xscale="log", xlabel="density of the sub-model")
    axes.set_ylabel("test accuracy of the last version (%)")
    ticks = np.unique(np.concatenate([result.submodels["density"] for result in results]))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    _finish_plot(figure, _run_keys(colours, names))
    return figure


@styled
def plot_density(results: Sequence[Result], names: Sequence[str]) -> Figure:
    """Draw the mean density over time; a run alone shows its clients too."""
    figure, axes, unit_s = _time_axes(results)
    axes.set_ylabel("density (fraction of prunable weights)")
    axes.set_ylim(0, 1.04)
    alone = len(results) == 1
    colours = ["black"] if alone else colours_of(len(results))  # alone, clients have the colours
    for colour, result in zip(colours, results, strict=True):
        if alone:
            _plot_clients(axes, result, unit_s)
        times, means = mean_density(result)
        axes.step(times / unit_s, means, where="post", color=colour, linewidth=2.5, alpha=0.8)
    keys = _run_keys(colours, [f"{name}, mean" for name in names])
    clients = [key(shade_of(0.5), "clients, dark: sparse at the start", width=1.0)] if alone else []
    _finish_plot(figure, [*keys, *clients])
    return figure


def _plot_clients(axes: Axes, result: Result, unit_s: float) -> None:
    """Draw one thin step line a client, darkest for the smallest density at the start."""
    times = result.merges["now_s"] / unit_s
    for density in result.merges["density"].T if len(times) else ():
        shade = shade_of(float(density[0]))
        axes.step(times, density, where="post", color=shade, linewidth=1.0)


def _time_axes(results: Sequence[Result]) -> tuple[Figure, Axes, float]:
    """Make an empty plot over time; return it with the seconds of its time unit."""
    longest_s = max((end_s(result, "now_s") for result in results), default=0.0)
    unit_s, unit = next(
        (seconds, name)
        for seconds, name in ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
        if longest_s >= 5 * seconds or name == "s"
    )
    figure, (axes,) = new_figure(1, size=SIZE)
    clocks = {str(result.config.get("clock", "virtual")) for result in results}
    kind = {"virtual": "virtual time", "wall": "time, unscaled"}
    axes.set_xlabel(f"{kind[clocks.pop()] if len(clocks) == 1 else 'time'} ({unit})")
    return figure, axes, unit_s


def _finish_plot(figure: Figure, keys: Sequence[Line2D]) -> None:
    longest = max(len(str(each.get_label())) for each in keys)
    legend_below(figure, keys, 3 if longest < 35 else 2)


def _run_keys(colours: Sequence[Any], names: Sequence[str]) -> list[Line2D]:
    return [key(colour, name) for colour, name in zip(colours, names, strict=True)]
