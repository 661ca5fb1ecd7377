"""What is measured in a run, from tables of a few rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgmr_hpc.results.client_plots import draw_classes, with_submodels
from fedgmr_hpc.results.interactive.curves import curve
from fedgmr_hpc.results.labels import Rows, names_of, score_of
from fedgmr_hpc.results.pairs import final_accuracy
from fedgmr_hpc.results.series import (
    Run,
    client_steps,
    last_tests,
    lost_ranks,
    measure_run,
    quarantined,
    time_name,
)
from fedgmr_hpc.storage.reader import Result


def table(**columns: Any) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in columns.items()}


def scores(versions: list[int], times_s: list[float], test: list[float]) -> dict[str, np.ndarray]:
    density = [0.5] * len(versions)
    return table(version=versions, now_s=times_s, test_accuracy=test, val_accuracy=test,
                 mean_density=density)  # fmt: skip


def make_result(folder: str = "a", max_time_s: float | None = 30.0, **config: Any) -> Result:
    """Two merges of two updates, at 12 and 36 s; looks every 10 s, refreshes of versions 0 and 2.

    A fifth update arrived before the last merge and is in none.
    """
    no_rows: dict[str, np.ndarray] = {}
    return Result(
        path=Path(folder) / "run.h5",
        status="finished",
        config_yaml="",
        config={"method": "fedgmr", "seed": 3, "run": {"max_time_s": max_time_s},
                "train": {"batch": 20}, **config},
        provenance={},
        ranks=no_rows,
        weights=np.zeros(0),
        layout_json="",
        merges=table(version=[1, 2], round=[1, 2], now_s=[12.0, 36.0], wall_s=[1.0, 3.0],
                     density=[[0.5], [0.5]],
                     server_up_bytes=[100, 300], server_down_bytes=[10, 30]),
        evaluations=scores([0, 2], [0.0, 36.0], [0.1, 0.7]),
        updates=table(version=[1, 1, 2, 0, 2], num_samples=[100, 100, 40, 100, 60],
                      now_s=[5.0, 11.0, 20.0, 25.0, 35.0]),
        events=no_rows,
        transfers=no_rows,
        checkpoints=no_rows,
        looks=scores([0, 0, 1, 1, 2], [0.0, 10.0, 20.0, 30.0, 40.0], [0.1, 0.1, 0.5, 0.5, 0.7]),
        submodels=table(version=[0, 0, 1, 1], density=[0.2, 1.0] * 2, num_clients=[3, 1] * 2,
                        test_accuracy=[0.1, 0.1, 0.3, 0.5], now_s=[0.0, 0.0, 20.0, 20.0]),
    )  # fmt: skip


def test_ranks_of_the_last_resume_that_have_no_row_were_lost() -> None:
    result = make_result()
    assert lost_ranks(result) == []
    ended = replace(result, ranks=table(rank=[0, 2]), provenance={"num_ranks": "4"})
    assert lost_ranks(ended) == [1, 3]
    for number, (resumed, lost) in enumerate([('{"num_ranks": "3"}', [1]), ("{}", [1, 3])], 1):
        ended = replace(ended, provenance=ended.provenance | {f"resume_{number}": resumed})
        assert lost_ranks(ended) == lost
    assert lost_ranks(replace(ended, ranks=table(rank=[]))) == []  # it has not ended
    assert lost_ranks(replace(ended, provenance={})) == []  # an older file


def test_costs_of_a_version_are_of_what_it_is_made_of() -> None:
    """Not of updates that had arrived by the look: those of 20 and 25 s are in no version yet."""
    run = measure_run(make_result(), "fedgmr")
    assert run.client_steps.tolist() == [0, 0, 10, 10]
    assert run.bytes.tolist() == [0, 0, 110, 110]
    assert client_steps(make_result(), np.array([0, 1, 2])).tolist() == [0, 10, 15]


@pytest.mark.parametrize(
    ("max_time_s", "times"), [(30.0, [0, 10, 20, 30]), (None, [0, 10, 20, 30, 40])]
)
def test_looks_after_the_end_of_the_run_are_left_out(
    max_time_s: float | None, times: list[float]
) -> None:
    """A run of slow rounds has them, others do not, so they would be a later end for it alone."""
    run = measure_run(make_result(max_time_s=max_time_s), "fedgmr")
    assert run.times_s.tolist() == times
    assert (run.cost_to("times_s", 0.6, 1) == 40.0) is (max_time_s is None)
    without = replace(make_result(), looks={"version": np.zeros(0)})
    assert measure_run(without, "fedgmr").times_s.tolist() == [0, 36]


def test_all_that_is_made_of_looks_leaves_out_those_after_the_end() -> None:
    result = make_result()
    assert last_tests(result).tolist() == [0.5, 0.5]
    assert len(last_tests(make_result(max_time_s=None))) == 3
    drawn = curve(result, name="run", method="fedgmr").values
    assert drawn["time_s"].tolist() == [0, 10, 20, 30]
    assert {len(values) for values in drawn.values()} == {4}


def test_looks_count_by_their_multiple_whatever_its_last_bit_is() -> None:
    """3 * 1.1 is 3.3000000000000003, so that the third look was none at 3.3 s."""
    times = np.arange(4) * 1.1
    run = replace(measure_run(make_result(), "fedgmr"), times_s=times, test=times, val=times)
    assert run.accuracy_at(3.3, 1) == times[3]
    assert score_of(run, run.test, 3.3, 1) == times[3]
    ended = replace(run, times_s=times[:3], test=times[:3])
    assert not ended.covers(3.3) and ended.covers(3.2)


def test_an_untrained_model_has_no_accuracy_to_tune_by() -> None:
    """Of looks every 10 s those at 0 and 10 s are at version 0."""
    run = measure_run(make_result(), "fedgmr")
    assert run.num_untrained == 2
    assert np.isnan([run.validation_at(10.0, 1), run.validation_at(20.0, 2)]).all()
    assert (run.validation_at(20.0, 1), run.validation_at(30.0, 2)) == (0.5, 0.5)
    assert run.accuracy_at(10.0, 1) == 0.1


def test_a_run_that_ends_before_the_next_look_is_due_does_not_reach_it() -> None:
    run = measure_run(make_result(), "fedgmr")
    assert [run.covers(at_s) for at_s in (30.0, 39.0, 40.0)] == [True, True, False]
    early = measure_run(make_result(max_time_s=10.0), "fedgmr")
    rows = Rows.of([run, early], at_s=30.0)
    assert with_submodels([run, early], rows) == [run]
    assert with_submodels([early], rows) == []


@pytest.mark.parametrize(
    ("times_s", "last_s"),
    [
        ([0, 10, 20, 30], 40),  # looks at equal times
        ([0, 10, 20, 520, 530], 540),  # a stall, which says nothing about the end
        ([0, 500, 510], 520),
        ([0, 100, 200, 300, 310], 410),  # few rounds, and an end within one
        ([0, 90, 210, 300, 420], 510),  # uneven: the shorter half is certain
        ([0, 700], 1400),
    ],
)
def test_a_run_reaches_no_further_than_its_usual_step(times_s: list[float], last_s: float) -> None:
    run = replace(measure_run(make_result(), "fedgmr"), times_s=np.array(times_s))
    assert run.covers(last_s - 1) and not run.covers(last_s)
    longest = max(later - sooner for sooner, later in pairwise(times_s))
    assert run.resolution_s == longest  # of which a table warns


def test_a_class_has_a_value_wherever_the_whole_model_has() -> None:
    run: Run = measure_run(make_result(), "fedgmr")
    assert run.classes[1.0].tolist() == run.test.tolist()
    assert run.own_mean.tolist() == pytest.approx([0.1, 0.1, 0.35, 0.35])
    axes = draw_classes(make_result()).axes[0]
    assert {tuple(line.get_xdata()) for line in axes.lines} == {(0.0, 10.0, 20.0, 30.0)}
    assert axes.get_xlabel() == "virtual time (s)"


def test_times_are_called_by_their_clocks() -> None:
    assert time_name({"clock": "wall"}) == "unscaled time"
    assert time_name({}, {"clock": "wall"}) == "time"
    assert measure_run(make_result(clock="wall"), "a").time == "unscaled time"


def test_the_final_accuracy_is_of_trained_models() -> None:
    assert final_accuracy(replace(make_result(), looks={"version": np.zeros(0)})) == 0.7


def test_clients_in_quarantine_are_those_whose_last_update_is_in_no_version() -> None:
    """The update of 25 s is client 3's; one of client 4 is in no version as it was lost."""
    result = make_result()
    result.updates["client"] = np.array([0, 1, 0, 3, 1])
    lost = table(kind=[0, 3], client=[0, 4])
    assert quarantined(replace(result, events=lost)) == [3]
    assert quarantined(replace(result, events=table(kind=[3], client=[3]))) == []


def test_files_of_one_name_in_two_folders_are_two_runs() -> None:
    assert names_of([make_result("a"), make_result("b")]) == ["fedgmr: run: a", "fedgmr: run: b"]
    assert names_of([make_result("a"), make_result("a", seed=4)]) == ["fedgmr", "fedgmr"]
