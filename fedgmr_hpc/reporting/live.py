"""Text that is redrawn in place: one line of a run's course, or a table of runs.

    with LiveText() as live:
        while work():
            live.show(f"{done} of {total}")

Where somebody watches, Rich redraws the text at most a few times a second. Elsewhere, in a pipe, a
log or a dumb terminal, each text is a line with a time stamp, and lines are further apart.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from fedgmr_hpc.reporting.redrawing import RedrawnText

LIVE_INTERVAL_S = 0.2
PLAIN_INTERVAL_S = 10.0
STAMP = "%Y-%m-%d %H:%M:%S"


class LiveText:
    """Show the newest text only. A context manager, so that an error leaves a clean terminal.

    A stream that cannot be written any more, such as a terminal that was closed, stops nothing.

    Args:
        stream: where the text goes, stderr by default.
        is_live: whether to redraw in place; by default, whether `stream` is a terminal that can.
        live_interval_s: least time between two texts that are redrawn in place.
        plain_interval_s: least time between two lines elsewhere.
        clock: gives seconds.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        is_live: bool | None = None,
        live_interval_s: float = LIVE_INTERVAL_S,
        plain_interval_s: float = PLAIN_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream or sys.stderr
        self.is_live = can_redraw(self.stream) if is_live is None else is_live
        self._interval_s = live_interval_s if self.is_live else plain_interval_s
        self._clock, self._shown_s = clock, -math.inf
        self._live: RedrawnText | None = None

    @property
    def is_due(self) -> bool:
        """Whether the last text is old enough for the next one."""
        return self._clock() - self._shown_s >= self._interval_s

    @property
    def height(self) -> int:
        """The lines of the terminal."""
        return self._started().console.height

    def wait(self) -> None:
        """Let an interval pass before the first text."""
        self._shown_s = self._clock()

    def show(self, text: str) -> None:
        """Replace the text in place, cut to the terminal, or write it as a line of its own."""
        self._shown_s = self._clock()
        with suppress(OSError):
            if self.is_live:
                self._started().update(text)
            else:
                self.stream.write(f"{time.strftime(STAMP)} {text}\n")
                self.stream.flush()

    def print(self, text: str) -> None:
        """Write a line above the text that is redrawn."""
        with suppress(OSError):
            if self._live:
                self._live.console.out(text, highlight=False)
            else:
                self.stream.write(f"{text}\n")
                self.stream.flush()

    def close(self) -> None:
        """Leave the last text where it is, and what follows below it."""
        live, self._live = self._live, None
        if live:
            with suppress(OSError):
                live.stop()

    def __enter__(self) -> LiveText:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _started(self) -> RedrawnText:
        if self._live is None:
            from fedgmr_hpc.reporting.redrawing import RedrawnText

            self._live = RedrawnText(self.stream)
        return self._live


def can_redraw(stream: TextIO) -> bool:
    """Tell whether `stream` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
