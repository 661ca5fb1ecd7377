"""A measurement is compared with an earlier one by its ratios."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from fedgmr_hpc.bench import benchmarks
from fedgmr_hpc.bench.baseline import compare, measurements, read_baseline
from fedgmr_hpc.bench.benchmarks import Request, run_bench
from fedgmr_hpc.bench.case import Benchmark, Shape
from fedgmr_hpc.cli.arguments import share
from fedgmr_hpc.cli.command_line import main

SHAPE = Shape(("densities",), {"of copy": "higher", "sorts": "lower"})
ASKED = {"bench": "merge", "quick": True}


def measured(speed: float, cost: float, name: str = "all full") -> Benchmark:
    return Benchmark([{"densities": name, "s": 1.0, "of copy": speed, "sorts": cost}])


def record(found: Benchmark) -> dict[str, Any]:
    return ASKED | {"rows": found.rows}


@pytest.fixture
def merge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Benchmark], None]:
    """What `bench merge` finds."""

    def finds(found: Benchmark) -> None:
        monkeypatch.setitem(benchmarks.SHAPES, "merge", SHAPE)
        monkeypatch.setitem(benchmarks.HERE, "merge", lambda repeats: found)

    return finds


@pytest.fixture
def measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(request: Request) -> Benchmark:
        pytest.fail("it was measured")

    monkeypatch.setattr(benchmarks, "measure", measure)


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
    rows = compare(record(measured(0.5, 2.0)), measured(speed, cost), SHAPE, 0.1)
    assert [row["within"] for row in rows] == within
    assert [row["ratio"] for row in rows] == ["of copy", "sorts"]


def test_a_row_that_is_gone_is_told_and_a_new_one_is_welcome() -> None:
    rows = compare(record(measured(0.5, 2.0)), measured(0.5, 2.0, "level high"), SHAPE, 0.1)
    assert [(row["row"], row["within"]) for row in rows] == [
        *[("all full", False)] * 2,
        *[("level high", True)] * 2,
    ]


def test_a_ratio_that_a_row_does_not_have_is_passed_over() -> None:
    found = measured(0.5, 2.0)
    found.rows[0]["sorts"] = None
    assert len(compare(record(found), found, SHAPE, 0.1)) == 1


@pytest.mark.usefixtures("measures_nothing")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["links", "--baseline", "f"], "--baseline must be absent for `bench links --ranks 3`"),
        (["mask", "--perf-log", "/nowhere/x"], "--perf-log must be a file to write"),
    ],
)
def test_what_is_refused_is_refused_before_minutes_of_measuring(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert line in capsys.readouterr().err


def test_the_last_line_of_the_benchmark_counts(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        record(measured(0.5, 2.0)),
        record(measured(0.7, 2.0)),
        {"bench": "mask", "quick": True},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_baseline(path, ASKED, SHAPE)["rows"][0]["of copy"] == 0.7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file or directory"),
        ("", "there is none in it"),
        ('{"bench": "mask", "quick": true}', "there is none in it"),
        ("a table", "a line that no benchmark has printed"),
        ('{"bench": "merge", "quick": true}', "a line that no benchmark has printed"),
        ('{"bench": "merge", "quick": true, "rows": ["densities"]}', "no benchmark has printed"),
        (
            '{"bench": "merge", "quick": true, "rows": [{"of copy": 0.5}]}',
            "the rows of its last one lack 'densities'",
        ),
        (
            '{"bench": "merge", "quick": true, "rows": [{"densities": "x", "of copy": "0.5"}]}',
            "its last one has no ratios",
        ),
    ],
)
def test_without_a_baseline_one_line_says_how_to_make_it(
    text: str | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "base.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_baseline(path, ASKED, SHAPE)
    assert reason in str(caught.value)
    assert f"bench merge --quick --json >> {path}" in str(caught.value)


def test_ranks_are_part_of_what_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    before = {"bench": "round", "quick": False, "rows": measured(0.5, 2.0).rows}
    path.write_text("".join(json.dumps({**before, "ranks": ranks}) + "\n" for ranks in (5, 3)))
    assert read_baseline(path, {**before, "ranks": 5}, SHAPE)["ranks"] == 5
    with pytest.raises(ValueError, match="none in it; make it by .* bench round --ranks 9 --json"):
        read_baseline(path, {**before, "ranks": 9}, SHAPE)


@pytest.mark.usefixtures("measures_nothing")
def test_a_measurement_over_other_ranks_is_no_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, rows = tmp_path / "base.jsonl", [{"clients": 100, "of ceiling": 1.0}]
    line = {"bench": "clients", "quick": True, "ranks": 3, "rows": rows}
    path.write_text(json.dumps(line))
    words = ["bench", "clients", "--quick", "--ranks", "5", "--baseline", str(path)]
    assert main(words) == 2
    assert "the JSON line of `bench clients --quick --ranks 5`" in capsys.readouterr().err


def test_a_worse_ratio_ends_in_an_exit_code(
    merge: Callable[[Benchmark], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "base.jsonl"
    merge(measured(0.5, 2.0))
    assert run_bench(Request("merge", quick=True)) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    path.write_text(line)  # what is printed is what is read
    assert {"cpu", "cores", "torch", "mpi", "commit"} <= json.loads(line)["system"].keys()
    request = Request("merge", quick=True, baseline=path, tolerance=0.1)
    assert run_bench(request) == 0
    merge(measured(0.4, 2.0))
    assert run_bench(request) == 1
    assert "-20" in capsys.readouterr().out


def test_a_log_has_every_number_and_what_it_was_compared_with() -> None:
    found = Benchmark(
        [{"densities": "all full", "merge ms": 2.5, "up/s": 7, "of copy": 0.4, "within": True}]
    )
    before = {"bench": "merge", "rows": [{"densities": "all full", "of copy": 0.5}]}
    compared = compare(before, found, SHAPE, 0.1)
    lines = [*measurements("bench merge", found, SHAPE, compared, 0.1)]
    assert [astuple(line) for line in lines] == [
        ("bench merge", "all full", "merge ms", 2.5, "ms", None, None, None, None),
        ("bench merge", "all full", "up/s", 7, "1/s", None, None, None, None),
        ("bench merge", "all full", "of copy", 0.4, "1", "higher", 0.5, 0.1, False),
    ]


def test_a_log_grows_by_a_line_for_each_number(
    merge: Callable[[Benchmark], None], tmp_path: Path
) -> None:
    path = tmp_path / "perf.jsonl"
    merge(measured(0.5, 2.0))
    for _ in range(2):
        assert run_bench(Request("merge", quick=True, perf_log=path)) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["figure"] for line in lines] == ["s", "of copy", "sorts"] * 2
    assert {"utc", "host", "cpu", "cores", "torch", "mpi", "commit"} <= lines[0].keys()
    assert lines[0]["check"] == "bench merge --quick"


@pytest.mark.parametrize(
    ("what", "summary", "check"),
    [
        ("round", {}, "bench round --ranks 5"),
        ("memory", {}, "bench memory --ranks 5"),
        ("gpu", {"device": "H200"}, "bench gpu on H200"),
    ],
)
def test_a_log_says_over_how_many_ranks_and_on_which_gpu(
    what: str, summary: dict[str, str], check: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = dict.fromkeys(benchmarks.SHAPES[what].keys, "a") | {"s": 1.0}
    monkeypatch.setattr(benchmarks, "measure", lambda request: Benchmark([row], summary))
    assert run_bench(Request(what, ranks=5, perf_log=tmp_path / "log")) == 0
    assert json.loads((tmp_path / "log").read_text())["check"] == check


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.25", 0.25), ("0", 0.0)])
def test_a_tolerance_is_a_number_or_a_percentage(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["-1%", "100%", "1", "10%x", "ten", ""])
def test_a_tolerance_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a share such as 0.1 or 10%"):
        share(text)
