"""A measurement is compared with an earlier one by its ratios."""

from __future__ import annotations

import argparse
import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from fedgmr_hpc.bench import benchmarks
from fedgmr_hpc.bench.baseline import compare, measurements, read_baseline
from fedgmr_hpc.bench.benchmarks import Request, run_bench
from fedgmr_hpc.bench.case import Benchmark
from fedgmr_hpc.cli.arguments import share


def measured(speed: float, cost: float, name: str = "all full") -> Benchmark:
    row = {"densities": name, "s": 1.0, "of copy": speed, "sorts": cost}
    return Benchmark([row], {}, ("densities",), {"of copy": "higher", "sorts": "lower"})


def record(found: Benchmark) -> dict[str, Any]:
    return {"bench": "merge", "quick": True, "rows": found.rows}


@pytest.mark.parametrize(
    ("speed", "cost", "within"),
    [
        (0.5, 2.0, [True, True]),
        (0.46, 2.18, [True, True]),
        (0.44, 2.0, [False, True]),
        (0.5, 2.3, [True, False]),
        (5.0, 0.2, [True, True]),  # better is never wrong
    ],
)
def test_a_ratio_may_be_worse_by_the_tolerance(
    speed: float, cost: float, within: list[bool]
) -> None:
    rows = compare(record(measured(0.5, 2.0)), measured(speed, cost), 0.1)
    assert [row["within"] for row in rows] == within
    assert [row["ratio"] for row in rows] == ["of copy", "sorts"]


def test_a_row_that_is_gone_is_told_and_a_new_one_is_welcome() -> None:
    rows = compare(record(measured(0.5, 2.0)), measured(0.5, 2.0, "level high"), 0.1)
    assert [(row["row"], row["within"]) for row in rows] == [
        *[("all full", False)] * 2,
        *[("level high", True)] * 2,
    ]


def test_a_ratio_that_a_row_does_not_have_is_passed_over() -> None:
    found = measured(0.5, 2.0)
    found.rows[0]["sorts"] = None
    assert len(compare(record(found), found, 0.1)) == 1


def test_times_alone_are_not_compared() -> None:
    with pytest.raises(ValueError, match="--baseline must be absent"):
        compare(record(measured(1, 1)), Benchmark([{"s": 1.0}], {}), 0.1)


def test_the_last_line_of_the_benchmark_counts(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        record(measured(0.5, 2.0)),
        record(measured(0.7, 2.0)),
        {"bench": "mask", "quick": True},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_baseline(path, "merge", quick=True)["rows"][0]["of copy"] == 0.7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("", "there is none in it"),
        ('{"bench": "mask", "quick": true}', "there is none in it"),
        ("a table", "a line that no benchmark has printed"),
    ],
)
def test_without_a_baseline_one_line_says_how_to_make_it(
    text: str | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "base.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_baseline(path, "merge", quick=True)
    assert reason in str(caught.value)
    assert f"bench merge --quick --json >> {path}" in str(caught.value)


def test_a_worse_ratio_ends_in_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "base.jsonl"
    monkeypatch.setitem(benchmarks.HERE, "merge", lambda repeats: measured(0.5, 2.0))
    assert run_bench(Request("merge", quick=True)) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    path.write_text(line)  # what is printed is what is read
    assert {"cpu", "cores", "torch", "mpi", "commit"} <= json.loads(line)["system"].keys()
    request = Request("merge", quick=True, baseline=path, tolerance=0.1)
    assert run_bench(request) == 0
    monkeypatch.setitem(benchmarks.HERE, "merge", lambda repeats: measured(0.4, 2.0))
    assert run_bench(request) == 1
    assert "-20" in capsys.readouterr().out


def test_a_log_has_every_number_and_what_it_was_compared_with() -> None:
    found = Benchmark(
        [{"densities": "all full", "merge ms": 2.5, "up/s": 7, "of copy": 0.4, "within": True}],
        {},
        ("densities",),
        {"of copy": "higher"},
    )
    before = {"bench": "merge", "rows": [{"densities": "all full", "of copy": 0.5}]}
    lines = [*measurements("bench merge", found, compare(before, found, 0.1), 0.1)]
    assert [astuple(line) for line in lines] == [
        ("bench merge", "all full", "merge ms", 2.5, "ms", None, None, None, None),
        ("bench merge", "all full", "up/s", 7, "1/s", None, None, None, None),
        ("bench merge", "all full", "of copy", 0.4, "1", "higher", 0.5, 0.1, False),
    ]


def test_a_log_grows_by_a_line_for_each_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "perf.jsonl"
    monkeypatch.setitem(benchmarks.HERE, "merge", lambda repeats: measured(0.5, 2.0))
    for _ in range(2):
        assert run_bench(Request("merge", quick=True, perf_log=path)) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["figure"] for line in lines] == ["s", "of copy", "sorts"] * 2
    assert {"utc", "host", "cpu", "cores", "torch", "mpi", "commit"} <= lines[0].keys()
    assert lines[0]["check"] == "bench merge --quick"


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.25", 0.25), ("0", 0.0)])
def test_a_tolerance_is_a_number_or_a_percentage(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["-1%", "100%", "1", "10%x", "ten", ""])
def test_a_tolerance_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a share such as 0.1 or 10%"):
        share(text)
