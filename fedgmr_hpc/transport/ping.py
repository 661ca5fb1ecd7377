"""Who answers, how soon, and at what rate: what ranks ask one another before a run.

A rank that waits, for whatever it is, meanwhile answers what the others ask, so no order of waits
can block. Rank 0 looks after all others a few times per limit, and they know that it does: a rank
that owes an answer for longer than the limit, or a rank 0 that does not answer, is silent. A rank
that was itself held up first reads what has come meanwhile. Long work has to run in another thread;
one thread alone, that of the `Peer`, uses the transport.

    tag     payload            meaning
    CLOCK   "?", number        a ping, to be answered at once
    CLOCK   "!", number        the answer
    CLOCK   "."                the sender has measured its pair of this round
    FRAME   any                bytes to measure a rate with; not rank 0 answers with GOT
    GRANT   number             send rank 0 a FRAME of so many bytes
    TASK, RESULT, HELLO, STOP  messages for the user of the peer
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from statistics import median
from typing import Any

from fedgmr_hpc.config.errors import TransportTimeout
from fedgmr_hpc.transport.contract import Message, Tag, Transport

LOOK_S = 0.02  # the longest wait before other duties are looked after
BEATS_PER_LIMIT = 4  # how often rank 0 looks after the others
REPEATS = 20  # pings of a pair
PAIRS_S = 10.0  # all rounds of pings together, where no rank is slow
RATES_S = 10.0  # all transfers one after the other, about
TRANSFER_S = 0.2  # one of them, at most
FIRST_BYTES, MOST_BYTES = 1 << 18, 1 << 26
_SERVER = 0


def tournament(ranks: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Return rounds of pairs (lower, higher): all pairs once, no rank twice in a round (circle
    method).
    """
    places: list[int | None] = [*sorted(ranks), *([None] * (len(ranks) % 2))]
    half, rounds = len(places) // 2, []
    for _ in range(len(places) - 1):
        pairs = zip(places[:half], reversed(places[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        places.insert(1, places.pop())
    return rounds


class Peer:
    """This rank's side of the conversation.

    Attributes:
        inbox: messages for the user of the peer, in the order they came.
        server: how errors call rank 0.

    Args:
        limit_s: the longest silence of a rank that owes an answer.
    """

    def __init__(self, transport: Transport, limit_s: float) -> None:
        self.transport, self.limit_s = transport, limit_s
        self.rank, self.size = transport.rank, transport.size
        self.inbox: deque[Message] = deque()
        self.server = "rank 0"
        self._numbers = count(1)
        self._answered: dict[int, bytes] = {}  # the last ping that each rank has answered
        self._measured: set[int] = set()
        self._moved_s: dict[int, float] = {}  # when a transfer with each rank was through
        self._owes_since_s: dict[int, float] = {}  # rank 0: of ranks that have not answered yet
        self._beat_s = -math.inf
        self._heard_s = time.monotonic()  # others: the last sign of rank 0

    @property
    def others(self) -> list[int]:
        """All other ranks that are not known to be silent."""
        return [r for r in range(self.size) if r != self.rank and r not in self.transport.gone]

    def tell(self, dest: int, tag: Tag, content: dict[str, Any]) -> None:
        """Send a message."""
        self.transport.send(dest, tag, json.dumps(content).encode())

    def wait(self, is_done: Callable[[], bool], limit_s: float = math.inf) -> bool:
        """Answer the others until something is so; whether it was so within the limit.

        Rank 0 adds silent ranks to `transport.gone`.

        Raises:
            TransportTimeout: rank 0 is silent.
        """
        deadline_s = time.monotonic() + limit_s
        while not is_done():
            if time.monotonic() >= deadline_s:
                return False
            if self.rank == _SERVER:
                self._look_after_others()
            try:
                self._take(self.transport.recv(LOOK_S))
            except TransportTimeout:
                self._find_silent()
        return True

    def _look_after_others(self) -> None:
        now_s = time.monotonic()
        if now_s - self._beat_s < self.limit_s / BEATS_PER_LIMIT:
            return
        self._beat_s = now_s
        for rank in self.others:
            self._owes_since_s.setdefault(rank, now_s)
            self._ping(rank)

    def _find_silent(self) -> None:
        """Find ranks that fell silent, but only when nothing is waiting to be read: otherwise this
        rank may have been held up itself.
        """
        now_s = time.monotonic()
        if self.rank != _SERVER and now_s - self._heard_s > self.limit_s:
            message = f"{self.server} has said nothing for {self.limit_s:g} s"
            raise TransportTimeout(message, rank=self.rank)
        late = [r for r, since_s in self._owes_since_s.items() if now_s - since_s > self.limit_s]
        for rank in late:
            self.transport.gone.add(rank)
            del self._owes_since_s[rank]

    def _take(self, message: Message) -> None:
        source, tag, payload = message[:3]
        self._owes_since_s.pop(source, None)
        if source == _SERVER:
            self._heard_s = time.monotonic()
        if tag == Tag.CLOCK:
            self._take_ping(source, bytes(payload))
        elif tag == Tag.GRANT:
            size = int.from_bytes(payload, "little")
            self.transport.send(source, Tag.FRAME, bytes(b"\1" * size))
        elif tag == Tag.FRAME and self.rank != _SERVER:
            self.transport.send(source, Tag.GOT)
        elif tag in (Tag.FRAME, Tag.GOT):
            self._moved_s[source] = time.perf_counter()
        else:
            self.inbox.append(message)

    def _take_ping(self, source: int, payload: bytes) -> None:
        kind, number = payload[:1], payload[1:]
        if kind == b"?":
            self.transport.send(source, Tag.CLOCK, b"!", number)
        elif kind == b"!":
            self._answered[source] = number
        else:
            self._measured.add(source)

    def _ping(self, rank: int) -> bytes:
        """Send a ping; return its number."""
        number = next(self._numbers).to_bytes(8, "little")
        self.transport.send(rank, Tag.CLOCK, b"?", number)
        return number

    # --- round trips

    def ping_all(self, ranks: Sequence[int]) -> dict[int, float | None]:
        """Return this rank's part of a tournament, which all `ranks` play at once.

        Returns:
            The median round trip in seconds to each rank above this one, None without an answer.
        """
        rounds, found = tournament(ranks), dict[int, float | None]()
        for pairs in rounds:
            for low, high in pairs:
                if self.rank == low:
                    found[high] = self._round_trips(high, PAIRS_S / len(rounds))
                    self.transport.send(high, Tag.CLOCK, b".")
                elif self.rank == high:
                    self.wait(partial(self._measured.__contains__, low), self.limit_s)
        return found

    def _round_trips(self, rank: int, budget_s: float) -> float | None:
        """Return the median of some pings, of which the first only opens the connection."""
        times: list[float] = []
        until_s = time.monotonic() + budget_s
        while len(times) <= REPEATS and (len(times) < 2 or time.monotonic() < until_s):
            took_s = self._round_trip(rank)
            if took_s is None:
                return None
            times.append(took_s)
        return median(times[1:])

    def _round_trip(self, rank: int) -> float | None:
        began_s, number = time.perf_counter(), self._ping(rank)
        is_back = self.wait(lambda: self._answered.get(rank) == number, self.limit_s)
        return time.perf_counter() - began_s if is_back else None

    # --- rates, measured by rank 0

    def measure_rates(self) -> dict[int, tuple[float, float]]:
        """Return bytes per second to and from each other rank, one after the other; rank 0 only.

        Ranks that fall silent are left out.
        """
        transfer_s = min(TRANSFER_S, RATES_S / max(1, 2 * len(self.others)))
        found = {}
        for rank in self.others:
            times = self.move([rank], size := FIRST_BYTES)
            if times:
                size = int(min(MOST_BYTES, size * max(1.0, transfer_s / max(times))))
                times = self.move([rank], size)
            if times:
                found[rank] = (size / times[0], size / times[1])
        return found

    def move(self, ranks: Sequence[int], num_bytes: int) -> tuple[float, float] | None:
        """Return seconds to bring `num_bytes` to each of these ranks at once, and then from them.

        None where one of them falls silent meanwhile. Rank 0 only.
        """
        size, times = num_bytes.to_bytes(8, "little"), []
        for tag, part in ((Tag.FRAME, b"\1" * num_bytes), (Tag.GRANT, size)):
            self._moved_s.clear()
            began_s = time.perf_counter()
            for rank in ranks:
                self.transport.send(rank, tag, part)
            self.wait(lambda: all(r in self._moved_s or r in self.transport.gone for r in ranks))
            if any(rank not in self._moved_s for rank in ranks):
                return None
            times.append(max(self._moved_s.values()) - began_s)
        return times[0], times[1]
