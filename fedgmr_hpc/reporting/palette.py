"""The look of every method: one colour, marker and line in all figures, drawn or interactive.

    styles = styles_of(["fedgmr", "heterofl", "heterofl+aux", "my_row"])
    styles["heterofl"]      # Style(colour="#009E73", marker="D", line=(), width=1.0)

Two methods differ in colour or line where no markers are drawn, and in marker or line where a
printer has no colours. Styles have places, by the table PLACES: a known row has the same one in
every figure, and other names get the free places in order, so that they depend on the other names
of the call. Whoever draws several figures of the same runs asks once, for all names.

Markers are those of matplotlib: o circle, s square, ^ triangle, D diamond, v triangle that points
down, P plus, X cross. Lines are lengths in line widths: drawn, left out, drawn and so on; none for
a solid line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

Line = tuple[float, ...]

# Okabe and Ito's colours, told apart with any colour vision; yellow is left out on white paper.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = "os^DvPX"
LINES: tuple[Line, ...] = ((), (4.5, 1.8), (6.0, 1.6, 1.2, 1.6), (1.2, 1.4))
STRONG = 1.4  # line widths of the method that all others are compared with

# One colour a column, one line a row. A new row of the method table is put in only if it shall look
# the same everywhere; it must not move another one.
PLACES = (
    *("fedgmr", "fedavg", "wo_gmr", "heterofl", "fedasync", "fedbuff", "fjord"),
    *("fedgmr_two_stage", "fedavgm", "fedprox", "fedrolex", "fedasync_seq", "scaffold", "fiarse"),
    *("fedgmr_timed", "gmr_fa", "wo_ims", "wo_buff", "wo_asyn", "gmr_ga", "wo_buff_ims"),
    *("fedgmr_wg", "fa", "fedadam", "median", "krum", "ga", "trimmed_mean"),
)
# Lines of ROW+aux and the like, which have the colour of ROW and its marker, hollow; of rows of
# the first line.
WRAPPED: dict[str, Line] = {
    "aux": (9.0, 2.0),
    "gmr": (9.0, 1.5, 3.0, 1.5),
    "aux+gmr": (6.0, 1.4, 1.2, 1.4, 1.2, 1.4),
}


@dataclass(frozen=True)
class Style:
    """How a method is drawn."""

    colour: str  # as in HTML
    marker: str  # of MARKERS
    line: Line = ()
    width: float = 1.0  # ordinary line widths
    is_hollow: bool = False  # the marker


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return the style of every name, which no other name of the call has.

    Args:
        names: methods, in the order in which free places are given; repeated ones count once.
    """
    wanted = list(dict.fromkeys(names))
    rows = {name: _row_of(name, wanted) for name in wanted}
    places = _places(dict.fromkeys(rows.values()))
    return {name: _style(places[row], name[len(row) + 1 :]) for name, row in rows.items()}


def _row_of(name: str, names: Iterable[str]) -> str:
    """Return ROW of ROW+WRAPPERS if ROW has a style to share, else the name."""
    row, _, wrappers = name.partition("+")
    return row if wrappers in WRAPPED and (row in PLACES or row in names) else name


def _places(rows: Iterable[str]) -> dict[str, int]:
    """Return the place of every row: its own, or the next one that is free."""
    own = {row: PLACES.index(row) for row in rows if row in PLACES}
    taken = frozenset(own.values())
    free = (place for place in count(1) if place not in taken)
    return {row: own[row] if row in own else next(free) for row in rows}


def _style(place: int, wrappers: str) -> Style:
    """Return a style of the table, or past its end one with other markers."""
    row, column = divmod(place, len(COLOURS))
    lap, line = divmod(row, len(LINES))
    marker = MARKERS[(column + 2 * line + lap) % len(MARKERS)]
    if wrappers:  # longer over rows of a later line: ROW's line does not show in its wrapper's
        lengths = tuple(round(each * (1 + 0.6 * line), 1) for each in WRAPPED[wrappers])
        return Style(COLOURS[column], marker, lengths, is_hollow=True)
    return Style(COLOURS[column], marker, LINES[line], STRONG if place == 0 else 1.0)
