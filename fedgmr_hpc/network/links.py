"""The link model and the virtual clock: when bytes would arrive (docs/method.md#timing).

Speeds are nominal rates times the mean of `num_draws` log-normal draws, drawn once a transfer; a
link in the trace follows that instead. How transfers share links is fluid.py's matter.

Rates are bytes per second, times seconds, sizes bytes. The virtual clock jumps from event to event;
ties go by kind (arrivals before closes) and client. Latency is equal for all clients: a broadcast
or an upload that is ready to go begins `latency_s` later.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.sections import LinksConfig
from fedgmr_hpc.network.fluid import FluidLinks, Listener
from fedgmr_hpc.network.link_traces import SERVER, Direction, trace_of


class Speeds:
    """Random link speeds, a pure function of (seed, link, direction, transfer number)."""

    def __init__(self, links: LinksConfig, shares: Sequence[float], seed: int) -> None:
        self.links, self.shares, self.seed = links, tuple(shares), seed

    def client(self, client: int, direction: Direction, transfer: int) -> float:
        """Return rate of a client's link during one transfer, bytes per second."""
        nominal = (
            self.links.client_down_bytes_per_s
            if direction == "down"
            else self.links.client_up_bytes_per_s
        )
        factor = self._factor(client, direction, transfer, self.links.client_sigma)
        return nominal * self.shares[client] * factor

    def server(self, direction: Direction, transfer: int) -> float:
        """Return rate of the server's link from one transfer on, bytes per second."""
        nominal = (
            self.links.server_up_bytes_per_s
            if direction == "up"
            else self.links.server_down_bytes_per_s
        )
        return nominal * self._factor(SERVER, direction, transfer, self.links.server_sigma)

    def _factor(self, link: int, direction: Direction, transfer: int, sigma: float) -> float:
        if sigma == 0.0:
            return 1.0
        rng = make_rng(self.seed, "speed", 2 * (link + 1) + (direction == "up"), transfer)
        return float(rng.lognormal(0.0, sigma, self.links.num_draws).mean())


@dataclass(frozen=True, slots=True)
class Arrival:
    """The upload of `client` is at the server."""

    now_s: float
    client: int


