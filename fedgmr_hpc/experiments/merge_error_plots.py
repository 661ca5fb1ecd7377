"""The pictures of `probe error`: error against mean density, and what changing masks add."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fedgmr_hpc.experiments.merge_error_tables import (
    LAWS,
    ErrorRow,
    MismatchRow,
    density_and_error,
    fit_power,
)
from fedgmr_hpc.reporting.figures import SMALL, label, new_figure, styled
from fedgmr_hpc.reporting.palette import COLOURS, MARKERS

TITLES = {"mask_aware": "mask-aware (MA)", "gradient": "gradient (GA)", "average": "average (FA)"}


@styled
def plot_errors(rows: Sequence[ErrorRow]) -> Figure:
    """Draw every measured e, by training rounds, and the fitted power laws, a panel a rule."""
    rules = list(dict.fromkeys(row.rule for row in rows))
    figure, panels = new_figure(len(rules), size=(4.4 * len(rules), 4.6))
    for axes, rule in zip(panels, rules, strict=True):
        own = [row for row in rows if row.rule == rule]
        _plot_points(axes, [row for row in own if row.error > 0])
        _plot_laws(axes, own)
        axes.set_xscale("log")
        _scale_errors(axes)
        label(axes, "mean density", title=TITLES.get(rule, rule))
        axes.set_xticks([0.05, 0.1, 0.2, 0.5, 1], ["0.05", "0.1", "0.2", "0.5", "1"])
        axes.legend(fontsize=8, loc="lower left", frameon=True)
    panels[0].set_ylabel("error e (share of the full merge's change)")
    return figure


def _plot_points(axes: Axes, rows: Sequence[ErrorRow]) -> None:
    for index, round_ in enumerate(sorted({row.round for row in rows})):
        for is_uniform, name in ((True, "same density"), (False, "levels, raised")):
            found = [
                density_and_error(row)
                for row in rows
                if row.round == round_ and row.assignment.startswith("uniform") == is_uniform
            ]
            if found:
                x, y = zip(*found, strict=True)
                axes.plot(x, y, MARKERS[index % len(MARKERS)], color=COLOURS[1 + is_uniform],
                          markersize=4.5, alpha=0.65, label=f"{name}, round {round_}")  # fmt: skip


def _plot_laws(axes: Axes, rows: Sequence[ErrorRow]) -> None:
    """Draw the fitted powers of the mean density p, and of what is missing of it."""
    largest = max(row.mean_density for row in rows if row.error > 0)
    grid = np.geomspace(min(row.mean_density for row in rows), largest, 80)
    for (name, pair), style in zip(LAWS.items(), ("-", "--"), strict=True):
        scale, power, fit = fit_power(*zip(*map(pair, rows), strict=True))
        law = f"{scale:.2g} ({name})^{power:.2f}, R2 {fit:.2f}"
        x = grid if name == "p" else 1 - grid
        axes.plot(grid, scale * x**power, style, color=COLOURS[0], linewidth=1.4, label=law)


def _scale_errors(axes: Axes) -> None:
    """Set a logarithmic axis with plain numbers."""
    axes.set_yscale("log")
    ticks = [mantissa * 10.0**exponent for exponent in range(-4, 5) for mantissa in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


@styled
def plot_mismatches(rows: Sequence[MismatchRow]) -> Figure:
    """Draw added error against the increase of the mean density at one refresh, a panel a rule."""
    rules = list(dict.fromkeys(row.rule for row in rows))
    figure, panels = new_figure(len(rules), size=(4.4 * len(rules), 4.6))
    for axes, rule in zip(panels, rules, strict=True):
        for index, frac in enumerate(sorted({row.in_flight_frac for row in rows})):
            own = [row for row in rows if row.rule == rule and row.in_flight_frac == frac]
            _plot_mismatch(axes, own, index, f"{frac:.0%} of the clients in flight")
        axes.axhline(0, color="grey", linewidth=0.8)
        label(axes, "increase of the mean density at one refresh", title=TITLES.get(rule, rule))
    panels[0].set_ylabel("error added by uploads in flight")
    panels[0].legend(fontsize=SMALL)
    return figure


def _plot_mismatch(axes: Axes, rows: Sequence[MismatchRow], index: int, name: str) -> None:
    """Draw every step of the ladder: mean over models, and its range."""
    steps: dict[tuple[int, int], list[MismatchRow]] = {}
    for row in rows:
        steps.setdefault((row.start_rungs, row.num_rungs), []).append(row)
    found = sorted((own[0].density_increase, [row.extra for row in own]) for own in steps.values())
    x = np.array([increase for increase, _ in found])
    mean = np.array([np.mean(extra) for _, extra in found])
    low, high = (np.array([pick(extra) for _, extra in found]) for pick in (min, max))
    axes.errorbar(x, mean, (mean - low, high - mean), fmt=MARKERS[index], color=COLOURS[1 + index],
                  markersize=4.5, linewidth=0.9, capsize=2, label=name)  # fmt: skip
