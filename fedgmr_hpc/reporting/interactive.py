"""Interactive pages of curves, which load nothing from the network and work without a server.

    columns = [Column("time_s", "time", "s", "x"), Column("test", "test accuracy", "%", "y")]
    curves = [Curve("a.h5", "fedgmr", "", "1", "finished", {"time_s": [0, 1], "test": [10, 20]})]
    write_interactive(Chart("Runs", columns, curves), folder / "interactive.html")

A viewer chooses the axes and their scales, hides methods, sees every run or the mean over seeds
with their range, and reads a point by pointing at it. The choices stand in the address behind #,
so that they survive a reload and can be passed on.

`write_interactive` writes one file with plotly.js inside, about 5 MB. `LivePage` writes a folder
whose small `runs.js` is written again and again, and which the open page takes in as it stands:

    index.html      the page        plotly.min.js   written once
    runs.js         the curves and the table, at every `update`
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from fedgmr_hpc.reporting import templates
from fedgmr_hpc.reporting.error_scale import LEAST_ERROR, is_spaced_by_error
from fedgmr_hpc.reporting.packages import optional_package
from fedgmr_hpc.reporting.palette import Style, styles_of
from fedgmr_hpc.reporting.tables import Cells, numeric_columns

PAGE = "interactive.html"  # beside a report
MAX_POINTS = 1000  # of a curve; longer ones are thinned evenly
DIGITS = 6  # that count
STAMP = "%Y-%m-%d %H:%M:%S"
LINE_WIDTH = 1.8  # pixels
# Plotly's name of a marker, and its outline around (0, 0) as the legend draws it.
MARKERS = {
    "o": ("circle", "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0"),
    "s": ("square", "M-4,-4h8v8h-8z"),
    "^": ("triangle-up", "M0,-4.6L4.4,3.4H-4.4z"),
    "D": ("diamond", "M0,-5L5,0L0,5L-5,0z"),
    "v": ("triangle-down", "M0,4.6L4.4,-3.4H-4.4z"),
    "P": ("cross", "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"),
    "X": ("x", "M0,-2L2.5,-4.5L4.5,-2.5L2,0L4.5,2.5L2.5,4.5L0,2L-2.5,4.5L-4.5,2.5L-2,0L-4.5,-2.5"
          "L-2.5,-4.5z"),
}  # fmt: skip

_Points = dict[str, list[float | None]]  # by key of a column


@dataclass(frozen=True)
class Column:
    """A variable of the curves.

    Args:
        unit: "" for a number without one.
        axis: where it can be drawn.
        decimals: shown of a value.
        is_step: a value holds until the next.
        is_log: opens on a logarithmic axis.
        is_accuracy: in percent; logarithmic, its distances are ratios of errors, and it opens so
            where a curve is good, as figures do (error_scale.py).
        is_read: stands in what is read off a point.
    """

    key: str
    label: str
    unit: str
    axis: Literal["x", "y"]
    decimals: int = 2
    is_step: bool = False
    is_log: bool = False
    is_accuracy: bool = False
    is_read: bool = True


@dataclass(frozen=True)
class Curve:
    """One run. `values`: by key of a column, all of one length; NaN where nothing is known."""

    name: str
    method: str
    condition: str  # under which methods are compared: one is shown at a time
    seed: str
    state: str
    values: Mapping[str, Sequence[float] | NDArray[Any]]


@dataclass(frozen=True)
class Chart:
    """A page of curves.

    Args:
        columns: the first of each axis is shown first; those that no curve has are left out.
        notes: what a reader has to know.
        titles: what methods and conditions are called where that is not their name.
        marks: by key of a column for x, where a dotted line stands.
        links: addresses beside the page and what they are called.
        shows_runs: whether every run is shown first, rather than means over seeds.
        heads, rows: a table below the curves.
    """

    title: str
    columns: Sequence[Column]
    curves: Sequence[Curve]
    notes: Sequence[str] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[str, float] = field(default_factory=dict)
    links: Sequence[tuple[str, str]] = ()
    shows_runs: bool = False
    heads: Cells = ()
    rows: Sequence[Cells] = ()


def write_interactive(chart: Chart, path: Path) -> Path:
    """Write a page with all that it needs inside; return its path.

    Raises:
        ValueError: plotly is missing.
        OSError: `path` cannot be written.
    """
    script = plotly_script("an interactive page")
    page = {"title": chart.title, "data": in_script(chart_data(chart)), "every_s": 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, templates.render("interactive.html", plotly=script, **page))
    return path


class LivePage:
    """A folder with a page that shows what `update` was given last, without being loaded anew.

    Args:
        folder: is made; what it has of an earlier page is replaced.
        every_s: how often the open page looks.

    Raises:
        ValueError: plotly is missing.
        OSError: `folder` cannot be written.
    """

    def __init__(self, folder: Path, title: str, every_s: float) -> None:
        script = plotly_script("a live page")
        self.path = folder / "index.html"
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "plotly.min.js", script)
        page = {"title": title, "data": "", "every_s": every_s}
        write_whole(self.path, templates.render("interactive.html", plotly="", **page))

    def update(self, chart: Chart, *, goes_on: bool) -> None:
        """Replace what is shown.

        Args:
            goes_on: whether more will come; if not, the page stops looking.

        Raises:
            OSError: the folder cannot be written.
        """
        data = in_script(chart_data(chart) | {"goes_on": goes_on})
        write_whole(self.path.with_name("runs.js"), f"show({data});\n")


def plotly_script(user: str) -> str:
    """Return plotly.js from the package plotly.

    Raises:
        ValueError: it is missing; `user` is what needs it.
    """
    optional_package("plotly", user)
    return str(optional_package("plotly.offline", user).get_plotlyjs())


def write_whole(path: Path, text: str) -> None:
    """Write a file that nobody sees half written.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def in_script(data: Any) -> str:
    """Return data as JavaScript that can stand in an HTML page."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def chart_data(chart: Chart) -> dict[str, Any]:
    """Return what the page's script shows, as JSON has it."""
    curves = [(curve, _values(curve, chart.columns)) for curve in chart.curves]
    known = {key for _, values in curves for key, column in values.items() if any_known(column)}
    columns = [
        {**asdict(c), "is_log": _opens_log(c, curves)} for c in chart.columns if c.key in known
    ]
    styles = styles_of(curve.method for curve in chart.curves)
    return {
        "title": chart.title,
        "notes": list(chart.notes),
        "links": list(chart.links),
        "written": time.strftime(STAMP),
        "written_s": round(time.time()),  # the reader's clock may have another zone
        "goes_on": False,
        "shows_runs": chart.shows_runs,
        "columns": columns,
        "least_error": LEAST_ERROR,
        "marks": dict(chart.marks),
        "titles": dict(chart.titles),
        "methods": [{"name": name, **_look(style)} for name, style in styles.items()],
        "runs": [
            {
                "name": curve.name,
                "method": curve.method,
                "condition": curve.condition,
                "seed": curve.seed,
                "state": curve.state,
                "values": {key: column for key, column in values.items() if any_known(column)},
            }
            for curve, values in curves
        ],
        "heads": list(chart.heads),
        "rows": [list(row) for row in chart.rows],
        "numeric": numeric_columns(len(chart.heads), chart.rows),
    }


