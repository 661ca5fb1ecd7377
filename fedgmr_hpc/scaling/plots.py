"""The pictures of a scaling study."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedgmr_hpc.reporting.figures import SMALL, label, legend_below, new_figure, styled
from fedgmr_hpc.reporting.palette import COLOURS
from fedgmr_hpc.reporting.statistics import Summary
from fedgmr_hpc.scaling.analysis import PointSummary, Scaling
from fedgmr_hpc.scaling.model import amdahl, gustafson
from fedgmr_hpc.scaling.tables import PARTS, VALUE_HEADS

PART_COLOURS = dict(
    zip(PARTS, ("#0072B2", "#56B4E9", "#E69F00", "#DDDDDD", "#D55E00", "#009E73", "#F4F4F4"),
        strict=True)
)  # fmt: skip
MAX_BARS = 40


@styled
def draw_speedup(scaling: Scaling) -> Figure:
    """Draw rate and speed-up with the ideal, the fit and the prediction; efficiency beside them."""
    figure, (rates, effects) = new_figure(2)
    xs = [p.point.value if _is_sweep(scaling) else p.runs[0].num_workers for p in scaling.points]
    measured = [p.rounds_per_s for p in scaling.points]
    _errors(rates, xs, measured, [[r.rounds_per_s for r in p.runs] for p in scaling.points])
    predicted = [p.predicted_per_s for p in scaling.points]
    rates.plot(xs, predicted, "s--", color=COLOURS[4], markersize=5, label="predicted")
    runs = _relative_rates(scaling)
    if _is_sweep(scaling):
        _errors(effects, xs, [p.speedup for p in scaling.points], runs)
        _finish(effects, xs, _x_label(scaling), "times the first rate", "Against the first value")
    else:
        _laws(rates, scaling, xs[0], measured[0].mean)
        rates.set_yscale("log", base=2)
        rates.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        values = [*predicted, *(r.rounds_per_s for p in scaling.points for r in p.runs)]
        rates.set_ylim(min(values) / 1.5, 2 * max(values))
        each = [[v / p.q for v in values] for p, values in zip(scaling.points, runs, strict=True)]
        _errors(effects, xs, [p.efficiency for p in scaling.points], each)
        ideal = [y / (predicted[0] * p.q) for y, p in zip(predicted, scaling.points, strict=True)]
        effects.plot(xs, ideal, "s--", color=COLOURS[4], markersize=5, label="predicted")
        effects.axhline(1, color="0.7", linewidth=1.2)
        _finish(effects, xs, _x_label(scaling), "efficiency", "Efficiency")
    _finish(rates, xs, _x_label(scaling), "client-rounds per second", "Rate")
    return figure


def _laws(axes: Axes, scaling: Scaling, first: float, rate: float) -> None:
    """Draw the ideal and the fitted law, through the first point."""
    qs = np.geomspace(1, max(1.0, scaling.points[-1].q), 60)
    axes.plot(first * qs, rate * qs, color="0.7", linewidth=1.2, label="ideal")
    for name, law, serial_frac in (
        ("Amdahl", amdahl, scaling.amdahl_frac),
        ("Gustafson", gustafson, scaling.gustafson_frac),
    ):
        if not math.isnan(serial_frac):
            ys = [rate * law(serial_frac, q) for q in qs]
            text = f"{name}, serial {serial_frac:.3f}"
            axes.plot(first * qs, ys, ":", color=COLOURS[3], linewidth=2, label=text)


def _relative_rates(scaling: Scaling) -> list[list[float]]:
    """Return every run's rate over that of the first point's run of the same turn."""
    base = [run.rounds_per_s for run in scaling.points[0].runs]
    return [
        [run.rounds_per_s / first for run, first in zip(point.runs, base, strict=True)]
        for point in scaling.points
    ]


def _errors(
    axes: Axes, xs: Sequence[float], summaries: Sequence[Summary], runs: Sequence[Sequence[float]]
) -> None:
    """Draw means with their intervals, which may leave the picture, and a dot a run."""
    means = np.array([s.mean for s in summaries])
    ends = np.array([s.widest or (s.mean, s.mean) for s in summaries]).T
    axes.errorbar(
        xs, means, np.maximum(np.abs(ends - means), 0), fmt="o-", color=COLOURS[2],
        capsize=4, label="measured",
    )  # fmt: skip
    for x, values in zip(xs, runs, strict=True):
        if len(values) > 1:
            axes.plot([x] * len(values), values, "_", color=COLOURS[2], markersize=9, alpha=0.8)
    axes.set_ylim(0, 1.4 * max(max(values) for values in runs))


@styled
def draw_split(scaling: Scaling) -> Figure:
    """Draw a bar a rank: what it did in the measured time, of every point's first run.

    Where there are too many, each point shows its first ranks, the server among them.
    """
    ranks = [sorted(point.runs[0].split) for point in scaling.points]
    num_all = sum(map(len, ranks))
    most = _most_ranks([len(each) for each in ranks])
    shown = [(p, rank) for p, own in zip(scaling.points, ranks, strict=True) for rank in own[:most]]
    figure, (axes,) = new_figure(1, size=(max(6.5, 0.3 * len(shown) + 2), 4.6))
    axes.grid(False, axis="x")
    places, labels = _places(shown)
    for place, (point, rank) in zip(places, shown, strict=True):
        _bar(axes, place, point, rank)
    axes.set_xticks(places, labels, fontsize=SMALL)
    for point in {id(p): p for p, _ in shown}.values():
        mine = [x for x, (p, _) in zip(places, shown, strict=True) if p is point]
        name = f"{VALUE_HEADS[scaling.plan.kind]}: {point.point.value:g}"
        axes.text(float(np.mean(mine)), 1.03, name, ha="center", fontsize=SMALL,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    label(axes, "rank (0 is the server)", "time (s)")
    note = "Parts may overlap, so a bar may be higher than the measured time"
    if len(shown) < num_all:
        note += f"\nThe first {most} ranks of each point, {len(shown)} of {num_all} in all"
    axes.set_title(note, pad=20)  # above the points' names
    keys = [Patch(facecolor=c, edgecolor="0.6", label=part) for part, c in PART_COLOURS.items()]
    legend_below(figure, keys)
    return figure


def _most_ranks(numbers: Sequence[int]) -> int:
    """Return how many ranks a point may show, the server and one client rank at least."""
    fitting = (n for n in range(max(numbers), 2, -1) if sum(min(n, m) for m in numbers) <= MAX_BARS)
    return next(fitting, 2)


def _places(bars: Sequence[tuple[PointSummary, int]]) -> tuple[list[float], list[str]]:
    """Return where bars stand, with a gap between points, and their labels."""
    places, labels, place = [], [], 0.0
    for index, (point, rank) in enumerate(bars):
        place += 1.0 if index and bars[index - 1][0] is point else 2.0
        places.append(place)
        labels.append(str(rank))
    return places, labels


def _bar(axes: Axes, place: float, point: PointSummary, rank: int) -> None:
    bottom = 0.0
    for part in PARTS:
        height = point.runs[0].split[rank][part]
        axes.bar(place, height, 0.85, bottom, color=PART_COLOURS[part], edgecolor="0.6",
                 linewidth=0.4)  # fmt: skip
        bottom += height


@styled
def draw_memory(scaling: Scaling) -> Figure:
    """Draw resident memory: the server and the largest client rank."""
    figure, (axes,) = new_figure(1)
    xs = [p.point.value if _is_sweep(scaling) else p.runs[0].num_workers for p in scaling.points]
    lines = {
        "server, most": [max(r.server_peak_bytes for r in p.runs) for p in scaling.points],
        "client rank, most": [
            max(v for r in p.runs for rank, v in r.rss_bytes.items() if rank)
            for p in scaling.points
        ],
    }
    for colour, (name, values) in zip(COLOURS[1:], lines.items(), strict=False):
        axes.plot(xs, np.array(values) / 1e6, "o-", color=colour, label=name)
    axes.set_ylim(0, 1.25 * max(map(max, lines.values())) / 1e6)
    _finish(axes, xs, _x_label(scaling), "resident memory (MB)", "Memory of a rank")
    return figure


@styled
def draw_limit(scaling: Scaling) -> Figure:
    """Draw simulated rates of up to thousands of ranks; a ring marks each server's saturation."""
    figure, (axes,) = new_figure(1, size=(8.5, 4.4))
    for index, each in enumerate(scaling.simulations):
        colour = COLOURS[index % len(COLOURS)]
        width = max(1.2, 4.2 - 0.8 * index)  # equal curves stay visible below one another
        axes.plot(each.num_ranks, each.rounds_per_s, color=colour, label=each.name, linewidth=width)
        full = each.saturation
        if full.num_workers + 1 <= each.num_ranks[-1]:
            axes.plot(full.num_workers + 1, full.rounds_per_s, "o", mfc="none", mec=colour,
                      markersize=11, mew=1.8)  # fmt: skip
    alike = [p for p in scaling.points if _clients_a_rank(p) == scaling.clients_per_rank]
    if alike:
        points = [(p.runs[0].num_ranks, p.rounds_per_s.mean) for p in alike]
        name = f"measured, clients a rank: {scaling.clients_per_rank}"
        axes.plot(*zip(*points, strict=True), "k*", markersize=12, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = scaling.simulations[0].num_ranks[::2]
    axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
    axes.minorticks_off()
    title = "Simulated; a ring is where the server is saturated"
    label(axes, "ranks, a core and link each", "client-rounds per second", title)
    legend_below(figure)
    return figure


def _clients_a_rank(point: PointSummary) -> float:
    return point.runs[0].num_clients / point.runs[0].num_workers


def _is_sweep(scaling: Scaling) -> bool:
    return scaling.plan.kind not in ("strong", "weak")


def _x_label(scaling: Scaling) -> str:
    return VALUE_HEADS[scaling.plan.kind] if _is_sweep(scaling) else "client ranks"


def _finish(axes: Axes, xs: Sequence[float], x_label: str, y_label: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.minorticks_off()
    label(axes, x_label, y_label, title)
    axes.legend()
