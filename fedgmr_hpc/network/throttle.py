"""The wall clock: real transfers, held to the link model while they happen.

The same fluid that tells the virtual clock when bytes would arrive (links.py) says here how many
bytes of every transfer may have left by now. So links are shared max-min fairly, speeds are drawn
from the same streams, and both clocks obey one law. A transfer's allowance is a token bucket that
fills at the transfer's share of its links; what is in it is sent as a piece.

Times are unscaled seconds: wall seconds since the start over `time_scale`. Rates need no scaling
then: a run at time_scale 0.1 is ten times as fast, links and all.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedgmr_hpc.config.sections import LinksConfig
from fedgmr_hpc.network.link_traces import Direction
from fedgmr_hpc.network.links import Broadcast, LinkClock

TICK_S = 2e-3  # wall time between two looks at what may be sent
_DISPATCH, _UPLOAD, _CLOSE = range(3)


@dataclass(slots=True)
class Moved:
    """What the links have let through up to `now_s`."""

    now_s: float
    frac: dict[tuple[int, Direction], float] = field(default_factory=dict)  # of transfers under way
    began: dict[tuple[int, Direction], float] = field(default_factory=dict)  # when each began
    finished: dict[tuple[int, Direction], float] = field(default_factory=dict)  # when each was done
    closed: list[float] = field(default_factory=list)  # ends of windows


class WallClock(LinkClock):
    """Drives the link model in real time.

    Args:
        links: rates and constant times.
        shares: [C] bandwidth shares.
        seed: of the log-normal speeds.
        time_scale: wall seconds of one second.
        rank_of: the rank that hosts each client, for the ranks' caps.
    """

    def __init__(
        self,
        links: LinksConfig,
        shares: Sequence[float],
        seed: int,
        time_scale: float,
        rank_of: dict[int, int],
    ) -> None:
        super().__init__(links, shares, seed, rank_of=rank_of)
        self.time_scale = time_scale
        self._queue: list[tuple[float, int, int, Broadcast | None]] = []
        self._began_s = time.perf_counter()
        self._count = 0

    def start(self) -> None:
        """Let time begin now, or go on from where the links are."""
        self._began_s = time.perf_counter() - self.fluid.now_s * self.time_scale

    def now_s(self) -> float:
        """Return unscaled seconds since the start."""
        return (time.perf_counter() - self._began_s) / self.time_scale

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back: the time and the numbers of transfers; none is under
        way.
        """
        return {
            "now_s": self.now_s(),
            "num_transfers": self._num_transfers,
            "num_broadcasts": self._count,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved time, now."""
        self.fluid.now_s = state["now_s"]
        self.start()
        self._num_transfers, self._count = state["num_transfers"], state["num_broadcasts"]

    def broadcast(self, at_s: float, broadcast: Broadcast) -> None:
        """Let a dispatch's bytes go from `at_s` on, or from now if that is past."""
        self._count += 1
        begin_s = max(at_s, self.now_s()) + self.links.latency_s
        heapq.heappush(self._queue, (begin_s, _DISPATCH, self._count, broadcast))

    def offer(self, client: int, delay_s: float = 0.0) -> None:
        """Let the upload of a client begin; its size came with the dispatch."""
        begin_s = self.now_s() + self.links.latency_s + delay_s
        heapq.heappush(self._queue, (begin_s, _UPLOAD, client, None))

    def expect_upload(self, client: int, num_bytes: int) -> None:
        """Give up a client's transfers, begun or not; its next upload takes `num_bytes`."""
        self.fluid.cancel(client)
        self._queue = [
            (at_s, kind, number, broadcast and _without(broadcast, client))
            for at_s, kind, number, broadcast in self._queue
            if (kind, number) != (_UPLOAD, client)
        ]
        heapq.heapify(self._queue)
        self._uploads[client] = num_bytes

    def close_at(self, at_s: float) -> None:
        """Schedule the end of a window."""
        heapq.heappush(self._queue, (at_s, _CLOSE, 0, None))

    def next_wall_s(self) -> float:
        """Return wall seconds until something is due: a tick while bytes flow, at most until an
        event.
        """
        head_s = self._queue[0][0] if self._queue else math.inf
        change_s = self.fluid.next_change_s()
        due_s = (min(head_s, change_s) - self.now_s()) * self.time_scale
        return max(0.0, min(due_s, math.inf if math.isinf(change_s) else TICK_S))

    def advance(self) -> Moved:
        """Move the links to now."""
        moved = Moved(self.now_s())
        while (at_s := self._next_event_s()) <= moved.now_s:
            self._step(at_s, moved)
            if self._queue and self._queue[0][0] <= at_s:
                self._start(*heapq.heappop(self._queue), moved)
        self._step(moved.now_s, moved)
        for progress in self.fluid.progress():
            moved.frac[progress.client, progress.direction] = progress.frac
        return moved

    def _next_event_s(self) -> float:
        head_s = self._queue[0][0] if self._queue else math.inf
        return min(head_s, self.fluid.next_change_s())

    def _step(self, to_s: float, moved: Moved) -> None:
        if to_s <= self.fluid.now_s:
            return
        downloaded, uploaded = self.fluid.advance(to_s)
        moved.finished.update({(client, "down"): to_s for client in downloaded})
        moved.finished.update({(client, "up"): to_s for client in uploaded})

    def _start(
        self, at_s: float, kind: int, number: int, broadcast: Broadcast | None, moved: Moved
    ) -> None:
        if kind == _CLOSE:
            moved.closed.append(at_s)
        elif kind == _UPLOAD:
            moved.began[number, "up"] = at_s
            self._start_upload(number)
        elif broadcast is not None:
            moved.began.update({(each.client, "down"): at_s for each in broadcast.listeners})
            self._start_broadcast(broadcast, number)


def _without(broadcast: Broadcast, client: int) -> Broadcast:
    """Return a broadcast that a client does not listen to; its stream is as long as the others
    need.
    """
    listeners = tuple(each for each in broadcast.listeners if each.client != client)
    if len(listeners) == len(broadcast.listeners):
        return broadcast
    uploads = {key: size for key, size in broadcast.upload_bytes.items() if key != client}
    return Broadcast(max((each.end for each in listeners), default=0), listeners, uploads)
