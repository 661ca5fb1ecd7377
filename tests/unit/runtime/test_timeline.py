"""Spans, clocks, timeline files and the breakdown, with literal times."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedgmr_hpc.results.summary import make_report, render_breakdown
from fedgmr_hpc.runtime.timeline import (
    NAMES,
    ClockOffset,
    RankTrace,
    Spans,
    Tracer,
    align,
    breakdown,
    breakdowns,
    estimate_offset,
    read_timeline,
    write_timeline,
)
from fedgmr_hpc.storage.run_files import timeline_path
from fedgmr_hpc.storage.writer import ResultWriter


def spans_of(*rows: tuple[Any, ...]) -> Spans:
    tracer = Tracer(enabled=True)
    for row in rows:
        tracer.add(*row)
    return tracer.spans()


def times(spans: Spans) -> list[tuple[float, float]]:
    return list(zip(spans["begin_s"].tolist(), spans["end_s"].tolist(), strict=True))


def test_span_measures_from_entering_to_leaving_even_by_an_exception(monkeypatch):
    clock = SimpleNamespace(perf_counter=iter([1.0, 1.5, 2.0, 4.0]).__next__)
    monkeypatch.setattr("fedgmr_hpc.runtime.timeline.time", clock)
    tracer = Tracer(enabled=True)
    with tracer.span("train", client=3, version=7):
        pass
    with pytest.raises(KeyError), tracer.span("merge"):
        raise KeyError
    train, merge = NAMES.index("train"), NAMES.index("merge")
    assert tracer.spans().tolist() == [(train, 3, 7, 1.0, 1.5), (merge, -1, -1, 2.0, 4.0)]


def test_names_are_fixed():
    assert set(NAMES) == set(
        "receive decode train encode queue send throttle merge evaluate density".split()
    )
    for enabled in (True, False):
        tracer: Any = Tracer(enabled)
        with pytest.raises(
            ValueError,
            match=".* .got 'trian'.; did you mean 'train'",
        ):
            tracer.span("trian")
        with pytest.raises(ValueError, match="a span must be"):
            tracer.add("trian", 0.0, 1.0)


@pytest.mark.parametrize("begin_s, end_s", [(2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_impossible_times_are_refused(begin_s, end_s):
    with pytest.raises(ValueError, match="span train from"):
        Tracer(enabled=True).add("train", begin_s, end_s)


def test_a_disabled_tracer_keeps_nothing_and_costs_nearly_nothing():
    def pass_s(tracer: Tracer) -> float:
        begin_s = time.perf_counter()
        for _ in range(20_000):
            with tracer.span("train", 1, 2):
                pass
        return time.perf_counter() - begin_s

    off = Tracer(enabled=False)
    assert off.span("train") is off.span("merge", 1, 2)  # nothing is made
    off.add("train", 0.0, 1.0)
    assert len(off.spans()) == 0
    assert min(pass_s(off) for _ in range(5)) < min(pass_s(Tracer(True)) for _ in range(5)) / 2


def test_threads_may_add_at_the_same_time():
    tracer = Tracer(enabled=True)

    def add(client: int) -> None:
        for version in range(2000):
            tracer.add("send", version, version + 0.5, client, version)

    threads = [threading.Thread(target=add, args=(client,)) for client in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = tracer.spans()
    for client in range(4):
        assert spans["version"][spans["client"] == client].tolist() == list(range(2000))


def test_bytes_round_trip_and_memory_is_bounded():
    tracer = Tracer(enabled=True, max_spans=2)
    for version in range(5):
        tracer.add("train", version, version + 1.0, client=0, version=version)
    content = tracer.to_bytes()
    assert len(content) == 12 + 2 * 25
    received = Tracer.from_bytes(memoryview(content))
    assert received.spans().tolist() == tracer.spans().tolist()
    assert received.num_dropped == 3
    assert len(Tracer.from_bytes(Tracer(enabled=False).to_bytes()).spans()) == 0


def test_damaged_bytes_are_refused():
    tracer = Tracer(enabled=True)
    tracer.add("train", 1.0, 2.0)
    good = tracer.to_bytes()
    unknown_name = good[:12] + b"\xff" + good[13:]
    backwards = good[:-8] + bytes(8)  # ends at 0.0 s
    for bad in (b"", good[:-1], good + b"x", b"NOPE" + good[4:], unknown_name, backwards):
        with pytest.raises(ValueError, match="span"):
            Tracer.from_bytes(bad)


def test_offset_comes_from_the_shortest_round_trip():
    slow, fast = (10.0, 115.0, 14.0), (20.0, 120.5, 20.5)
    assert estimate_offset([slow, fast, slow]) == ClockOffset(120.5, 100.25, 0.25)


@pytest.mark.parametrize("samples", [[], [(2.0, 5.0, 1.0)], [(0.0, 0.0, float("nan"))]])
def test_impossible_round_trips_are_refused(samples):
    with pytest.raises(ValueError, match="round trips must be one or more"):
        estimate_offset(samples)


def test_align_subtracts_a_constant_offset():
    spans = spans_of(("train", 101.0, 102.0))
    assert times(align(spans, ClockOffset(101.0, 100.0, 0.1))) == [(1.0, 2.0)]
    assert times(spans) == [(101.0, 102.0)]  # a copy


def test_align_corrects_a_linear_drift_between_two_measurements():
    start, end = ClockOffset(100.0, 100.0, 0.1), ClockOffset(108.0, 104.0, 0.1)  # 0 s and 4 s here
    spans = spans_of(("train", 100.0, 102.0), ("send", 104.0, 108.0), ("merge", 99.0, 110.0))
    assert times(align(spans, start, end)) == [(0.0, 1.0), (2.0, 4.0), (-1.0, 6.0)]
    with pytest.raises(ValueError, match="measured at 108.0 s and then at 100.0 s"):
        align(spans, end, start)


RANKS = [
    RankTrace(0, "left", spans_of(("merge", 1.0, 2.0, None, 4))),
    RankTrace(
        3,
        "right",
        spans_of(("receive", 1.0, 1.25), ("queue", 1.5, 3.5, 7, 4), ("train", 1.25, 2.25, 7, 4)),
        (ClockOffset(0.5, 99.0, 0.001), ClockOffset(4.5, 99.5, 0.002)),
        num_dropped=2,
    ),
]


def test_timeline_holds_chrome_trace_events(tmp_path: Path):
    path = tmp_path / "run.trace.json"
    write_timeline(path, RANKS)
    assert [p.name for p in tmp_path.iterdir()] == ["run.trace.json"]
    timeline = json.loads(path.read_text())
    labels = [e for e in timeline["traceEvents"] if e["ph"] == "M"]
    names = {(e["name"], e["pid"], e["tid"]): e["args"].get("name") for e in labels}
    assert names["process_name", 1, 0] == "rank 0 (left)"
    assert names["process_name", 4, 0] == "rank 3 (right)"
    assert [names["thread_name", 4, tid] for tid in (1, 2, 3)] == [
        "rank 3",
        "client 7",
        "client 7 (2)",  # queue overlaps train
    ]
    spans = [e for e in timeline["traceEvents"] if e["ph"] == "X" and e["pid"] == 4]
    assert [(e["name"], e["tid"], e["ts"], e["dur"]) for e in spans] == [
        ("receive", 1, 1.0e6, 0.25e6),
        ("train", 2, 1.25e6, 1.0e6),
        ("queue", 3, 1.5e6, 2.0e6),
    ]
    assert [e["args"] for e in spans[:2]] == [{}, {"client": 7, "version": 4}]
    assert timeline["otherData"]["ranks"][1]["offsets"][0] == {
        "at_s": 0.5,
        "offset_s": 99.0,
        "error_s": 0.001,
    }


def test_timeline_reads_back(tmp_path: Path):
    write_timeline(tmp_path / "t.json", RANKS)
    left, right = read_timeline(tmp_path / "t.json")
    assert left.spans.tolist() == RANKS[0].spans.tolist()
    assert right.spans.tolist() == RANKS[1].spans[[0, 2, 1]].tolist()  # by begin
    assert (right.rank, right.host, right.offsets, right.num_dropped) == (
        3,
        "right",
        RANKS[1].offsets,
        2,
    )


def test_neighbours_never_overlap_in_a_viewer(tmp_path: Path):
    edges = np.cumsum(np.random.default_rng(0).uniform(1e-7, 1e-3, 300)) + 98_765.4321
    rows = [("train", a, b, 0) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    write_timeline(tmp_path / "t.json", [RankTrace(1, "h", spans_of(*rows))])
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    spans = [(e["ts"] * 1000, e["dur"] * 1000, e["tid"]) for e in events if e["ph"] == "X"]
    assert all(ts == int(ts) and dur == int(dur) and tid == 1 for ts, dur, tid in spans)
    assert all(
        a[0] + a[1] == b[0] for a, b in zip(spans[:-1], spans[1:], strict=True)
    )  # whole nanoseconds


def test_a_failed_write_leaves_the_old_timeline(tmp_path: Path):
    path = tmp_path / "t.json"
    write_timeline(path, RANKS[:1])
    with pytest.raises(TypeError):
        write_timeline(path, [RANKS[0], RankTrace(1, object(), RANKS[1].spans)])  # type: ignore
    assert [trace.rank for trace in read_timeline(path)] == [0]
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_and_damaged_timelines_are_refused(tmp_path: Path):
    path = tmp_path / "t.json"
    write_timeline(path, RANKS)
    good = path.read_text()
    for text, message in [
        (good[:-20], "no timeline, or a damaged one"),
        ("[]", "a JSON file, but no fedgmr_hpc timeline"),
        ('{"traceEvents": []}', "a JSON file, but no fedgmr_hpc timeline"),
        (good.replace('"train"', '"lunch"'), "damaged timeline: KeyError: 'lunch'"),
        (good.replace('"dur": 1000000.0', '"dur": -1.0'), "damaged timeline: ValueError"),
        (good.replace('"num_spans": 3', '"num_spans": 4'), "rank 3 has 3 of 4 spans"),
        (good.replace('"traceEvents"', '"events"'), "damaged timeline: KeyError"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            read_timeline(path)
        assert str(path) in str(caught.value)
    path.write_bytes(b"\x89HDF\r\n")
    with pytest.raises(ValueError, match="no timeline"):
        read_timeline(path)


def test_breakdown_counts_every_moment_of_a_category_once():
    spans = spans_of(
        ("receive", -5.0, 1.0),  # clipped to 1 s
        ("decode", 1.0, 2.0),
        ("train", 2.0, 6.0),
        ("train", 3.0, 4.0),  # inside the other
        ("queue", 5.0, 7.0),
        ("send", 6.0, 7.5),  # overlaps queue, and not train
        ("encode", 8.0, 8.5),
        ("evaluate", 20.0, 30.0),  # outside
    )
    assert breakdown(spans, 0.0, 10.0) == {
        "compute": 4.0,
        "serialise": 1.5,
        "send": 2.5,
        "wait": 1.0,
        "merge": 0.0,
        "evaluate": 0.0,
        "idle": 2.0,  # 7.5 to 8, 8.5 to 10
    }


def test_breakdown_of_nothing_is_idle():
    assert breakdown(spans_of(), 1.0, 3.0) == dict.fromkeys(breakdown(spans_of(), 0, 0), 0.0) | {
        "idle": 2.0
    }
    with pytest.raises(ValueError, match="breakdown from 3.0 to 1.0 s"):
        breakdown(spans_of(), 3.0, 1.0)


def test_every_span_name_has_one_category():
    for name in NAMES:
        seconds = breakdown(spans_of((name, 0.0, 1.0)), 0.0, 1.0)
        assert sorted(seconds.values())[-2:] == [0.0, 1.0] and seconds["idle"] == 0.0


def test_ranks_share_the_window_from_first_begin_to_last_end():
    seconds = breakdowns([*RANKS, RankTrace(4, "lost", spans_of())])  # 1.0 to 3.5 s
    assert [(rank, row["idle"]) for rank, row in seconds.items()] == [(0, 1.5), (3, 0.0), (4, 2.5)]
    assert breakdowns([]) == {}


def test_breakdown_as_a_table():
    assert render_breakdown(breakdowns(RANKS)).splitlines() == [
        "rank  compute  serialise   send   wait  merge  evaluate   idle",
        "--------------------------------------------------------------",
        "   0    0.000      0.000  0.000  0.000  1.000     0.000  1.500",
        "   3    1.000      0.000  2.000  0.250  0.000     0.000  0.000",
    ]


def test_timeline_lies_beside_the_result():
    assert timeline_path("results/a.b.h5") == Path("results/a.b.trace.json")


def test_the_report_shows_the_breakdown_of_a_timeline_beside_a_result(tmp_path: Path):
    path = tmp_path / "run.h5"
    sizes = {"num_clients": 1, "num_weights": 1, "num_ranks": 2}
    texts: dict[str, Any] = {"config_yaml": "seed: 1", "layout_json": "{}", "provenance": {}}
    with ResultWriter(path, **sizes, **texts) as writer:
        writer.finish("finished")
    assert "seconds of each rank" not in make_report([path], tmp_path)
    write_timeline(timeline_path(path), RANKS)
    report = make_report([path], tmp_path)
    assert "run: seconds of each rank; 2 spans were dropped and count as idle" in report
    assert render_breakdown(breakdowns(RANKS)) in report
    timeline_path(path).write_text("{")
    assert "run: no breakdown of the time: " in make_report([path], tmp_path)
