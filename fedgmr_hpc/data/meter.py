"""How far a long preparation is, on stderr: a live line on a terminal, else a line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

LIVE_INTERVAL_S = 0.2
PLAIN_INTERVAL_S = 10.0
ALIVE_INTERVAL_S = 2.0
CLEAR_LINE = "\r\x1b[K"


class Meter:
    """Counts items of one job.

    Args:
        what: the job, at the head of every line.
        total: items of the whole job.
        done: items that an earlier, interrupted job has done.
        alive: also told the state, at most every 2 s.
        stream: where lines go, stderr by default.
        clock: gives seconds.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        done: int = 0,
        alive: Callable[[str], None] = lambda text: None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.done, self.start = what, total, done, done
        self._alive, self._stream, self._clock = alive, stream or sys.stderr, clock
        self._is_live = self._stream.isatty()
        self._interval_s = LIVE_INTERVAL_S if self._is_live else PLAIN_INTERVAL_S
        self._start_s = clock()
        self._shown_s = -math.inf if done or self._is_live else self._start_s
        self._told_s = -math.inf

    def add(self, num: int) -> None:
        """So many more items are done."""
        self.done += num
        now_s = self._clock()
        if now_s - self._told_s >= ALIVE_INTERVAL_S:
            self._alive(self._count())
            self._told_s = now_s
        if now_s - self._shown_s >= self._interval_s or self.done == self.total:
            self._show(now_s)

    def _count(self) -> str:
        return f"{self.done:,} of {self.total:,} images"

    def _show(self, now_s: float) -> None:
        spent_s = now_s - self._start_s
        per_s = (self.done - self.start) / max(spent_s, 1e-9)
        left = timedelta(seconds=math.ceil((self.total - self.done) / max(per_s, 1e-9)))
        rest = f"{left} left" if self.done < self.total else f"done in {spent_s:.1f} s"
        share = 100 * self.done / self.total
        line = f"{self.what}: {self._count()} ({share:.1f} %), {per_s:,.0f} images/s, {rest}"
        is_last = self.done == self.total
        print(
            CLEAR_LINE + line if self._is_live else line,
            end="\n" if is_last or not self._is_live else "",
            file=self._stream,
            flush=True,
        )
        self._shown_s = now_s

    def close(self) -> None:
        """Lets go of a live line that is not the last."""
        if self._is_live and self.done < self.total:
            print(file=self._stream, flush=True)
