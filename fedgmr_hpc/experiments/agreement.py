"""How far a run on the wall clock agrees with the same run on the virtual clock, and the verdict.

pairs.py has the numbers, this module their bounds, table and plot. Times are unscaled seconds.
Every bound is a number that is stated, not one that grows with what it bounds: what a run's own
accuracies scatter says nothing of the clocks, least of all while it still learns.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.overrides import laid_over
from fedgmr_hpc.reporting.figures import new_figure, save, styled
from fedgmr_hpc.reporting.palette import COLOURS
from fedgmr_hpc.reporting.tables import as_text
from fedgmr_hpc.results.pairs import (
    bytes_error,
    final_accuracy,
    matched,
    order_correlations,
    overrun_frac,
    refuse,
    round_times,
    staleness_shares,
)
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.transport.launchers import run_ranks

MAX_POINTS = 2.0  # that the final test accuracies may be apart
LEAST_AGES = 4  # on the axis of staleness
STYLES = {"virtual": (COLOURS[2], "-"), "wall": (COLOURS[1], "--")}


class Check(NamedTuple):
    """One number and its bound: the largest magnitude allowed, or the least value."""

    name: str
    value: float  # NaN: the two runs have nothing in common to compare
    bound: float
    unit: Literal["", "%", "points"] = "%"  # shown times 100, but for ""
    is_least: bool = False

    @property
    def agrees(self) -> bool | None:
        """Whether the bound holds; None for a NaN."""
        if math.isnan(self.value):
            return None
        return self.value >= self.bound if self.is_least else abs(self.value) <= self.bound


@dataclass(frozen=True)
class Agreement:
    """Wall against virtual; fractions and accuracies are 0 to 1, errors are wall - virtual."""

    num_rounds: int
    num_matched: int
    num_unmatched: int  # arrivals of either run without a partner
    accuracy_std: float  # of the virtual run's last five evaluations
    num_seeds: int  # of the virtual runs
    seed_range: float  # of their final accuracies
    overrun_frac: float  # of the client-steps; more than a few are refused
    order: Check  # rank correlation of arrival times
    round_order: Check  # the same inside a round, mean over rounds
    round_time: Check  # relative error of the mean round
    round_time_p95: Check  # 95th percentile of the rounds' relative errors
    staleness: Check  # total variation distance, 0 to 1
    transfer_bytes: Check  # largest relative error of a mean transfer over densities and directions
    accuracy: Check  # final test accuracies, each the mean of the last 3

    @property
    def checks(self) -> list[Check]:
        """All checks, in the order of the report."""
        return [value for value in vars(self).values() if isinstance(value, Check)]

    @property
    def agrees(self) -> bool:
        """Whether no check fails."""
        return all(check.agrees is not False for check in self.checks)

    @property
    def verdict(self) -> str:
        """In words; what could not be compared is no agreement."""
        open_checks = [check.name for check in self.checks if check.agrees is None]
        without = f", without {'; '.join(open_checks)}" if open_checks else ""
        return f"agree{without}" if self.agrees else "DISAGREE"


def compare(
    virtual: Result,
    wall: Result,
    noise_results: Sequence[Result] = (),
    max_points: float = MAX_POINTS,
) -> Agreement:
    """Return the agreement of two runs of one configuration and seed.

    Args:
        noise_results: the virtual run with other seeds, to see the accuracies' difference beside
            what a seed makes.
        max_points: how many points the final test accuracies may be apart.

    Raises:
        ValueError: a run is not finished, on the wrong clock or shorter than 2 rounds, the
            configurations differ, or over 5 % of the wall clock's client-steps overran.
    """
    refuse(virtual, wall, noise_results)
    whole, inside = order_correlations(virtual, wall)
    before, after = round_times(virtual, wall)
    p95 = float(np.percentile(np.abs(after / before - 1), 95))
    distance = float(np.abs(np.subtract(*staleness_shares(virtual, wall))).sum() / 2)
    finals = {run.config.get("seed"): final_accuracy(run) for run in (*noise_results, virtual)}
    num_matched = len(matched(virtual.updates, wall.updates)[0])
    num_arrivals = len(virtual.updates["client"]) + len(wall.updates["client"])
    error = final_accuracy(wall) - final_accuracy(virtual)
    return Agreement(
        num_rounds=len(before),
        num_matched=num_matched,
        num_unmatched=num_arrivals - 2 * num_matched,
        accuracy_std=float(np.std(virtual.evaluations["test_accuracy"][-5:], ddof=1)),
        num_seeds=len(finals),
        seed_range=max(finals.values()) - min(finals.values()),
        overrun_frac=overrun_frac(wall),
        order=Check("arrival order, whole run", whole, 0.99, "", True),
        round_order=Check("arrival order inside a round", inside, 0.9, "", True),
        round_time=Check("mean round time, error", float(after.mean() / before.mean() - 1), 0.1),
        round_time_p95=Check("round time, p95 of errors", p95, 0.1),
        staleness=Check("staleness, total variation", distance, 0.1),
        transfer_bytes=Check(
            "bytes of a transfer, error", bytes_error(virtual.updates, wall.updates), 0.01
        ),
        accuracy=Check("final test accuracy, error", error, max_points / 100, "points"),
    )


def render_agreement(agreement: Agreement) -> str:
    """Return a table with a verdict a line; `-` where the runs have nothing to compare."""
    verdicts = {True: "yes", False: "NO", None: "-"}
    rows = [
        [
            check.name,
            _number(check.value, check.unit),
            f"{'>=' if check.is_least else '<='} {_number(check.bound, check.unit)}",
            verdicts[check.agrees],
        ]
        for check in agreement.checks
    ]
    std, num_seeds = 100 * agreement.accuracy_std, agreement.num_seeds
    seeds = f"; range over {num_seeds} seeds {100 * agreement.seed_range:.2f} points"
    lines = [
        f"wall clock against virtual clock: {agreement.verdict}",
        f"{agreement.num_rounds} rounds, {agreement.num_matched} arrivals matched, "
        f"{agreement.num_unmatched} without a partner",
        as_text(["", "value", "bound", "agrees"], rows),
        "orders: rank correlation; times, bytes, accuracy: wall - virtual, bounds on magnitudes",
        f"test accuracy of the virtual run's last 5 evaluations: std {std:.2f} points"
        f"{seeds if num_seeds > 1 else ''}",
        f"client-steps that overran: {100 * agreement.overrun_frac:.2f} %",
    ]
    return "\n".join(lines)


def agree(
    virtual_path: str | os.PathLike[str],
    wall_path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    noise_paths: Sequence[str | os.PathLike[str]] = (),
    max_points: float = MAX_POINTS,
) -> tuple[bool, str]:
    """Return whether two result files agree, and the table; write `agreement.png` into `out_dir`.

    Raises:
        ValueError: a path is no result file, or `compare` refuses.
        OSError: `out_dir` cannot be written.
    """
    virtual, wall = read_result(virtual_path), read_result(wall_path)
    others = [read_result(path) for path in noise_paths]
    agreement = compare(virtual, wall, others, max_points)
    plot = Path(out_dir) / "agreement.png"
    plot_agreement(virtual, wall, plot)
    return agreement.agrees, f"{render_agreement(agreement)}\nplot: {plot}"


@styled
def plot_agreement(virtual: Result, wall: Result, path: str | os.PathLike[str]) -> None:
    """Draw arrival times against each other, round times and staleness side by side, as a PNG.

    Raises:
        OSError: `path` cannot be written.
    """
    figure, panels = new_figure(3, size=(15, 4.8))
    _plot_arrivals(panels[0], virtual, wall)
    _plot_rounds(panels[1], virtual, wall)
    _plot_staleness(panels[2], virtual, wall)
    for axes in panels:
        axes.set_ylim(0, 1.2 * axes.dataLim.ymax)  # room for the legend
        axes.legend(loc="upper left", ncols=2)
    save(figure, Path(path))


def _plot_arrivals(axes: Axes, virtual: Result, wall: Result) -> None:
    left, right = matched(virtual.updates, wall.updates)
    times = virtual.updates["now_s"][left], wall.updates["now_s"][right]
    ends = [0.0, max(map(np.max, times), default=0.0)]
    axes.plot(ends, ends, color="0.75", linewidth=1.5, label="equal times")
    axes.scatter(
        *times, s=14, color=COLOURS[3], alpha=0.5, linewidths=0, zorder=3, label="arrivals"
    )
    axes.set(title="arrivals", xlabel="virtual clock (s)", ylabel="wall clock, unscaled (s)")


def _plot_rounds(axes: Axes, virtual: Result, wall: Result) -> None:
    for times, (name, (colour, style)) in zip(
        round_times(virtual, wall), STYLES.items(), strict=True
    ):
        numbers = np.arange(1, len(times) + 1)
        axes.plot(numbers, times, linestyle=style, color=colour, label=name, linewidth=1.5)
    axes.locator_params(axis="x", integer=True)
    axes.set(title="time of a round", xlabel="round", ylabel="unscaled seconds")


def _plot_staleness(axes: Axes, virtual: Result, wall: Result) -> None:
    shares = staleness_shares(virtual, wall)
    for shift, values, (name, (colour, _)) in zip((-0.2, 0.2), shares, STYLES.items(), strict=True):
        ages = np.arange(1, len(values))  # 0 cannot be: a merge makes a new version
        axes.bar(ages + shift, 100 * values[1:], 0.4, color=colour, label=name)
    axes.set_xlim(0.5, max(len(shares[0]) - 1, LEAST_AGES) + 0.5)  # a bin for each whole number
    axes.locator_params(axis="x", integer=True)
    axes.set(title="staleness", xlabel="version - base version (1: fresh)", ylabel="updates (%)")


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.2f} {unit}" if unit else f"{value:.4f}"


def agree_config(
    sources: Sequence[str],
    overrides: Sequence[str],
    num_ranks: int,
    out_dir: str | os.PathLike[str],
    max_points: float = MAX_POINTS,
) -> tuple[bool, str]:
    """Run a configuration on both clocks, on as many ranks, and compare the two as `agree` does.

    Raises:
        ValueError: the configuration is wrong, or the runs are not comparable.
        RunError: a run failed, as it has said itself.
    """
    load_config(sources, overrides)  # a mistake is reported before anything is started
    stamp = time.strftime("%Y%m%d-%H%M%S")
    paths = {clock: Path(out_dir) / f"{clock}-{stamp}.h5" for clock in ("virtual", "wall")}
    named = [word for source in sources for word in ("--config", source)]
    for clock, path in paths.items():
        words = laid_over(overrides, [f"clock={clock}", f"results.path={path}"])
        try:
            run_ranks(num_ranks, "fedgmr_hpc.launch", *named, *words)
        except RuntimeError as error:
            raise RunError(str(error)) from None
    return agree(paths["virtual"], paths["wall"], out_dir, max_points=max_points)