@dataclass(frozen=True, slots=True)
class WindowEnd:
    """The window's time is over."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Broadcast:
    """One dispatch as the links see it. `upload_bytes[client]` is known before anybody trains."""

    size: int
    listeners: tuple[Listener, ...]
    upload_bytes: dict[int, int]


def _read_broadcast(fields: dict[str, Any] | None) -> Broadcast | None:
    """Return a broadcast from `asdict` by way of JSON, whose keys are words."""
    if fields is None:
        return None
    listeners = tuple(Listener(**listener) for listener in fields["listeners"])
    uploads = {int(client): size for client, size in fields["upload_bytes"].items()}
    return Broadcast(fields["size"], listeners, uploads)


_START, _UPLOAD, _ARRIVED, _CLOSE = range(4)


class LinkClock:
    """What both clocks share: the links' speeds, the transfers in progress and their numbers.

    Args:
        links: rates and constant times.
        shares: [C] bandwidth shares.
        seed: of the log-normal speeds.
        rank_of: the rank that hosts each client, for the ranks' caps; None for no caps.

    Raises:
        ValueError: `links.trace` cannot be read, is wrong, or is not what the run began with.
    """

    def __init__(
        self,
        links: LinksConfig,
        shares: Sequence[float],
        seed: int,
        rank_of: Mapping[int, int] | None = None,
    ) -> None:
        self.links = links
        self.speeds = Speeds(links, shares, seed)
        self.fluid = FluidLinks(
            rank_of,
            links.rank_down_bytes_per_s or math.inf,
            links.rank_up_bytes_per_s or math.inf,
            trace_of(links, len(shares)),
        )
        self.fluid.set_server(math.inf, self.speeds.server("down", 0))
        self._uploads: dict[int, int] = {}  # bytes of the next upload of a client
        self._num_transfers = [0] * len(shares)

    def merge_end_s(self, now_s: float) -> float:
        """Return when a merge that begins now is done."""
        return now_s + self.links.merge_s

    def validated_s(self, ready_s: float) -> float:
        """Return when the validation that could begin at `ready_s` was done: it takes no modelled
        time.
        """
        return ready_s

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back."""
        return {
            "fluid": self.fluid.state(),
            "uploads": list(self._uploads.items()),
            "num_transfers": self._num_transfers,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.fluid.restore(state["fluid"])
        self._uploads = {client: size for client, size in state["uploads"]}
        self._num_transfers = state["num_transfers"]

    def _start_broadcast(self, broadcast: Broadcast, number: int) -> None:
        up, down = self.speeds.server("up", number), self.speeds.server("down", number)
        self.fluid.set_server(up, down)
        for listener in broadcast.listeners:
            self._num_transfers[listener.client] += 1
        self._uploads.update(broadcast.upload_bytes)
        self.fluid.start_broadcast(broadcast.size, broadcast.listeners, self._down_rate)

    def _down_rate(self, client: int) -> float:
        return self.speeds.client(client, "down", self._num_transfers[client])

    def _start_upload(self, client: int) -> None:
        rate = self.speeds.client(client, "up", self._num_transfers[client])
        self.fluid.start_upload(client, self._uploads.pop(client), rate)


class VirtualClock(LinkClock):
    """Orders arrivals and window ends by the time at which the link model lets them happen; ranks
    do not exist for it."""

    def __init__(self, links: LinksConfig, shares: Sequence[float], seed: int) -> None:
        super().__init__(links, shares, seed)
        self._queue: list[tuple[float, int, int, Broadcast | None]] = []
        self._num_broadcasts = 0

    def broadcast(self, at_s: float, broadcast: Broadcast) -> None:
        """Send at a time; each listener then trains, uploads, and shows up as an `Arrival`."""
        self._num_broadcasts += 1
        begin_s = at_s + self.links.latency_s
        heapq.heappush(self._queue, (begin_s, _START, self._num_broadcasts, broadcast))

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back."""
        queue = [(*head, broadcast and asdict(broadcast)) for *head, broadcast in self._queue]
        return super().state() | {"queue": queue, "num_broadcasts": self._num_broadcasts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        super().restore(state)
        self._num_broadcasts = state["num_broadcasts"]
        self._queue = [
            (at_s, kind, number, _read_broadcast(broadcast))
            for at_s, kind, number, broadcast in state["queue"]
        ]

    def close_at(self, at_s: float) -> None:
        """Schedule a `WindowEnd`."""
        heapq.heappush(self._queue, (at_s, _CLOSE, 0, None))

    def next(self) -> Arrival | WindowEnd:
        """Return the next thing that happens.

        Raises:
            IndexError: nothing is in flight, which a coordinator that waits never allows.
        """
        while True:
            change_s = self.fluid.next_change_s()
            if self._queue and self._queue[0][0] <= change_s:
                happened = self._pop()
                if happened is not None:
                    return happened
            elif math.isinf(change_s):
                raise IndexError("nothing is in flight")
            else:
                self._advance(change_s)

    def _advance(self, to_s: float) -> None:
        downloaded, uploaded = self.fluid.advance(to_s)
        for client in downloaded:
            begin_s = to_s + self.links.compute_s + self.links.latency_s
            heapq.heappush(self._queue, (begin_s, _UPLOAD, client, None))
        for client in uploaded:
            heapq.heappush(self._queue, (to_s, _ARRIVED, client, None))

    def _pop(self) -> Arrival | WindowEnd | None:
        at_s = self._queue[0][0]
        if at_s > self.fluid.now_s:
            self._advance(at_s)  # may add arrivals at the same time, which sort by kind
        at_s, kind, number, broadcast = heapq.heappop(self._queue)
        if kind == _ARRIVED:
            return Arrival(at_s, number)
        if kind == _CLOSE:
            return WindowEnd(at_s)
        if broadcast is not None:
            self._start_broadcast(broadcast, number)
        else:
            self._start_upload(number)
        return None
