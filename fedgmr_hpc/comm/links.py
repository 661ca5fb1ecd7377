"""The link model and the virtual clock: when bytes would arrive (paper section 5; spec section 2).

Every client has an up and a down link; the server has one of each, shared max-min fairly by what
crosses it at the same time. Speeds are nominal rates times the mean of `num_draws` log-normal
draws, drawn once a transfer.

A dispatch is a *broadcast*: one stream of bytes that leaves the server once. A listener takes the
part [begin, end) of the stream it needs, as fast as the stream has been sent and its own link
allows. With increments (IMS) everybody's part begins at 0 and ends after its own level; with whole
sub-models the distinct sizes are sent one after the other in ascending order (spec section 2.3,
step 8).

Rates are bytes per second, times seconds, sizes bytes. A flow's state is exact between two events,
so time jumps from event to event; ties go by kind (arrivals before closes) and client.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedgmr_hpc.config import LinksConfig
from fedgmr_hpc.records import make_rng

SERVER = -1
Direction = Literal["down", "up"]
EPSILON_S = 1e-9  # what a link carries in less is rounding


class Speeds:
    """Random link speeds, a pure function of (seed, link, direction, transfer number)."""

    def __init__(self, links: LinksConfig, shares: Sequence[float], seed: int) -> None:
        self.links, self.shares, self.seed = links, tuple(shares), seed

    def client(self, client: int, direction: Direction, transfer: int) -> float:
        """Rate of a client's link during one transfer, bytes per second."""
        nominal = (
            self.links.client_down_bytes_per_s
            if direction == "down"
            else self.links.client_up_bytes_per_s
        )
        factor = self._factor(client, direction, transfer, self.links.client_sigma)
        return nominal * self.shares[client] * factor

    def server(self, direction: Direction, transfer: int) -> float:
        """Rate of the server's link from one transfer on, bytes per second."""
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
class Listener:
    """A client's part of a broadcast. `own_bytes` is what its own link carries; it is less than
    `end - begin` when the stream holds positions that this client already knows."""

    client: int
    begin: int
    end: int
    own_bytes: int


@dataclass(slots=True)
class _Download:
    listener: Listener
    rate: float  # stream bytes per second
    taken: float
    caught_up: bool = False


@dataclass(slots=True)
class _Broadcast:
    size: int
    sent: float = 0.0
    downloads: list[_Download] = field(default_factory=list)


@dataclass(slots=True)
class _Upload:
    client: int
    rate: float
    left: float


class FluidLinks:
    """Transfers in progress. `advance` moves them to a time; `next_change_s` is when a rate
    changes.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.server_up = self.server_down = math.inf
        self.broadcasts: list[_Broadcast] = []
        self.uploads: list[_Upload] = []

    def start_broadcast(
        self, size: int, listeners: Sequence[Listener], rate_of: Callable[[int], float]
    ) -> None:
        """Starts a stream of `size` bytes now; `rate_of(client)` is the client's own link."""
        broadcast = _Broadcast(size)
        for listener in listeners:
            scale = (listener.end - listener.begin) / max(listener.own_bytes, 1)
            rate = rate_of(listener.client) * scale
            broadcast.downloads.append(_Download(listener, rate, float(listener.begin)))
        self.broadcasts.append(broadcast)

    def start_upload(self, client: int, size: int, rate: float) -> None:
        """Starts an upload of `size` bytes now over a link of `rate`."""
        self.uploads.append(_Upload(client, rate, float(size)))

    @property
    def tolerance_s(self) -> float:
        """What counts as no time: far above the rounding of the clock, which grows with it."""
        return max(EPSILON_S, 8 * math.ulp(self.now_s))

    def next_change_s(self) -> float:
        """Earliest time at which a transfer ends or changes its rate; infinity when idle."""
        waits = [upload.left / rate for upload, rate in self._upload_rates()]
        emission = self._emission_rate()
        for broadcast in self.broadcasts:
            is_sending = broadcast.sent < broadcast.size
            if is_sending:
                waits.append((broadcast.size - broadcast.sent) / emission)
            for download in broadcast.downloads:
                rate = emission if is_sending else 0.0
                waits += _download_waits(download, broadcast, rate, self.tolerance_s)
        return self.now_s + max(min(waits, default=math.inf), self.tolerance_s / 2)

    def advance(self, to_s: float) -> tuple[list[int], list[int]]:
        """Moves every transfer to `to_s`, at most the next change; returns clients that have
        finished (downloads, uploads), in client order."""
        step_s, self.now_s = to_s - self.now_s, to_s
        for upload, rate in self._upload_rates():
            upload.left -= rate * step_s
        emission = self._emission_rate()
        for broadcast in self.broadcasts:
            _move_broadcast(broadcast, emission, step_s, self.tolerance_s)
        return self._finished_downloads(), self._finished_uploads()

    def _emission_rate(self) -> float:
        sending = sum(broadcast.sent < broadcast.size for broadcast in self.broadcasts)
        return self.server_up / max(sending, 1)

    def _upload_rates(self) -> list[tuple[_Upload, float]]:
        """Max-min fair shares of the server's down link."""
        capacity, waiting = self.server_down, len(self.uploads)
        rates = []
        for upload in sorted(self.uploads, key=lambda u: (u.rate, u.client)):
            rate = min(upload.rate, capacity / waiting)
            rates.append((upload, rate))
            capacity, waiting = capacity - rate, waiting - 1
        return rates

    def _finished_downloads(self) -> list[int]:
        finished = []
        for broadcast in self.broadcasts:
            for download in broadcast.downloads:
                if download.listener.end - download.taken <= download.rate * self.tolerance_s:
                    finished.append(download.listener.client)
            broadcast.downloads = [
                d for d in broadcast.downloads if d.listener.client not in finished
            ]
        self.broadcasts = [b for b in self.broadcasts if b.downloads or b.sent < b.size]
        return sorted(finished)

    def _finished_uploads(self) -> list[int]:
        finished = sorted(u.client for u in self.uploads if u.left <= u.rate * self.tolerance_s)
        self.uploads = [u for u in self.uploads if u.left > u.rate * self.tolerance_s]
        return finished


