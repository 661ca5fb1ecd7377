"""What figures of runs show: labels, lines and rows, from hand-made configurations and series."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedgmr_hpc.reporting.figures import style_of
from fedgmr_hpc.results.client_plots import draw_clients
from fedgmr_hpc.results.labels import Rows, labels_of
from fedgmr_hpc.results.plots import COURSES, DENSITY, draw_course, with_fixed_together
from fedgmr_hpc.results.series import Run

NONE = np.empty(0)
TIMES = np.array([0.0, 10.0, 20.0])


def make_run(row: str, end: float, density: float | None = None, seed: int = 0) -> Run:
    """Return a run whose clients hold `density`, or twice 0.2 and then 0.5."""
    densities = np.array([0.2, 0.2, 0.5]) if density is None else np.full(3, density)
    scores = np.array([0.1, 0.4, end])
    unknown = np.full(3, np.nan)
    return Run(row=row, column="", seed=seed, name=row, times_s=TIMES, test=scores, val=scores,
               own_mean=unknown, own_worst=unknown, bytes=TIMES, client_steps=TIMES,
               density_times_s=TIMES, densities=densities, refresh_times_s=NONE,
               refresh_test=NONE, labels={})  # fmt: skip


def config(method: str, seed: int = 0, **sections: Any) -> dict[str, Any]:
    return {"method": method, "seed": seed, **sections}


def test_runs_are_called_by_what_differs() -> None:
    assert labels_of([config("fedgmr", 0), config("fedgmr", 1)]) == ["fedgmr"] * 2
    rates = [config("fedgmr", train={"learning_rate": rate}) for rate in (0.1, 0.3)]
    assert labels_of(rates) == ["fedgmr, learning rate 0.1", "fedgmr, learning rate 0.3"]
    tuned = [*rates[:1], config("fedavg", train={"learning_rate": 0.3})]
    assert labels_of(tuned) == ["fedgmr", "fedavg"]
    levels = [config("fedgmr", clients={"level": level}) for level in ("high", "low")]
    assert labels_of(levels) == ["fedgmr, high", "fedgmr, low"]


def test_a_legend_begins_with_the_best_at_the_comparison_time() -> None:
    runs = [make_run("a", 0.5), make_run("b", 0.7), make_run("c", 0.9)]
    runs[2] = replace(runs[2], test=np.array([0.1, 0.2, 0.9]))
    assert Rows.of(runs).order == ["c", "b", "a"]
    assert Rows.of(runs, at_s=10.0).order == ["a", "b", "c"]


def test_a_run_alone_shows_its_validation_accuracy_too() -> None:
    runs = [make_run("fedgmr", 0.5)]
    with style_of("page"):
        figure = draw_course(runs, COURSES[0], Rows.of(runs))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["fedgmr", "validation accuracy"]


def test_methods_of_the_same_fixed_density_share_a_line() -> None:
    runs = [make_run("a", 0.9, 1.0), make_run("b", 0.8), make_run("c", 0.7, 1.0)]
    rows = with_fixed_together(runs, Rows.of(runs))
    assert [rows.name(row) for row in rows.order] == ["1 throughout: a, c", "b"]
    with style_of("page"):
        figure = draw_course(runs, DENSITY, Rows.of(runs))
    assert len(figure.axes[0].lines) == 2


@pytest.mark.parametrize("num_steps", [2, 12])
def test_a_map_of_densities_has_a_row_a_client_and_a_step_a_colour(num_steps: int) -> None:
    """Clients 0 and 2 have the greatest share."""
    steps = np.geomspace(0.1, 1.0, num_steps)
    density = np.column_stack([np.ones(num_steps), steps, np.ones(num_steps)])
    merges = {"now_s": 10.0 * np.arange(1, num_steps + 1), "density": density}
    empty = {"now_s": NONE, "version": NONE}
    shares = {"count": 3, "shares": [1, 0.1, 1]}
    result = SimpleNamespace(config={"clients": shares}, merges=merges, evaluations=empty)
    with style_of("page"):
        figure = draw_clients(result)  # type: ignore[arg-type]
    axes, bar = figure.axes
    (mesh,) = axes.collections
    assert mesh.get_array().shape == (3, num_steps)
    assert mesh.get_array()[2].tolist() == pytest.approx(steps.tolist())  # the least share below
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1 (2)", "0.1 (1)"]
    assert [text.get_text() for text in bar.get_yticklabels()] == ["0.1", "1"]
