"""Draw the figure of the README from results/2026-11-29: `python docs/overview.py [FOLDER]`.

With a folder of result files the numbers are read from them first, and written to the CSV file.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

import fedgmr_hpc

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
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#555555")  # apart for the colour-blind, too
Curves = dict[str, list[dict[str, float]]]


def collect(folder: Path) -> None:
    """Write the scores at equal times of all result files of a folder."""
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for path in sorted(folder.glob("*.h5")):
            result = fedgmr_hpc.read_result(path)
            run = result.config["method"], result.config["seed"]
            columns = (result.looks[name] for name in COLUMNS[2:])
            writer.writerows(
                [*run, *(f"{value:.6g}" for value in row)] for row in zip(*columns, strict=True)
            )


def read() -> Curves:
    """The rows of the CSV file by method."""
    curves: Curves = defaultdict(list)
    with TABLE.open() as file:
        for row in csv.DictReader(file):
            curves[row.pop("method")].append({key: float(value) for key, value in row.items()})
    return curves


def _over_seeds(rows: list[dict[str, float]], name: str) -> tuple[list[float], NDArray[np.float64]]:
    """Times, and a value for each time and seed [times, seeds], where all seeds have one."""
    by_time: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        by_time[row["now_s"]].append(row[name])
    seeds = max(map(len, by_time.values()))
    kept = {time: values for time, values in by_time.items() if len(values) == seeds}
    return list(kept), np.array(list(kept.values()))


def draw(curves: Curves) -> None:
    """Accuracy on the left, density on the right: means over seeds, bands from least to most."""
    matplotlib.use("agg")
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), dpi=150, layout="constrained")
    for panel, name, scale in zip(panels, ("test_accuracy", "mean_density"), (100, 1), strict=True):
        for (method, label), colour in zip(NAMES.items(), COLOURS, strict=True):
            times, values = _over_seeds(curves[method], name)
            panel.plot(times, scale * values.mean(1), color=colour, label=label)
            low, high = scale * values.min(1), scale * values.max(1)
            panel.fill_between(times, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_xlabel("virtual time, s")
        panel.grid(alpha=0.25)
        panel.set_xlim(0, 1600)
        panel.set_ylim(0, 1.02 * scale)
    panels[0].set_ylabel("test accuracy, %")
    panels[1].set_ylabel("mean density of the clients")
    panels[0].legend(frameon=False, loc="lower right")
    figure.savefig(FIGURE)


def main() -> None:
    """Collect where a folder is given, then draw."""
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    draw(read())


if __name__ == "__main__":
    main()