def _download_waits(
    download: _Download, broadcast: _Broadcast, emission: float, tolerance_s: float
) -> list[float]:
    """Times until this download ends or changes its rate."""
    if _is_ahead(download, broadcast, emission * tolerance_s):
        return [(download.taken - broadcast.sent) / emission]
    backlog = 0.0 if download.caught_up else broadcast.sent - download.taken
    rate = _download_rate(download, emission, broadcast)
    waits = [(download.listener.end - download.taken) / rate] if rate > 0 else []
    if backlog > 0 and download.rate > emission:
        waits.append(backlog / (download.rate - emission))
    return waits


def _is_ahead(download: _Download, broadcast: _Broadcast, tolerance_bytes: float) -> bool:
    """Whether the stream has not yet reached this download's part."""
    return download.taken - broadcast.sent > tolerance_bytes


def _download_rate(download: _Download, emission: float, broadcast: _Broadcast) -> float:
    if download.caught_up and broadcast.sent < broadcast.size:
        return min(download.rate, emission)
    return download.rate


def _move_broadcast(
    broadcast: _Broadcast, emission: float, step_s: float, tolerance_s: float
) -> None:
    is_sending = broadcast.sent < broadcast.size
    sent = broadcast.sent + (emission * step_s if is_sending else 0.0)
    tolerance = emission * tolerance_s
    sent = float(broadcast.size) if broadcast.size - sent <= tolerance else sent
    for download in broadcast.downloads:
        if not _is_ahead(download, broadcast, tolerance if is_sending else 0.0):
            download.taken += _download_rate(download, emission, broadcast) * step_s
            download.caught_up = download.taken >= sent - tolerance
            download.taken = min(download.taken, sent)
    broadcast.sent = sent


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


_START, _TRAINED, _ARRIVED, _CLOSE = range(4)


class VirtualClock:
    """Orders arrivals and window ends by the time at which the link model lets them happen."""

    def __init__(self, links: LinksConfig, shares: Sequence[float], seed: int) -> None:
        self.links = links
        self.speeds = Speeds(links, shares, seed)
        self.fluid = FluidLinks()
        self.fluid.server_down = self.speeds.server("down", 0)
        self._queue: list[tuple[float, int, int, Broadcast | None]] = []
        self._uploads: dict[int, int] = {}
        self._num_transfers = [0] * len(shares)
        self._num_broadcasts = 0

    def merge_end_s(self, now_s: float) -> float:
        """When a merge that begins now is done."""
        return now_s + self.links.merge_s

    def broadcast(self, at_s: float, broadcast: Broadcast) -> None:
        """Sends at a time; each listener then trains, uploads, and shows up as an `Arrival`."""
        self._num_broadcasts += 1
        heapq.heappush(self._queue, (at_s, _START, self._num_broadcasts, broadcast))

    def close_at(self, at_s: float) -> None:
        """Schedules a `WindowEnd`."""
        heapq.heappush(self._queue, (at_s, _CLOSE, 0, None))

    def next(self) -> Arrival | WindowEnd:
        """The next thing that happens.

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
            trained_s = to_s + self.links.compute_s
            heapq.heappush(self._queue, (trained_s, _TRAINED, client, None))
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

    def _start_broadcast(self, broadcast: Broadcast, number: int) -> None:
        self.fluid.server_up = self.speeds.server("up", number)
        self.fluid.server_down = self.speeds.server("down", number)
        for listener in broadcast.listeners:
            self._num_transfers[listener.client] += 1
        self._uploads.update(broadcast.upload_bytes)
        self.fluid.start_broadcast(broadcast.size, broadcast.listeners, self._down_rate)

    def _down_rate(self, client: int) -> float:
        return self.speeds.client(client, "down", self._num_transfers[client])

    def _start_upload(self, client: int) -> None:
        rate = self.speeds.client(client, "up", self._num_transfers[client])
        self.fluid.start_upload(client, self._uploads.pop(client), rate)
