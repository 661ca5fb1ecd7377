"""One style for every figure: sizes that are read, labels with units, legends that never clip.

@styled
def plot_rates(ranks, rates):
    figure, (axes,) = new_figure(1)
    axes.plot(ranks, rates, label="measured")
    label(axes, "ranks", "rounds per second", "Rate")
    legend_below(figure)
    return figure

with style_of("slide"):      # or page, as `styled` has it, or column: type, lines and size at once
    figure, rows = new_panels(len(conditions))
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from fedgmr_hpc.reporting.palette import COLOURS, Line, Style

PANEL_SIZE = (5.4, 4.4)  # inches
SMALL = 9.0  # points, of numbers inside a figure
DPI = 200  # of PNG files
PANEL_EMS = 15  # width of a panel, at least
MAX_COLUMNS = 6  # of a legend
COLUMN_EMS = 3.2 + 0.8 + 2.0  # of a legend's column beside its text: line, gap, space
LEGEND_EMS = 1.0  # of the legend's borders
PANELS_FRAC = 0.68  # of a figure's height, at least: a taller legend makes the figure taller
TEXT = {"svg.fonttype": "none", "pdf.fonttype": 42}  # text stays text


class Size(NamedTuple):
    """What a figure is for."""

    inches: tuple[float, float]  # of a figure with one row of panels
    points: float  # of all type
    line: float  # points


SIZES = {
    "page": Size((7.2, 4.4), 10.0, 1.6),
    "slide": Size((13.333, 7.5), 20.0, 3.2),  # 16:9
    "column": Size((3.4, 2.9), 8.0, 1.1),
}


def _style(size: Size) -> dict[str, Any]:
    scale = size.line / SIZES["page"].line
    ticks = {f"{axis}tick.major.{name}": value * scale
             for axis in "xy" for name, value in (("size", 3.5), ("width", 0.8))}  # fmt: skip
    return {
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.labelsize": "medium",
        "axes.linewidth": 0.8 * scale,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "figure.dpi": DPI,
        "figure.figsize": size.inches,
        "font.size": size.points,
        "grid.alpha": 0.3,
        "grid.linewidth": 0.8 * scale,
        "legend.fontsize": "medium",
        "legend.frameon": False,
        "legend.columnspacing": 2.0,
        "legend.handlelength": 3.2,  # long enough for the longest dash and a marker
        "legend.handletextpad": 0.8,
        "lines.linewidth": size.line,
        "lines.markersize": 3.8 * size.line,
        **ticks,
    }


# What draws a figure for a page is decorated with it.
styled = matplotlib.rc_context(_style(SIZES["page"]))  # type: ignore[arg-type]


@contextmanager
def style_of(size: str) -> Iterator[None]:
    """Draw what is drawn meanwhile for a `page`, a `slide` or a `column`."""
    with matplotlib.rc_context(_style(SIZES[size])):  # type: ignore[arg-type]
        yield


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


def new_panels(number: int) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of the style's width; return its rows of panels, all with the same y axis."""
    width, height = matplotlib.rcParams["figure.figsize"]
    across = min(number, max(1, int(width / (PANEL_EMS * matplotlib.rcParams["font.size"] / 72))))
    down = -(-number // across)
    grows = width < 1.7 * height  # a slide stays as high as it is
    figure = Figure(figsize=(width, height * (1 + 0.7 * (down - 1)) if grows else height))
    panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axes in panels[number:]:
        axes.set_axis_off()
    return figure, [panels[i : min(i + across, number)] for i in range(0, number, across)]


def fit_lines(figure: Figure, lines: int, down: int) -> None:
    """Make a figure as high as panels with so many lines of text need, a slide at most that."""
    width, height = figure.get_size_inches()
    needed = down * (2.1 * lines + 6) * matplotlib.rcParams["font.size"] / 72
    figure.set_size_inches(width, needed if width < 1.7 * height or needed > height else height)


def label(axes: Axes, x: str, y: str = "", title: str = "") -> None:
    """Name the axes, with their units, and the panel."""
    axes.set(xlabel=x, title=title)
    if y:
        axes.set_ylabel(y)


def legend_below(figure: Figure, handles: Sequence[Artist] = (), title: str = "") -> None:
    """Put one legend below all panels, in lines that are read from left to right.

    It has as many columns as the figure is wide enough for; where one is too many, names are
    broken. The figure grows where the panels would become too low.

    Args:
        handles: its lines; by default of everything that has a label.
        title: what holds for all lines, such as what a band is.
    """
    handles = list(handles) or [
        handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]
    ]
    width, height = figure.get_size_inches()
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    widths = _text_ems(figure, handles, renderer)
    columns = _num_columns(widths, width / _em_inches())
    if columns == 0:
        columns = 1
        _break_names(handles, widths, width / _em_inches() - LEGEND_EMS - COLUMN_EMS)
    legend = _legend(figure, handles, columns, title)
    high = legend.get_window_extent(renderer).height / figure.dpi + 0.1  # inches
    figure.set_size_inches(width, max(height, high / (1 - PANELS_FRAC)))


