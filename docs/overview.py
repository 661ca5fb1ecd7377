"""Draw the figure of the README from a table of results: `python docs/overview.py [RESULT...]`.

With result files, such as cells of a study, the table is first made anew, of the methods in NAMES.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import fedgmr_hpc
from fedgmr_hpc.reporting.curves import (
    Curve,
    describe_band,
    draw_curves,
    scale_accuracy,
    scale_cost,
)
from fedgmr_hpc.reporting.figures import legend_below, method_key, new_figure, save, styled
from fedgmr_hpc.reporting.palette import styles_of
from fedgmr_hpc.results.series import measure_run

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "results/2026-12-01/curves.csv"
FIGURE = ROOT / "docs/img/overview.png"
COLUMNS = ("method", "seed", "now_s", "test_accuracy", "own_submodels", "mean_density")
NAMES = {
    "fedgmr": "FedGMR",
    "wo_gmr": "FedGMR w/o GMR",
    "heterofl+aux+gmr": "HeteroFL + Aux + GMR †",
    "heterofl": "HeteroFL †",
    "fedbuff": "FedBuff",
    "fedavg": "FedAvg",
}
Rows = list[dict[str, str]]


def collect(paths: Sequence[str]) -> None:
    """Write the scores at equal times of result files to the table, one file a method and seed."""
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        drawn: set[tuple[str, ...]] = set()
        for path in sorted(paths):
            rows = list(_rows_of(path))
            runs = {tuple(row[:2]) for row in rows}
            if drawn & runs:
                raise SystemExit(f"{path}: another file has the same method and seed")
            drawn |= runs
            writer.writerows(rows)


def _rows_of(path: str) -> Iterator[list[str]]:
    result = fedgmr_hpc.read_result(path)
    method, run = str(result.config["method"]), measure_run(result, "")
    densities = dict(zip(result.looks["now_s"], result.looks["mean_density"], strict=True))
    for now_s, test, own in zip(run.times_s, run.test, run.own_mean, strict=True):
        if method in NAMES:
            values = [f"{value:.5g}" for value in (test, own, densities[now_s])]
            yield [method, str(run.seed), f"{now_s:.10g}", *values]


def curves_of(rows: Rows, name: str, factor: float, is_step: bool = False) -> dict[str, Curve]:
    """Return the curve over time of each method."""
    curves = {}
    for method in NAMES:
        of_method = [row for row in rows if row["method"] == method]
        runs = [[row for row in of_method if row["seed"] == seed] for seed in _seeds(of_method)]
        xs = [np.array([float(row["now_s"]) for row in run]) for run in runs]
        ys = [factor * np.array([float(row[name]) for row in run]) for run in runs]
        curves[method] = Curve(xs, ys, is_step)
    return curves


def _seeds(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["seed"] for row in rows))


@styled
def draw(rows: Rows) -> Figure:
    """Draw the whole model on the left, the clients' own sub-models on the right, over seeds."""
    figure, panels = new_figure(2, size=(9.0, 4.2), sharey=True)
    titles = {"test_accuracy": "whole model", "own_submodels": "cut to each client's first density"}
    styles, curves = styles_of(NAMES), {}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        curves[name] = curves_of(rows, name, 100.0)
        draw_curves(axes, curves[name], styles)
        axes.set_title(title)
        scale_cost(
            axes, [x for curve in curves[name].values() for x in curve.xs], "virtual time (s)"
        )
    shown = [y for of_name in curves.values() for curve in of_name.values() for y in curve.ys]
    scale_accuracy(panels[0], shown, "test accuracy")
    keys = [method_key(styles[method], name) for method, name in NAMES.items()]
    legend_below(figure, keys, describe_band(list(curves["test_accuracy"].values())))
    return figure


def main() -> None:
    """Collect where result files are given, then draw."""
    if len(sys.argv) > 1:
        collect(sys.argv[1:])
    with TABLE.open() as file:
        save(draw(list(csv.DictReader(file))), FIGURE)


if __name__ == "__main__":
    main()
