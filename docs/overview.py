"""Draw the figure of the README from a table of results: `python docs/overview.py [FOLDER]`.

With a folder of result files, such as the cells of a study, their numbers are written to the table
first, those of the methods in NAMES. Runs that tune are left out.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
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

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "results/2026-11-29/curves.csv"
FIGURE = ROOT / "docs/img/overview.png"
COLUMNS = ("method", "seed", "now_s", "val_accuracy", "test_accuracy", "mean_density")
NAMES = {
    "fedgmr": "FedGMR",
    "wo_gmr": "FedGMR without restoration",
    "heterofl": "HeteroFL",
    "fedavg": "FedAvg",
}
Rows = list[dict[str, str]]


def collect(folder: Path) -> None:
    """Write the scores at equal times of the result files of a folder."""
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for path in sorted(folder.glob("*.h5")):
            if not path.stem.startswith("tune-"):
                writer.writerows(_rows_of(path))


def _rows_of(path: Path) -> Iterator[list[str]]:
    result = fedgmr_hpc.read_result(path)
    run = [str(result.config[key]) for key in ("method", "seed")]
    columns = [result.looks[name] for name in COLUMNS[2:]]
    for row in zip(*columns, strict=True):
        if run[0] in NAMES:
            yield [*run, *(f"{value:.6g}" for value in row)]


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
    """Draw accuracy on the left, density on the right: means and ranges over seeds."""
    figure, (scores, densities) = new_figure(2, size=(9.0, 4.2))
    accuracies = curves_of(rows, "test_accuracy", 100.0)
    styles = styles_of(NAMES)
    draw_curves(scores, accuracies, styles)
    draw_curves(densities, curves_of(rows, "mean_density", 1.0, is_step=True), styles)
    times = [x for curve in accuracies.values() for x in curve.xs]
    for panel in (scores, densities):
        scale_cost(panel, times, "virtual time (s)")
    scale_accuracy(scores, [y for curve in accuracies.values() for y in curve.ys], "test accuracy")
    densities.set(ylim=(0, 1.04), ylabel="mean density of the clients")
    keys = [method_key(styles[method], name) for method, name in NAMES.items()]
    legend_below(figure, keys, describe_band(list(accuracies.values())))
    return figure


def main() -> None:
    """Collect where a folder is given, then draw."""
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    with TABLE.open() as file:
        save(draw(list(csv.DictReader(file))), FIGURE)


if __name__ == "__main__":
    main()
