"""Live line, plain lines and log file, with a hand-set clock and a pretended terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedgmr_hpc.runtime.progress import Progress
from fedgmr_hpc.storage.rows import EvaluationRow

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", re.MULTILINE)
NAN = float("nan")
ERASED = "\r\x1b[2K"  # what begins a line anew
HIDDEN_CURSOR, SHOWN_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until a test moves `clock.s`."""
    clock = SimpleNamespace(s=100.0)
    fake = SimpleNamespace(monotonic=lambda: clock.s)
    monkeypatch.setattr("fedgmr_hpc.runtime.progress.time", fake)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return clock


def start(tmp_path: Path, stderr: io.StringIO, mode: Any = "auto", **limits: Any) -> Progress:
    totals = {"total_rounds": 500, "total_s": None, **limits}
    with contextlib.redirect_stderr(stderr):
        return Progress(mode, log_path=tmp_path / "logs" / "run.log", **totals)


def update(progress: Progress, round: int, now_s: float) -> None:
    progress.update(
        round,
        now_s,
        mean_density=0.25,
        server_up_bytes=2_000_000 * round,
        server_down_bytes=1_500_000 * round,
    )


def evaluation(**changes: Any) -> EvaluationRow:
    values = {"version": 7, "round": 7, "now_s": 9.5, "val_accuracy": 0.5123, "val_loss": 1.0}
    values |= {"test_accuracy": NAN, "test_loss": NAN, "mean_density": 0.25}
    return EvaluationRow(**{**values, "model_xxh3": 1, "wall_s": 3.0, **changes})


def plain(text: str) -> list[str]:
    """Lines without their time stamps; every line must have one."""
    assert all(STAMP.match(line) for line in text.splitlines())
    return STAMP.sub("", text).splitlines()


def log_lines(tmp_path: Path) -> list[str]:
    return plain((tmp_path / "logs" / "run.log").read_text())


def test_plain_lines_come_every_five_seconds_and_at_evaluations(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    pipe = io.StringIO()
    with start(tmp_path, pipe) as progress:
        update(progress, 1, 2.0)
        for round in (2, 3, 4):
            clock.s += 2
            update(progress, round, 2.0 * round)
        progress.evaluated(evaluation())
        progress.note("density of client 3 restored to 0.5")
    first = "round 1/500 | t 2.0 s | density 0.250 | server 2.0 MB up 1.5 MB down"
    fourth = "round 4/500 | ETA 0:16:32 | t 8.0 s | density 0.250 | server 8.0 MB up 6.0 MB down | "
    expected = [
        first,
        fourth + "0.5 rounds/s",
        "evaluation | round 7 | version 7 | t 9.5 s | val 51.23 % test - | density 0.250",
        "density of client 3 restored to 0.5",
    ]
    assert plain(pipe.getvalue()) == expected
    assert log_lines(tmp_path) == expected


def test_eta_follows_the_limit_that_comes_first(tmp_path: Path, clock: SimpleNamespace) -> None:
    pipe = io.StringIO()
    with start(tmp_path, pipe, total_s=100.0) as progress:
        update(progress, 300, 60.0)  # resumed: the pace counts from here
        clock.s += 10
        update(progress, 310, 80.0)
    assert "round 310/500 | ETA 0:00:10 | t 80.0/100 s |" in pipe.getvalue()


def test_no_limit_no_eta(tmp_path: Path, clock: SimpleNamespace) -> None:
    pipe = io.StringIO()
    with start(tmp_path, pipe, total_rounds=None) as progress:
        update(progress, 1, 2.0)
        clock.s += 10
        update(progress, 3, 6.0)
    assert "round 3 | t 6.0 s |" in pipe.getvalue() and "ETA" not in pipe.getvalue()


def test_the_live_line_is_rewritten_at_most_five_times_a_second(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    terminal = Terminal()
    with start(tmp_path, terminal) as progress:
        for round in range(1, 101):
            update(progress, round, 2.0 * round)
            clock.s += 0.0625
        drawn = terminal.getvalue().split(ERASED)
    assert len(drawn) == 25  # 100 updates in 6.25 s, one in four is due
    assert "\n" not in "".join(drawn)
    assert terminal.getvalue().count("\n") == 1  # below the last line
    assert terminal.getvalue().endswith(SHOWN_CURSOR)
    assert "round 100/500" in terminal.getvalue()
    assert [line.split(" |")[0] for line in log_lines(tmp_path)] == [
        "round 1/500",
        "round 81/500",
        "round 100/500",
    ]


def test_the_live_line_fits_the_terminal(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "20")
    with start(tmp_path, terminal) as progress:
        update(progress, 1, 2.0)
    assert terminal.getvalue().split(ERASED)[0].endswith("round 1/500 | t 2.0 ")
    assert "MB down" in log_lines(tmp_path)[0]


def test_notes_and_warnings_stand_above_the_live_line(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    terminal = Terminal()
    with start(tmp_path, terminal) as progress:
        update(progress, 1, 2.0)
        logging.getLogger("fedgmr_hpc.runtime.server").warning("rank 3 is late")
        line = "round 1/500 | t 2.0 s | density 0.250 | server 2.0 MB up 1.5 MB down"
        before, after = terminal.getvalue().split(ERASED)
    warning, _, redrawn = after.partition("\n")
    shown = before.removeprefix(HIDDEN_CURSOR + SHOWN_CURSOR)
    assert line.startswith(shown) and redrawn == shown
    assert plain(warning) == ["rank 3 is late"]
    assert "rank 3 is late" in log_lines(tmp_path)


def test_off_keeps_the_log_file_and_shows_warnings_only(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    terminal = Terminal()
    with start(tmp_path, terminal, "quiet") as progress:
        update(progress, 1, 2.0)
        progress.note("quiet")
        logging.getLogger("fedgmr_hpc.runtime.server").warning("rank 3 is late")
    assert plain(terminal.getvalue()) == ["rank 3 is late"]
    assert len(log_lines(tmp_path)) == 3


def test_close_takes_the_handlers_away_and_a_later_run_appends(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    pipe = io.StringIO()
    before = list(logging.getLogger("fedgmr_hpc").handlers)
    for text in ("first", "second"):
        with start(tmp_path, pipe) as progress:
            progress.note(text)
    assert logging.getLogger("fedgmr_hpc").handlers == before
    assert log_lines(tmp_path) == ["first", "second"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_log_file_that_cannot_be_written_is_said_once_and_stops_nothing() -> None:
    stderr = io.StringIO()
    limits: dict[str, Any] = {"total_rounds": 9, "total_s": None}
    with (
        contextlib.redirect_stderr(stderr),
        Progress("plain", log_path="/dev/full", **limits) as it,
    ):
        for round in range(3):
            it.note(f"round {round}")
    lost = "log file /dev/full: [Errno 28] No space left on device; it is not whole"
    assert sorted(plain(stderr.getvalue())) == [lost, "round 0", "round 1", "round 2"]
