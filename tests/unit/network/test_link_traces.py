"""Trace files: what they say when, and what is wrong with them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.network.link_traces import LinkTrace, load_trace

HEADER = "time_s,client,direction,bytes_per_s\n"
STEPS = {(0, "up"): [(0.0, 10.0), (4.0, 5.0)], (-1, "down"): [(0.0, 7.0), (1.5, 8.0)]}


@pytest.mark.parametrize(
    ("at_s", "rate"), [(0.0, 10.0), (3.999, 10.0), (4.0, 5.0), (8.0, 5.0), (1e9, 5.0)]
)
def test_without_a_period_the_last_speed_stays(at_s, rate):
    assert LinkTrace(STEPS).rate(0, "up", at_s) == rate


@pytest.mark.parametrize(
    ("at_s", "rate"), [(3.999, 10.0), (4.0, 5.0), (7.999, 5.0), (8.0, 10.0), (12.0, 5.0)]
)
def test_with_a_period_the_trace_begins_anew(at_s, rate):
    assert LinkTrace(STEPS, 8.0).rate(0, "up", at_s) == rate


def test_a_link_without_a_trace_has_no_speed():
    trace = LinkTrace(STEPS)
    assert [trace.rate(*link, 1.0) for link in ((0, "down"), (1, "up"), (-1, "up"))] == [None] * 3


def test_the_steps_of_all_links_are_changes():
    once, again = LinkTrace(STEPS), LinkTrace(STEPS, 8.0)
    assert [once.next_change_s(at_s) for at_s in (0.0, 1.5, 4.0)] == [1.5, 4.0, math.inf]
    assert [again.next_change_s(at_s) for at_s in (0.0, 1.5, 4.0, 8.0)] == [1.5, 4.0, 8.0, 9.5]


def test_no_trace_never_changes():
    assert LinkTrace({}, 5.0).next_change_s(3.0) == math.inf


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), st.floats(1e-3, 1e3), st.integers(0, 99)
)
def test_every_step_of_every_lap_is_met_whatever_the_rounding(gaps, last_gap, first_lap):
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    period_s = times[-1] + last_gap
    trace = LinkTrace({(0, "up"): [(t, float(n)) for n, t in enumerate(times)]}, period_s)
    now_s = first_lap * period_s
    for count in range(1, 40):
        now_s = trace.next_change_s(now_s)
        assert now_s == (first_lap + count // len(times)) * period_s + times[count % len(times)]
        assert trace.rate(0, "up", now_s) == count % len(times)


# --- files


def write(tmp_path, text: str) -> str:
    path = tmp_path / "speeds.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_a_file_is_read(tmp_path):
    rows = "0,2,up,10\n0,-1,down,1e6\n\n4.5, 2 ,up , 5\n"
    trace = load_trace(write(tmp_path, HEADER + rows), 3)
    assert [trace.rate(2, "up", at_s) for at_s in (4.4, 4.5)] == [10.0, 5.0]
    assert trace.rate(-1, "down", 9.0) == 1e6
    assert trace.next_change_s(4.5) == math.inf


def test_a_file_from_a_spreadsheet_is_read(tmp_path):
    text = "\ufeff" + HEADER + "0,0,down,3\n2,0,down,4\n"
    trace = load_trace(write(tmp_path, text.replace("\n", "\r\n")), 1, 5.0)
    assert [trace.rate(0, "down", at_s) for at_s in (0.0, 2.0, 5.0)] == [3.0, 4.0, 3.0]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the header must be time_s,client,direction,bytes_per_s .got ''"),
        ("time,client\n", 1, "the header must be .* .got 'time,client'"),
        (HEADER, 1, "the file must have a row of a link"),
        (HEADER + "0,0,up\n", 2, "a row must have 4 fields .got 3"),
        (HEADER + "0,0,up,1\nx,0,up,1\n", 3, "time_s must be a finite number from 0 on .got 'x'"),
        (HEADER + "-1,0,up,1\n", 2, "time_s must be .* .got '-1'"),
        (HEADER + "\n0,3,up,1\n", 3, "client must be between -1, the server, and 2 .got '3'"),
        (HEADER + "0,1.5,up,1\n", 2, "client must be .* .got '1.5'"),
        (HEADER + "0,-2,up,1\n", 2, "client must be .* .got '-2'"),
        (HEADER + "0,nan,up,1\n", 2, "client must be .* .got 'nan'"),
        (HEADER + "0,0,UP,1\n", 2, "direction must be 'down' or 'up' .got 'UP'"),
        (HEADER + "0,0,up,0\n", 2, "bytes_per_s must be a finite number more than 0 .got '0'"),
        (HEADER + "0,0,up,inf\n", 2, "bytes_per_s must be .* .got 'inf'"),
        (HEADER + "0,0,up,\n", 2, "bytes_per_s must be .* .got ''"),
        (HEADER + "1,0,up,1\n", 2, "time_s must be 0 in the first row of a link .got 1"),
        (HEADER + "0,0,up,1\n0,0,up,2\n", 3, "time_s must be more than 0, the one before .got 0"),
        (HEADER + "0,0,up,1\n8,0,up,2\n", 3, "time_s must be less than .*, 8 .got 8"),
        (HEADER.encode() + b"0,0,up,1\n0,\xff,up,1\n", 3, "text must be UTF-8 .got byte 0xff"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, line, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=rf"^links\.trace: {path} line {line}: {message}"):
        load_trace(path, 3, 8.0)


def test_a_missing_file_is_named(tmp_path):
    message = r"^links\.trace must be a readable file \(got '.*/none\.csv'\): No such file"
    with pytest.raises(ValueError, match=message):
        load_trace(str(tmp_path / "none.csv"), 3)
