"""Discrete-event simulation of the capacity model (model.py), for thousands of ranks.

Cores serve first come, first served; links share their rate evenly among their transfers, all in
deterministic times. A transfer goes through the server's link, the rank's and the client's own at
once, and ends when the last of them has ended it. That is exact where transfers begin
together, as in synchronous rounds, and else takes none of one link's rate to be left over for
others because of another link.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from fedgmr_hpc.scaling.model import System, server_link_s, service_s

NUM_ROUNDS = 6
WARM_FRAC = 0.34  # of the client-rounds, left out of the rate
DOWNLOAD, COMPUTE, UPLOAD, SERVE = range(4)


@dataclass(frozen=True)
class Simulated:
    """Client-rounds per second after the warm-up, and how busy the server's core was (0 to 1)."""

    rounds_per_s: float
    server_busy_frac: float


@dataclass
class _Link:
    """A link that its transfers, each `alone_s` long by itself, share evenly.

    Attributes:
        progress_s: how much a transfer that was always there would have got, as time alone.
        waiting: (progress at which it is through, client) of each transfer.
        stamp: counts changes, which make planned ends wrong.
    """

    alone_s: float
    now_s: float = 0.0
    progress_s: float = 0.0
    waiting: deque[tuple[float, int]] = field(default_factory=deque)
    stamp: int = 0

    def add(self, client: int, now_s: float) -> None:
        """Begin a transfer."""
        if self.waiting:
            self.progress_s += (now_s - self.now_s) / len(self.waiting)
        self.now_s = now_s
        self.waiting.append((self.progress_s + self.alone_s, client))
        self.stamp += 1

    def next_end_s(self) -> float:
        """Return when the first transfer is through, if nothing changes before."""
        left_s = self.waiting[0][0] - self.progress_s
        return self.now_s + max(left_s, 0.0) * len(self.waiting)

    def finish(self, now_s: float) -> Iterator[int]:
        """Yield the clients whose transfers are through now, at `next_end_s`."""
        self.now_s, self.progress_s = now_s, self.waiting[0][0]
        self.stamp += 1
        while self.waiting and self.waiting[0][0] <= self.progress_s:
            yield self.waiting.popleft()[1]


class _Job:
    """All clients of a simulated job on their way through the stations."""

    def __init__(self, system: System, num_workers: int, num_clients: int) -> None:
        d, r = system.demand, system.rates
        self.system, self.num_workers, self.num_clients = system, num_workers, num_clients
        self.rank_cores = [0.0] * num_workers  # when each is free again
        self.cores = None if system.num_cores is None else [0.0] * system.num_cores
        self.server_core = 0.0
        rank_s = {DOWNLOAD: d.down_bytes / r.rank_down, UPLOAD: d.up_bytes / r.rank_up}
        server_s = dict(zip((DOWNLOAD, UPLOAD), server_link_s(system), strict=True))
        self.service_s = service_s(system)
        self.own_s = {DOWNLOAD: d.own_down_s, UPLOAD: d.own_up_s}
        self.rank_links = {w: [_Link(s) for _ in range(num_workers)] for w, s in rank_s.items()}
        self.server_links = {way: _Link(s) for way, s in server_s.items()}
        self.num_parts = [0] * num_clients  # links that are not done with a client's transfer
        self.stages = [DOWNLOAD] * num_clients
        self.events: list[tuple[float, int, int, _Link | None, int]] = []
        self.numbers = itertools.count()
        self.ends: list[float] = []

    def run(self, num_ends: int) -> list[float]:
        """Return the times at which the server was done with the first `num_ends` client-rounds."""
        for client in range(self.num_clients):
            self._plan(0.0, client)
        while len(self.ends) < num_ends:
            now_s, _, client, link, stamp = heapq.heappop(self.events)
            if link is None:
                self._begin_or_pass(client, now_s)
            elif stamp == link.stamp:
                for through in link.finish(now_s):
                    self._pass(through, now_s)
                self._watch(link)
        return self.ends

    def _plan(self, at_s: float, client: int) -> None:
        heapq.heappush(self.events, (at_s, next(self.numbers), client, None, 0))

    def _watch(self, link: _Link) -> None:
        if link.waiting:
            event = (link.next_end_s(), next(self.numbers), -1, link, link.stamp)
            heapq.heappush(self.events, event)

    def _begin_or_pass(self, client: int, now_s: float) -> None:
        """Note that a client's next stage begins, or its own link is done with its transfer."""
        if self.num_parts[client]:
            self._pass(client, now_s)
        elif self.stages[client] == COMPUTE:
            self.stages[client] = UPLOAD
            self._plan(self._compute(client, now_s), client)
        elif self.stages[client] == SERVE:
            self._serve(client, now_s)
        else:
            self._transfer(client, self.stages[client], now_s)

    def _transfer(self, client: int, way: int, now_s: float) -> None:
        rank_link = self.rank_links[way][client % self.num_workers]
        links = [x for x in (self.server_links[way], rank_link) if x.alone_s > 0]
        self.num_parts[client] = len(links) + 1
        for link in links:
            link.add(client, now_s)
            self._watch(link)
        self._plan(now_s + self.own_s[way], client)

    def _pass(self, client: int, now_s: float) -> None:
        """Note that one link is done with a client's transfer."""
        self.num_parts[client] -= 1
        if not self.num_parts[client]:
            self.stages[client] += 1
            self._plan(now_s, client)

    def _compute(self, client: int, now_s: float) -> float:
        """Return when a client has trained."""
        d, is_placed = self.system.demand, self.system.is_placed
        rank = client % self.num_workers if is_placed else 0  # of a heap, the first that is free
        end_s = self._work(max(self.rank_cores[rank], now_s), d.core_s)
        if is_placed:
            self.rank_cores[rank] = end_s
        else:
            heapq.heapreplace(self.rank_cores, end_s)
        return max(end_s, now_s + d.delay_s)

    def _serve(self, client: int, now_s: float) -> None:
        ready_s = max(self.server_core, now_s)
        self.server_core = self._work(ready_s, self.service_s)
        self.ends.append(self.server_core)
        self.stages[client] = DOWNLOAD
        if not self.system.is_synchronous:
            self._plan(self.server_core, client)
        elif len(self.ends) % self.num_clients == 0:
            for each in range(self.num_clients):
                self._plan(self.server_core + self.system.demand.round_s, each)

    def _work(self, ready_s: float, work_s: float) -> float:
        """Return the end of work that needs one of the machine's cores."""
        if self.cores is None:
            return ready_s + work_s
        end_s = max(ready_s, self.cores[0]) + work_s
        heapq.heapreplace(self.cores, end_s)
        return end_s


def simulate(
    system: System, num_workers: int, num_clients: int, num_rounds: int = NUM_ROUNDS
) -> Simulated:
    """Let the clients do `num_rounds` client-rounds each on average.

    Args:
        num_workers: client ranks; a placed client c lives on rank c mod `num_workers`.
    """
    ends = sorted(_Job(system, num_workers, num_clients).run(num_clients * num_rounds))
    num_warm = math.ceil(WARM_FRAC * num_rounds) * num_clients
    spent_s = ends[-1] - ends[num_warm - 1]
    rate = (len(ends) - num_warm) / spent_s if spent_s > 0 else math.inf
    return Simulated(rate, min(rate * service_s(system), 1.0))
