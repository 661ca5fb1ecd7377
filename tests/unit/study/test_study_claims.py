"""Verdicts on claims, from runs of a few numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.results.series import Run
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.claims import (
    Comparison,
    Place,
    corrected,
    decide,
    judge,
    pair_values,
    what_would_decide,
)
from fedgmr_hpc.study.study_file import ClaimSpec

TIMES = np.array([0.0, 10.0, 20.0, 30.0])


def make_run(row: str, seed: int, test: Sequence[float], column: str = "high") -> Run:
    return Run(
        row=row,
        column=column,
        seed=seed,
        name=f"{row}-s{seed}",
        times_s=TIMES,
        test=np.array(test),
        val=np.array(test),
        own_mean=np.full(4, np.nan),
        own_worst=np.full(4, np.nan),
        bytes=TIMES,
        client_steps=TIMES,
        refresh_times_s=TIMES,
        refresh_test=np.array(test),
        density_times_s=TIMES,
        densities=np.ones(4),
        labels={"method": row, "seed": seed, "level": column},
    )


def flat(row: str, accuracies: Sequence[float]) -> list[Run]:
    return [make_run(row, seed, [0.1, a, a, a]) for seed, a in enumerate(accuracies)]


def values_of(claim: Comparison, runs: Sequence[Run]) -> list[float]:
    return list(pair_values(claim, runs).values())


def places(num_seeds: int, *columns: str) -> set[Place]:
    """The pairs of a study of so many seeds in each column."""
    return {(column, seed) for column in columns or ("high",) for seed in range(num_seeds)}


def comparison(kind: str, **words: object) -> Comparison:
    values = {"name": "claim", "kind": kind, "a": "a", "b": "b", **words}
    spec = TypeAdapter(ClaimSpec).validate_python(values)
    return Comparison(spec, "a", "b", "f" if "full" in words else None, at_s=30.0, last=2)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 2.0), "supported"),
        ((-2.0, -0.1), "contradicted"),
        ((-0.1, 2.0), "undecided"),
        ((0.0, 2.0), "undecided"),
        (None, "undecided"),
    ],
)
def test_an_interval_decides(interval: tuple[float, float] | None, verdict: str) -> None:
    assert decide(interval) == verdict


def test_a_steady_difference_is_supported_and_its_reverse_is_not() -> None:
    runs = flat("a", [0.80, 0.82, 0.84]) + flat("b", [0.70, 0.71, 0.75])
    found = judge(comparison("difference"), runs, places(3))
    assert found.verdict == "supported" and found.num_missing == 0 and found.test is not None
    assert (found.test.num_values, found.test.mean) == (3, pytest.approx(10.0))  # 10, 11, 9
    half = 4.302652729911275 / math.sqrt(3)
    assert found.test.interval == pytest.approx((10 - half, 10 + half))
    turned = [
        make_run({"a": "b", "b": "a"}[run.row], run.seed, [float(x) for x in run.test])
        for run in runs
    ]
    assert judge(comparison("difference"), turned, places(3)).verdict == "contradicted"


def test_three_scattered_pairs_of_one_sign_are_undecided() -> None:
    runs = flat("a", [0.71, 0.90, 0.72]) + flat("b", [0.70, 0.70, 0.70])
    assert judge(comparison("difference"), runs, places(3)).verdict == "undecided"


def test_missing_pairs_are_counted_and_one_pair_decides_nothing() -> None:
    runs = flat("a", [0.8, 0.8, 0.8]) + flat("b", [0.1])
    found = judge(comparison("difference"), runs, places(3))
    assert found.test is not None and (found.test.num_values, found.num_missing) == (1, 2)
    assert (found.verdict, what_would_decide(found)) == ("undecided", "2 missing pairs")
    nothing = judge(comparison("difference"), flat("a", [0.8]), places(3))
    assert (nothing.test, nothing.num_missing) == (None, 3)


def test_where_keeps_other_conditions_out() -> None:
    runs = flat("a", [0.8, 0.82]) + flat("b", [0.7, 0.7])
    runs += [make_run("a", 2, [0.1] * 4, "low"), make_run("b", 2, [0.9] * 4, "low")]
    found = judge(comparison("difference", where={"level": "high"}), runs, places(2)).test
    assert found is not None and (found.num_values, found.mean) == (2, pytest.approx(11.0))


def test_conditions_of_one_seed_are_one_value_and_a_seed_that_lacks_one_does_not_count() -> None:
    """Differences 10 and 12 of seed 0, 8 and none, then 4, of seed 1: values 11, then 11 and 6."""
    claim, planned = comparison("difference"), places(2, "high", "low")
    runs = flat("a", [0.80, 0.78]) + flat("b", [0.70, 0.70])
    nothing = judge(claim, runs, planned)
    assert (nothing.test, nothing.num_pairs, nothing.num_missing) == (None, 2, 2)
    runs += [make_run("a", 0, [0.62] * 4, "low"), make_run("b", 0, [0.50] * 4, "low")]
    found = judge(claim, runs, planned)
    assert found.test is not None and (found.num_pairs, found.num_missing) == (3, 1)
    assert (found.test.num_values, found.test.mean) == (1, pytest.approx(11.0))
    assert (found.verdict, what_would_decide(found)) == ("undecided", "1 missing pair")
    runs += [make_run("a", 1, [0.54] * 4, "low"), make_run("b", 1, [0.50] * 4, "low")]
    test = judge(claim, runs, planned).test
    assert test is not None and (test.num_values, test.mean) == (2, pytest.approx(8.5))
    alone = judge(claim, [run for run in runs if run.seed == 0], places(1, "high", "low"))
    assert (alone.verdict, what_would_decide(alone)) == ("undecided", "more than one seed")


@pytest.mark.parametrize(
    ("lost", "verdict"), [("a", "undecided"), ("b", "supported"), ("c", "supported")]
)
def test_a_row_that_diverged_wins_nothing(lost: str, verdict: str) -> None:
    runs = flat("a", [0.80, 0.82, 0.84]) + flat("b", [0.70, 0.71, 0.75])
    labels = {"method": lost, "level": "high"}
    cell = Cell(labels, lost, "high", lost, "high", 3, load_config("digits"), lost, "0")
    found = judge(comparison("difference"), runs, places(4), [cell])
    assert (found.verdict, "diverged" in found.note) == (verdict, lost != "c")
    turned = [replace(run, row={"a": "b", "b": "a"}[run.row]) for run in runs]
    found = judge(comparison("difference"), turned, places(4), [cell])
    assert found.verdict == {"a": "contradicted", "b": "undecided", "c": "contradicted"}[lost]
    elsewhere = comparison("difference", where={"level": "low"})
    assert judge(elsewhere, runs, places(0), [cell]).note == ""
    counts = (0, 1) if lost != "c" else (1, 0)
    assert (found.num_missing, found.num_diverged) == counts
    assert what_would_decide(found) == ("runs that do not diverge" if lost == "b" else "")


def test_a_collapse_is_no_win_of_a_row_that_diverged_and_the_full_model_is_named() -> None:
    runs = [make_run("a", 0, [0.1, 0.9, 0.9, 0.2]), make_run("b", 1, [0.5] * 4)]
    labels = {"method": "b", "level": "high"}
    cell = Cell(labels, "b", "high", "b", "high", 0, load_config("digits"), "b-s0", "0")
    claim = comparison("stability", window=2)
    assert judge(claim, runs, places(2)).verdict == "contradicted"
    found = judge(claim, runs, places(2), [cell])
    assert found.verdict == "undecided" and "collapse" in found.note and "b-s0" in found.note
    whole = replace(cell, labels={**labels, "method": "f"}, row="f", slug="f-s0")
    found = judge(comparison("gap_narrowing", full="f"), runs, places(2), [whole])
    assert "diverged: f-s0" in found.note and found.num_diverged == 0


def test_time_ratio_counts_halvings_at_least_where_one_never_gets_there() -> None:
    runs = [make_run("a", 0, [0.1, 0.9, 0.9, 0.9]), make_run("b", 0, [0.1, 0.1, 0.9, 0.9])]
    runs += [make_run("a", 1, [0.1, 0.9, 0.9, 0.9]), make_run("b", 1, [0.1] * 4)]
    runs += [make_run("a", 2, [0.1] * 4), make_run("b", 2, [0.1] * 4)]
    values = values_of(comparison("time_ratio", target=0.5), runs)
    # 10 s against 20 s, and against at least 30 s; the third pair: neither
    assert values == pytest.approx([1.0, math.log2(3)])
    found = judge(comparison("time_ratio", target=0.5), runs, places(3))
    assert (found.num_missing, found.num_without) == (0, 1)
    assert what_would_decide(found).startswith("1 pair without a value; ")


def test_a_run_that_ended_before_the_other_got_there_says_nothing_of_time() -> None:
    short = replace(make_run("b", 0, [0.1] * 4), times_s=np.array([0.0, 1.0, 2.0, 3.0]))
    runs = [make_run("a", 0, [0.1, 0.9, 0.9, 0.9]), short]
    assert values_of(comparison("time_ratio", target=0.5), runs) == []


def test_time_ratio_against_a_claimant_that_never_gets_there() -> None:
    """At least 30 s against 10 s, 10 s and 11 s; twice the same 10 s are no test."""
    runs = [make_run("a", s, [0.1] * 4) for s in (0, 1, 2)]
    runs += [make_run("b", s, [0.1, 0.9, 0.9, 0.9]) for s in (0, 1)]
    found = judge(comparison("time_ratio", target=0.5), runs, places(2))
    assert (found.verdict, what_would_decide(found)) == (
        "undecided",
        "seeds that differ: all are equal",
    )
    later = replace(make_run("b", 2, [0.1, 0.9, 0.9, 0.9]), times_s=np.array([0.0, 11, 20, 30]))
    found = judge(comparison("time_ratio", target=0.5), [*runs, later], places(3))
    assert found.verdict == "contradicted"


def test_gap_narrowing_compares_shortfalls_that_are_never_negative() -> None:
    runs = flat("f", [0.80, 0.80]) + flat("a", [0.78, 0.90]) + flat("b", [0.70, 0.75])
    values = values_of(comparison("gap_narrowing", full="f"), runs)
    assert values == pytest.approx([8.0, 5.0])  # 10 - 2, 5 - 0


def test_a_steadier_run_is_supported_unless_it_collapses() -> None:
    steady = [make_run("a", s, [0.1, 0.80, 0.80, 0.80 + s / 1000]) for s in range(3)]
    shaky = [make_run("b", s, [0.1, 0.80, 0.60, 0.80 + s / 1000]) for s in range(3)]
    spread = comparison("stability", window=3)
    assert judge(spread, steady + shaky, places(3)).verdict == "supported"
    fallen = [make_run("a", s, [0.8, 0.8, 0.2, 0.2]) for s in range(3)]
    found = judge(comparison("stability", window=2), fallen + shaky, places(3))
    assert found.verdict == "contradicted" and "a-s0 by 60.0 points" in found.note


def test_a_run_that_ended_before_the_comparison_time_has_no_scatter() -> None:
    steady = [make_run("a", s, [0.1, 0.80, 0.80, 0.80]) for s in range(2)]
    shaky = [make_run("b", s, [0.1, 0.80, 0.60, 0.80 + s / 10]) for s in range(2)]
    shaky[1] = replace(shaky[1], times_s=TIMES / 3)
    found = judge(comparison("stability", window=2), steady + shaky, places(2))
    assert found.test is not None and (found.test.num_values, found.num_without) == (1, 1)


def test_a_difference_may_be_of_the_clients_own_sub_models() -> None:
    own = {"own_mean": np.array([0.1, 0.6, 0.6, 0.6]), "own_worst": np.array([0.1, 0.2, 0.2, 0.2])}
    runs = [replace(run, **own) for run in flat("a", [0.8])]
    runs += [replace(run, own_mean=run.test, own_worst=run.test) for run in flat("b", [0.5])]
    for of, value in (("test", 30.0), ("own_mean", 10.0), ("own_worst", -30.0)):
        assert values_of(comparison("difference", of=of), runs) == pytest.approx([value])
    assert values_of(comparison("difference", of="own_mean"), flat("a", [1]) + runs[1:]) == []


def test_verdicts_are_firm_where_they_stand_beside_the_others() -> None:
    """Means 10 and 3, deviation 1, three pairs: p = 0.0033, and twice 0.035, then 0.070."""
    clear = flat("a", [0.80, 0.81, 0.82]) + flat("b", [0.70, 0.70, 0.73])
    weak = flat("a", [0.74, 0.74, 0.74]) + flat("b", [0.70, 0.71, 0.72])
    alone = [judge(comparison("difference"), runs, places(3)) for runs in (clear, weak)]
    assert [found.verdict for found in alone] == ["supported", "supported"]
    together = corrected([*alone, alone[1]])
    assert [found.is_firm for found in together] == [True, False, False]
    assert together[1].verdict == "supported" and together[1].p_holm == pytest.approx(
        0.0702, abs=1e-3
    )


def test_an_undecided_claim_says_what_would_decide_it() -> None:
    """A mean of one deviation takes ten pairs; three show 3.26 deviations (published tables)."""
    runs = flat("a", [0.70, 0.71, 0.72]) + flat("b", [0.70, 0.70, 0.70])  # 0, 1 and 2 points
    assert what_would_decide(judge(comparison("difference"), runs, places(4))) == (
        "1 missing pair; 10 seeds; 3 can show 3.3"
    )
    far = flat("a", [0.70, 0.80, 0.61]) + flat("b", [0.70, 0.70, 0.70])
    assert what_would_decide(judge(comparison("difference"), far, places(3))).startswith(
        "more than 100"
    )
    same = flat("a", [0.7, 0.7]) + flat("b", [0.7, 0.7])
    assert "all are equal" in what_would_decide(judge(comparison("difference"), same, places(2)))


def test_looks_that_repeat_their_version_do_not_make_a_row_steadier() -> None:
    times = np.arange(6) * 10.0
    plain = {"times_s": times, "client_steps": times, "num_untrained": 1}
    quick = replace(make_run("b", 0, [0.1, 0.5, 0.7, 0.5, 0.7, 0.5]), **plain)
    slow = replace(make_run("a", 0, [0.1, 0.5, 0.7, 0.7, 0.5, 0.5]), **plain)
    slow = replace(slow, client_steps=np.array([0.0, 1, 2, 2, 3, 3]))  # three versions, two twice
    assert slow.scatter_at(50.0, 3) == pytest.approx(quick.scatter_at(50.0, 3))
    assert slow.scatter_at(50.0, 3) == pytest.approx(np.std([0.5, 0.7, 0.5], ddof=1))
    assert np.isnan(slow.scatter_at(50.0, 4))  # the untrained model does not count
    claim = replace(comparison("stability", window=3), at_s=50.0)
    assert values_of(claim, [slow, quick]) == [pytest.approx(0.0)]
