"""The picture of the feasibility study: growth rate against accuracy, one line a density.

Shapes: I accuracy intervals, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedgmr_hpc.experiments.feasibility import WINDOW, Growth, Series, centred_mean
from fedgmr_hpc.reporting.curves import band
from fedgmr_hpc.reporting.figures import label, legend_below, new_figure, shades, styled
from fedgmr_hpc.results.series import Values


@styled
def plot_feasibility(growth: Growth, series: Sequence[Series]) -> Figure:
    """Draw accuracy over virtual time, and g over accuracy with each interval's optimum marked."""
    figure, (courses, rates) = new_figure(2, size=(12, 5.2))
    colours = shades(len(growth.densities))[::-1]
    for density, shade in zip(growth.densities, colours, strict=True):
        _plot_course(courses, [s for s in series if s.density == density], shade)
    for index, shade in enumerate(colours):
        _plot_rates(rates, growth, index, shade)
    _mark_optima(rates, growth)
    label(courses, "virtual time (s)", "test accuracy (%)", "Accuracy, mean and range over seeds")
    label(rates, "test accuracy (%)", "g (points per 100 s, log scale)", "Growth rate")
    rates.set_yscale("log")
    _scale_accuracy(rates, growth)
    legend_below(figure)
    return figure


def _plot_course(axes: Axes, runs: Sequence[Series], shade: object) -> None:
    smooth = [100 * centred_mean(run.accuracy, WINDOW) for run in runs]
    grid, mean, low, high = band([run.times_s for run in runs], smooth, is_step=False)
    axes.plot(grid, mean, color=shade)
    axes.fill_between(grid, low, high, color=shade, alpha=0.15, linewidth=0)


def _plot_rates(axes: Axes, growth: Growth, index: int, shade: object) -> None:
    means = 1e4 * growth.rates[index].mean(axis=0)
    means[means == 0] = np.nan
    name = f"density {growth.densities[index]:g}"
    axes.plot(100 * growth.middles, means, "o-", color=shade, markersize=4, label=name)


def _mark_optima(axes: Axes, growth: Growth) -> None:
    best = 1e4 * growth.rates.mean(axis=1).max(axis=0)
    middles = 100 * growth.middles
    known = best > 0
    axes.plot(middles[known], best[known], "o", color="none", markeredgecolor="black",
              markersize=10, label="optimum")  # fmt: skip


def _scale_accuracy(axes: Axes, growth: Growth) -> None:
    """Scale the axis as -ln(a - accuracy): as wide as what is left to the best accuracy."""
    end = 100 * growth.end

    def forward(accuracy: Values) -> Values:
        stretched: Values = -np.log(np.maximum(end - np.asarray(accuracy), 1e-3))
        return stretched

    def inverse(x: Values) -> Values:
        accuracy: Values = end - np.exp(-np.asarray(x))
        return accuracy

    axes.set_xscale("function", functions=(forward, inverse))
    axes.set_xlim(100 * growth.edges[0], 100 * growth.edges[-1])
    axes.set_xticks(100 * growth.edges, [f"{100 * edge:.1f}" for edge in growth.edges], rotation=45)
