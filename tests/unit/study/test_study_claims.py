"""Verdicts on claims, from runs of a few numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedgmr_hpc.study.claims import Comparison, decide, judge, paired_values
from fedgmr_hpc.study.measures import Run
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


def comparison(kind: str, **words: object) -> Comparison:
    values = {"name": "claim", "kind": kind, "a": "a", "b": "b", **words}
    spec = TypeAdapter(ClaimSpec).validate_python(values)
    return Comparison(spec, "a", "b", "f" if "full" in words else None, at_s=30.0, last=2)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 2.0), "SUPPORTED"),
        ((-2.0, -0.1), "NOT SUPPORTED"),
        ((-0.1, 2.0), "INCONCLUSIVE"),
        ((0.0, 2.0), "INCONCLUSIVE"),
        (None, "INCONCLUSIVE"),
    ],
)
def test_an_interval_decides(interval: tuple[float, float] | None, verdict: str) -> None:
    assert decide(interval) == verdict


def test_a_steady_difference_is_supported_and_its_reverse_is_not() -> None:
    runs = flat("a", [0.80, 0.82, 0.84]) + flat("b", [0.70, 0.71, 0.75])
    found = judge(comparison("difference"), runs, 3)
    assert found.verdict == "SUPPORTED" and found.num_pairs == 3 and found.num_missing == 0
    assert found.value == pytest.approx(10.0)  # 10, 11, 9
    half = 4.302652729911275 / math.sqrt(3)
    assert found.interval == pytest.approx((10 - half, 10 + half))
    turned = [
        make_run({"a": "b", "b": "a"}[run.row], run.seed, [float(x) for x in run.test])
        for run in runs
    ]
    assert judge(comparison("difference"), turned, 3).verdict == "NOT SUPPORTED"


def test_three_scattered_pairs_of_one_sign_are_inconclusive() -> None:
    runs = flat("a", [0.71, 0.90, 0.72]) + flat("b", [0.70, 0.70, 0.70])
    assert judge(comparison("difference"), runs, 3).verdict == "INCONCLUSIVE"


def test_missing_pairs_are_counted_and_one_pair_decides_nothing() -> None:
    runs = flat("a", [0.8, 0.8, 0.8]) + flat("b", [0.1])
    found = judge(comparison("difference"), runs, 3)
    assert (found.verdict, found.num_pairs, found.num_missing) == ("INCONCLUSIVE", 1, 2)
    assert "one pair" in found.note
    nothing = judge(comparison("difference"), flat("a", [0.8]), 3)
    assert nothing.num_missing == 3 and math.isnan(nothing.value)


def test_where_keeps_other_conditions_out() -> None:
    runs = flat("a", [0.8, 0.8]) + flat("b", [0.7, 0.7])
    runs += [make_run("a", 2, [0.1] * 4, "low"), make_run("b", 2, [0.9] * 4, "low")]
    assert paired_values(comparison("difference", where={"level": "high"}), runs) == pytest.approx(
        [10.0, 10.0]
    )


def test_time_ratio_counts_halvings_and_who_never_gets_there() -> None:
    runs = [make_run("a", 0, [0.1, 0.9, 0.9, 0.9]), make_run("b", 0, [0.1, 0.1, 0.9, 0.9])]
    runs += [make_run("a", 1, [0.1, 0.9, 0.9, 0.9]), make_run("b", 1, [0.1] * 4)]
    runs += [make_run("a", 2, [0.1] * 4), make_run("b", 2, [0.1] * 4)]
    values = paired_values(comparison("time_ratio", target=0.5), runs)
    assert values == pytest.approx([1.0, math.inf])  # 10 s against 20 s; the third pair: neither
    found = judge(comparison("time_ratio", target=0.5), runs, 3)
    assert (found.verdict, found.num_missing, found.value) == ("SUPPORTED", 1, math.inf)


def test_three_scattered_time_ratios_of_one_sign_are_inconclusive() -> None:
    """Their bootstrapped median lies between them, so that zero would never be inside."""
    courses = ([0.1, 0.1, 0.9, 0.9], [0.1, 0.9, 0.9, 0.9], [0.1, 0.1, 0.9, 0.9])
    runs = [make_run("a", seed, course) for seed, course in enumerate(courses)]
    runs += [make_run("b", seed, [0.1, 0.1, 0.1, 0.9]) for seed in range(3)]
    found = judge(comparison("time_ratio", target=0.5), runs, 3)  # 30 s against 20, 10 and 20 s
    short, long = math.log2(1.5), math.log2(3)
    mean = (2 * short + long) / 3
    half = 4.302652729911275 * np.std([short, long, short], ddof=1) / math.sqrt(3)
    assert found.interval == pytest.approx((mean - half, mean + half))
    assert found.value == pytest.approx(short) and found.verdict == "INCONCLUSIVE"


def test_time_ratio_against_a_claimant_that_never_gets_there() -> None:
    runs = [make_run("a", s, [0.1] * 4) for s in (0, 1)]
    runs += [make_run("b", s, [0.1, 0.9, 0.9, 0.9]) for s in (0, 1)]
    assert judge(comparison("time_ratio", target=0.5), runs, 2).verdict == "NOT SUPPORTED"


def test_gap_narrowing_compares_shortfalls_that_are_never_negative() -> None:
    runs = flat("f", [0.80, 0.80]) + flat("a", [0.78, 0.90]) + flat("b", [0.70, 0.75])
    values = paired_values(comparison("gap_narrowing", full="f"), runs)
    assert values == pytest.approx([8.0, 5.0])  # 10 - 2, 5 - 0


def test_a_steadier_run_is_supported_unless_it_collapses() -> None:
    steady = [make_run("a", s, [0.1, 0.80, 0.80, 0.80 + s / 1000]) for s in range(3)]
    shaky = [make_run("b", s, [0.1, 0.80, 0.60, 0.80 + s / 1000]) for s in range(3)]
    spread = comparison("stability", window=3)
    assert judge(spread, steady + shaky, 3).verdict == "SUPPORTED"
    fallen = [make_run("a", s, [0.8, 0.8, 0.2, 0.2]) for s in range(3)]
    found = judge(comparison("stability", window=2), fallen + shaky, 3)
    assert found.verdict == "NOT SUPPORTED" and "a-s0 by 60.0 points" in found.note
