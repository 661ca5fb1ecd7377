"""Text that is redrawn in place, and lines where nobody watches."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from fedgmr_hpc.reporting.live import LiveText, can_redraw


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Closed(Terminal):
    """A terminal whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize(("term", "can"), [("xterm", True), ("dumb", False), ("", False)])
def test_only_a_terminal_that_moves_its_cursor_is_redrawn(
    term: str, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    assert can_redraw(Terminal()) is can
    assert not can_redraw(io.StringIO())


def test_a_pipe_gets_lines_with_a_time_stamp() -> None:
    pipe, clock = io.StringIO(), SimpleNamespace(s=0.0)
    with LiveText(pipe, plain_interval_s=10, clock=lambda: clock.s) as live:
        assert live.is_due
        live.show("one")
        assert not live.is_due
        clock.s = 10.0
        assert live.is_due
        live.print("as it is")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d one\nas it is\n", pipe.getvalue())


def test_markup_in_a_text_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    with LiveText(stream, is_live=True) as live:
        live.show("[bold]a[/bold] :smile:")
        live.print("[red]above[/red] " + 40 * "x")
    assert "[bold]a[/bold] :smile:" in stream.getvalue()
    assert "[red]above[/red] " + 40 * "x" in stream.getvalue()


@pytest.mark.parametrize("is_live", [True, False])
def test_a_reader_that_has_left_stops_nothing(is_live: bool) -> None:
    with LiveText(Closed(), is_live=is_live) as live:
        live.show("one")
        live.print("two")
        live.show("three")
