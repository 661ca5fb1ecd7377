"""Curves over seeds: a method's mean and its range, and the axes that show what differs.

The rules of the axes, which their labels state:

* accuracy    Where one is good (error_scale.py), distances of accuracies are ratios of their
              errors: from 90 to 95 % is as far as from 80 to 90 %. Else they are linear, from the
              least on.
* cost        What a run spends, on a log scale where the ends of the curves are FAR apart.

Accuracies are in percent. Shapes: G points that the curves of all seeds pass, E points of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.scale import FuncScale
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from fedgmr_hpc.reporting.error_scale import LEAST_ERROR, is_spaced_by_error
from fedgmr_hpc.reporting.figures import look
from fedgmr_hpc.reporting.palette import Style

Values = NDArray[Any]
FAR = 10.0  # times
ROUND_ERRORS = (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05)
MORE_ERRORS = (80, 70, 60, 40, 30, 15, 12, 8, 7, 6, 4, 3, 1.5, 0.7, 0.3)
MAX_MARKED = 12  # a curve with more points has markers at equal distances
SPACED = "\nlog scale of the error"
GAP = 0.08  # of an axis, the least that is left between two accuracies that it names


@dataclass(frozen=True)
class Curve:
    """What was measured of one method, [E] for each seed.

    Args:
        is_step: a value holds until the next one, instead of lying on a line to it.
    """

    xs: Sequence[Values]
    ys: Sequence[Values]
    is_step: bool = False

    @property
    def num_seeds(self) -> int:
        """How many seeds have values."""
        return sum(len(x) > 0 for x in self.xs)

    @property
    def is_empty(self) -> bool:
        """Whether no seed has values."""
        return self.num_seeds == 0

    def over_seeds(self) -> tuple[Values, ...]:
        """Return x, mean, least and greatest [G], as far as all seeds have come."""
        known = [i for i, x in enumerate(self.xs) if len(x)]
        return band([self.xs[i] for i in known], [self.ys[i] for i in known], self.is_step)


def band(xs: Sequence[Values], ys: Sequence[Values], is_step: bool) -> tuple[Values, ...]:
    """Return points, mean, minimum and maximum [G] over series, where all of them have values."""
    points = np.unique(np.concatenate(list(xs)))
    grid = points[(points >= max(x[0] for x in xs)) & (points <= min(x[-1] for x in xs))]
    read = _held if is_step else np.interp
    rows = np.array([read(grid, x, y) for x, y in zip(xs, ys, strict=True)])
    return grid, rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)


def _held(grid: Values, x: Values, y: Values) -> Values:
    """Return the value that holds at each grid point, from its step on."""
    return y[np.maximum(np.searchsorted(x, grid, side="right") - 1, 0)]


def describe_band(curves: Sequence[Curve]) -> str:
    """Say what lines and bands of curves are; "" where nothing has several seeds."""
    numbers = [curve.num_seeds for curve in curves if curve.num_seeds]
    if max(numbers, default=0) < 2:
        return ""
    least, most = min(numbers), max(numbers)
    number = f"{most} seeds" if least == most else f"{least} to {most} seeds"
    return f"line: mean, band: least to greatest, of {number}"


def draw_curves(axes: Axes, curves: Mapping[str, Curve], styles: Mapping[str, Style]) -> None:
    """Draw a line a method and, where it has several seeds, their range."""
    for number, (name, curve) in enumerate(curves.items()):
        if curve.is_empty:
            continue
        x, mean, low, high = curve.over_seeds()
        style = look(styles[name])
        every = _every(len(x), number / len(curves))
        drawn = "steps-post" if curve.is_step else "default"
        axes.plot(x, mean, drawstyle=drawn, markevery=every, **style)
        if curve.num_seeds > 1:
            step: Any = "post" if curve.is_step else None
            axes.fill_between(
                x, low, high, step=step, color=style["color"], alpha=0.13, linewidth=0
            )


def _every(num_points: int, frac: float) -> Any:
    """Return which points have a marker; curves on top of each other have theirs apart."""
    return 1 if num_points <= MAX_MARKED else (0.03 + 0.14 * frac, 0.14)


def scale_accuracy(axes: Axes, values: Sequence[Values], name: str, along: str = "y") -> None:
    """Scale and label an axis of accuracies by the rule for them.

    Args:
        values: all that is drawn.
        name: what they are accuracies of, such as `test accuracy`.
        along: `x` or `y`.
    """
    drawn = np.concatenate([*(each[np.isfinite(each)] for each in values), np.empty(0)])
    low, high = (float(drawn.min()), float(drawn.max())) if drawn.size else (0.0, 100.0)
    axis = axes.yaxis if along == "y" else axes.xaxis
    functions: Any = (_to_log, _from_log)
    keys: dict[str, Any] = {"lim": accuracy_limits(low, high), "label": f"{name} (%)"}
    if is_spaced_by_error(high):
        ticks = accuracy_ticks(low, high)
        keys = {"scale": FuncScale(axis, functions), **keys, "ticks": ticks}
        keys["ticklabels"] = [f"{tick:g}" for tick in ticks]
        keys["label"] += SPACED
    axes.set(**{f"{along}{key}": value for key, value in keys.items()})


def accuracy_limits(low: float, high: float) -> tuple[float, float]:
    """Return the ends of an axis, a little beyond the accuracies drawn."""
    if not is_spaced_by_error(high):
        margin = max(0.04 * (high - low), 0.5)
        return max(low - margin, 0.0), high + margin
    first, last = _to_log(np.array([low, high]))
    margin = max(0.04 * (last - first), 0.01)
    first, last = _from_log(np.array([first - margin, last + margin]))
    return float(first), float(last)


def accuracy_ticks(low: float, high: float) -> list[float]:
    """Return the accuracies named on an axis: round errors, more where few fit."""
    for errors in (ROUND_ERRORS, (*ROUND_ERRORS, *MORE_ERRORS)):
        first, last = accuracy_limits(low, high)
        ticks = sorted(100.0 - error for error in errors if first <= 100 - error <= last)
        if len(ticks) >= 4:
            return ticks + _topmost(ticks[-1], first, last)
    return [tick for tick in MaxNLocator(5).tick_values(low, high) if first <= tick <= last]


def _topmost(below: float, first: float, last: float) -> list[float]:
    """Return one more accuracy to name above the last round one, where that leaves it room.

    The best methods lie there: 97 % tells more of them than that they are beyond 95.
    """
    places = _to_log(np.array([first, last, below]))
    least = places[2] + GAP * (places[1] - places[0])
    above = [100.0 - error for error in MORE_ERRORS if below < 100.0 - error <= last]
    return [tick for tick in above if _to_log(np.array(tick)) >= least][-1:]


def _to_log(accuracy: Values) -> Values:
    """Return accuracies as places on an axis, where they have equal distances at equal ratios."""
    return -np.log10(np.maximum(100.0 - np.asarray(accuracy), LEAST_ERROR))


def _from_log(place: Values) -> Values:
    return 100.0 - 10.0 ** -np.asarray(place)


def is_far_apart(ends: Sequence[float]) -> bool:
    """Return whether curves end so far apart that what they spend needs a log scale."""
    positive = [end for end in ends if end > 0]
    return bool(positive) and max(positive) >= FAR * min(positive)


def scale_cost(axes: Axes, xs: Sequence[Values], name: str) -> None:
    """Scale and label the axis to the right by the rule for what runs spend.

    Args:
        xs: of the curves drawn.
        name: with its unit.
    """
    known = [x for x in xs if len(x)]
    positive = [x[x > 0] for x in known if (x > 0).any()]
    if is_far_apart([float(x[-1]) for x in known]):
        axes.set_xscale(
            "log", nonpositive="mask"
        )  # clipped, 0 would draw a flat line from the left
        axes.set_xlabel(f"{name}, log scale")
        axes.set_xlim(left=min(float(x[0]) for x in positive))
    else:
        axes.set_xlim(left=0)
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
