"""How far a long preparation is, on stderr: a live line on a terminal, else a line now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

from fedgmr_hpc.reporting.live import LiveText

PLAIN_INTERVAL_S = 10.0
ALIVE_INTERVAL_S = 2.0


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
        self._alive, self._clock = alive, clock
        self._start_s = clock()
        self._told_s = -math.inf
        self._line = LiveText(stream, plain_interval_s=PLAIN_INTERVAL_S, clock=clock)
        if not (done or self._line.is_live):
            self._line.wait()

    def add(self, num: int) -> None:
        """Count `num` more items as done."""
        self.done += num
        now_s = self._clock()
        if now_s - self._told_s >= ALIVE_INTERVAL_S:
            self._alive(self._count())
            self._told_s = now_s
        if self._line.is_due or self.done == self.total:
            self._line.show(self._describe(now_s))
        if self.done == self.total:
            self.close()

    def _count(self) -> str:
        return f"{self.done:,} of {self.total:,} images"

    def _describe(self, now_s: float) -> str:
        spent_s = now_s - self._start_s
        per_s = (self.done - self.start) / max(spent_s, 1e-9)
        left = timedelta(seconds=math.ceil((self.total - self.done) / max(per_s, 1e-9)))
        rest = f"{left} left" if self.done < self.total else f"done in {spent_s:.1f} s"
        share = 100 * self.done / self.total
        return f"{self.what}: {self._count()} ({share:.1f} %), {per_s:,.0f} images/s, {rest}"

    def close(self) -> None:
        """Leave the last line where it is."""
        self._line.close()