def _em_inches() -> float:
    return float(matplotlib.rcParams["font.size"]) / 72


def _text_ems(figure: Figure, handles: Sequence[Artist], renderer: Any) -> list[float]:
    """Return how wide the names of a legend's lines are, in ems."""
    legend = _legend(figure, handles, 1)
    extents = [text.get_window_extent(renderer) for text in legend.get_texts()]
    legend.remove()
    return [extent.width / figure.dpi / _em_inches() for extent in extents]


def _num_columns(widths: Sequence[float], room: float) -> int:
    """Return the least number of columns with the fewest lines that fit into `room` ems; 0 where
    even one is too wide.
    """
    fitting = []
    for columns in range(1, min(MAX_COLUMNS, len(widths)) + 1):
        texts = sum(max(widths[first::columns]) for first in range(columns))
        if texts + columns * COLUMN_EMS + LEGEND_EMS <= room:
            fitting.append((-(-len(widths) // columns), columns))
    return min(fitting)[1] if fitting else 0


def _break_names(handles: Sequence[Artist], widths: Sequence[float], room: float) -> None:
    """Break the names that are wider than `room` ems."""
    for handle, width in zip(handles, widths, strict=True):
        text = str(handle.get_label())
        if width > room:
            handle.set_label("\n".join(textwrap.wrap(text, int(0.93 * len(text) * room / width))))


def _legend(figure: Figure, handles: Sequence[Artist], columns: int, title: str = "") -> Legend:
    """Add a legend whose lines are read across; matplotlib fills it column by column."""
    across = [handles[i] for first in range(columns) for i in range(first, len(handles), columns)]
    keys: dict[str, Any] = {"title": title, "title_fontsize": "medium"} if title else {}
    return figure.legend(handles=across, loc="outside lower center", ncols=columns, **keys)


def key(colour: Any, text: str, line: Any = "-", **keys: Any) -> Line2D:
    """Make a line of a legend."""
    return Line2D([], [], color=colour, linestyle=line, label=text, **keys)


def look(style: Style) -> dict[str, Any]:
    """Return how a method's line is drawn, as `Axes.plot` and `Line2D` take it."""
    width = style.width * matplotlib.rcParams["lines.linewidth"]
    return {
        "color": style.colour,
        "linestyle": dash(style.line),
        "linewidth": width,
        "marker": style.marker,
        "markerfacecolor": "white" if style.is_hollow else style.colour,
        "markeredgecolor": style.colour if style.is_hollow else "white",
        "markeredgewidth": (0.6 if style.is_hollow else 0.2) * width,
        "zorder": 2 + style.width,
    }


def dash(line: Line) -> Any:
    """Return a line as matplotlib has it."""
    return (0, line) if line else "-"


def method_key(style: Style, text: str) -> Line2D:
    """Make the line of a legend that stands for a method."""
    return Line2D([], [], label=text, **look(style))


def shades(number: int) -> list[Any]:
    """Return colours from dark to light, for values that have an order."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, number)))


def file_name(stem: str, size: str) -> str:
    """Return the name, without a suffix, of a figure's file: that for a page has no more to it."""
    return stem if size == "page" else f"{stem}-{size}"


def save(figure: Figure, *paths: Path) -> Path:
    """Write a figure to files, as PNG, PDF or SVG by their suffixes; return the first path.

    Raises:
        OSError: a folder cannot be written.
    """
    with matplotlib.rc_context(TEXT):  # type: ignore[arg-type]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=DPI)
    return paths[0]