def _opens_log(column: Column, curves: Sequence[tuple[Curve, _Points]]) -> bool:
    values = (value for _, points in curves for value in points.get(column.key, ()))
    greatest = max((value for value in values if value is not None), default=math.nan)
    return column.is_log or (column.is_accuracy and is_spaced_by_error(greatest))


def any_known(column: Iterable[float | None]) -> bool:
    """Return whether a column has a value."""
    return any(value is not None for value in column)


def _values(curve: Curve, columns: Sequence[Column]) -> _Points:
    """Return the points that are drawn, by column."""
    values = {c.key: curve.values[c.key] for c in columns if c.key in curve.values}
    picks = _picks(max(map(len, values.values()), default=0))
    return {key: [_number(column[i]) for i in picks] for key, column in values.items()}


def _picks(num_points: int) -> list[int]:
    """Return at most MAX_POINTS indices, evenly spread, the first and the last among them."""
    if num_points <= MAX_POINTS:
        return list(range(num_points))
    step = (num_points - 1) / (MAX_POINTS - 1)
    return [round(i * step) for i in range(MAX_POINTS)]


def _number(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _look(style: Style) -> dict[str, Any]:
    """Return a style in plotly's words, and as its key in the legend is drawn."""
    symbol, outline = MARKERS[style.marker]
    width = LINE_WIDTH * style.width
    dashes = [round(part * width, 2) for part in style.line]
    return {
        "colour": style.colour,
        "symbol": f"{symbol}-open" if style.is_hollow else symbol,
        "outline": outline,
        "fill": "#fff" if style.is_hollow else style.colour,
        "width": round(width, 2),
        "dash": ",".join(f"{part:g}px" for part in dashes) or "solid",
    }
