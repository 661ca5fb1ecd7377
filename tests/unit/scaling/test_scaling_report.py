"""What the report of a scaling study says beside its numbers, and what its figures show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_scaling_runs import measured

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.scaling import analysis
from fedgmr_hpc.scaling.analysis import Scaling, analyse
from fedgmr_hpc.scaling.measure import Measured
from fedgmr_hpc.scaling.model import Demand, System
from fedgmr_hpc.scaling.page import headlines, write_report
from fedgmr_hpc.scaling.plots import draw_split
from fedgmr_hpc.scaling.runs import Plan, Point, make_points


def made_run(num_ranks: int, **facts: str) -> Measured:
    """A run of so many ranks whose clients all do the same."""
    run = measured("clients.count=2", "clients.shares=[1.0, 0.5]")
    split = {rank: run.split[min(rank, 1)] for rank in range(num_ranks)}
    return replace(run, num_ranks=num_ranks, split=split, provenance=facts)


def scaling_of(
    monkeypatch: pytest.MonkeyPatch, runs: dict[int, tuple[Measured, ...]], folder: Path = Path()
) -> Scaling:
    points = make_points("strong", load_config("digits"), sorted(runs), [])
    repeats = len(next(iter(runs.values())))
    plan = Plan("strong", ("digits",), (), repeats, 2, 2, points)

    def measure_point(plan: Plan, point: Point, folder: Path) -> tuple[Measured, ...]:
        return runs[point.num_ranks]

    monkeypatch.setattr(analysis, "_measure_point", measure_point)
    monkeypatch.setattr(analysis, "read_identities", lambda path: [])
    monkeypatch.setattr(analysis, "MAX_SIMULATED_RANKS", 4)  # more take seconds
    return analyse(plan, folder)


def test_dropped_spans_are_not_passed_off_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made_run(2)
    assert "dropped" not in " ".join(headlines(scaling_of(monkeypatch, {2: (whole,)})))
    said = headlines(scaling_of(monkeypatch, {2: (replace(whole, num_dropped=7),)}))
    assert any(line.startswith("7 spans were dropped and count as idle") for line in said)


def test_runs_of_different_machines_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"cpu_model": "A", "git_commit": "1", "num_cores": "1"}
    runs = {
        2: (made_run(2, **same), made_run(2, **same)),
        # Not bound, since the machine has fewer cores; and a result of before it said its commit.
        3: (made_run(3, cpu_model="A", num_cores="2"), made_run(3, cpu_model="A", num_cores="2")),
    }
    assert "Not all runs" not in " ".join(headlines(scaling_of(monkeypatch, runs)))
    other = made_run(3, cpu_model="B", git_commit="2", num_cores="8")
    other = replace(other, config=other.config.model_copy(update={"seed": 5}))
    said = headlines(scaling_of(monkeypatch, {**runs, 3: (runs[3][0], other)}))
    assert (
        "Not all runs are alike, so that ratios mislead: cpu_model A and B; git_commit 1 and 2; "
        "num_cores 2 and 8; seed."
    ) in said


def test_more_clients_a_rank_than_are_simulated_still_give_a_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(analysis, "MAX_SIMULATED_CLIENTS", 4)
    system = System(Demand(core_s=1.0, service_s=0.5))
    assert {each.num_ranks for each in analysis._simulate_variants(system, 5)} == {(2,)}
    run = replace(made_run(2), num_clients=5)
    assert "report: " in write_report(scaling_of(monkeypatch, {2: (run,)}), tmp_path)
    assert (tmp_path / "limit.png").exists()


def shown_ranks(scaling: Scaling) -> tuple[list[str], str]:
    (axes,) = draw_split(scaling).axes
    return [text.get_text() for text in axes.get_xticklabels()], axes.get_title()


def test_a_figure_of_few_ranks_shows_all_and_says_that_parts_overlap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks, title = shown_ranks(scaling_of(monkeypatch, {n: (made_run(n),) for n in (2, 3)}))
    assert ranks == ["0", "1", "0", "1", "2"]
    assert title == "Parts may overlap, so a bar may be higher than the measured time"


def test_a_figure_of_many_ranks_shows_some_of_every_point_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = {n: (made_run(n),) for n in (2, 5, 17, 33)}
    ranks, title = shown_ranks(scaling_of(monkeypatch, points))
    assert ranks == [str(rank) for n in (2, 5, 16, 16) for rank in range(n)]
    assert title.endswith("\nThe first 16 ranks of each point, 39 of 57 in all")
    many = {n: (made_run(n),) for n in range(2, 24)}
    assert shown_ranks(scaling_of(monkeypatch, many))[0] == ["0", "1"] * 22
