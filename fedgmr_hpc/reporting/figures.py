"""One style for every figure: colours that all readers tell apart, labels with units, no clutter.

@styled
def plot_rates(ranks, rates):
    figure, (axes,) = new_figure(1)
    axes.plot(ranks, rates, label="measured")
    label(axes, "ranks", "rounds per second", "Rate")
    legend_below(figure)
    return figure
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedgmr_hpc.reporting.palette import COLOURS

PANEL_SIZE = (5.4, 4.4)  # inches
SMALL = 9.0  # points, of numbers inside a figure

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "grid.alpha": 0.3,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
styled = matplotlib.rc_context(STYLE)  # type: ignore[arg-type]  # decorates what draws a figure


def new_figure(
    across: int, down: int = 1, size: tuple[float, float] | None = None, **panels: Any
) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels, row by row.

    Args:
        across: panels in a row.
        down: rows.
        size: width and height in inches; by default PANEL_SIZE for each panel.
        panels: what else `Figure.subplots` takes.
    """
    width, height = size or (PANEL_SIZE[0] * across, PANEL_SIZE[1] * down)
    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(down, across, squeeze=False, **panels).flat)


def label(axes: Axes, x: str, y: str = "", title: str = "") -> None:
    """Name the axes, with their units, and the panel."""
    axes.set(xlabel=x, title=title)
    if y:
        axes.set_ylabel(y)


def legend_below(figure: Figure, handles: Sequence[Artist] = (), columns: int = 4) -> None:
    """Put one legend below all panels: of `handles`, or of everything that has a label."""
    keys = {"handles": list(handles)} if handles else {}
    figure.legend(loc="outside lower center", ncols=columns, **keys)


def key(colour: Any, text: str, line: Any = "-", width: float = 2.2) -> Line2D:
    """Make a line of a legend."""
    return Line2D([], [], color=colour, linestyle=line, linewidth=width, label=text)


def colours_of(number: int) -> list[Any]:
    """Return colours that differ: the named ones, or steps of a map where these are too few."""
    return list(COLOURS[:number]) if number <= len(COLOURS) else shades(number)


def shades(number: int) -> list[Any]:
    """Return colours from dark to light, for values that have an order."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, number)))


def shade_of(frac: float) -> Any:
    """Return the shade at `frac` of the way from dark to light."""
    return matplotlib.colormaps["viridis"](0.9 * frac)


def save(figure: Figure, path: Path, *suffixes: str) -> Path:
    """Write a figure as PNG at `path`, and with other suffixes beside it, such as `.pdf`.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for each in (path, *(path.with_suffix(suffix) for suffix in suffixes)):
        figure.savefig(each)
    return path
