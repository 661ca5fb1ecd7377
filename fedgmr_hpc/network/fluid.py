"""The fluid of links: what every transfer in progress may carry now (docs/method.md#links).

Every client has an up and a down link; the server has one of each, shared max-min fairly by what
crosses it at the same time. On the wall clock the clients of one rank may have to share a cap,
max-min fairly too. A link in the trace (link_traces.py) follows it, during transfers too.

A dispatch is a *broadcast*: one stream of bytes that leaves the server once. A listener takes the
part [begin, end) of the stream it needs, as fast as the stream has been sent and its own link
allows. With increments (IMS) each part begins at 0 and ends after its own level; with whole
sub-models the distinct sizes are sent one after the other in ascending order
(docs/method.md#broadcasts).

Rates are bytes per second, times seconds, sizes bytes. A flow's state is exact between two changes
of rates, so time may jump from one to the next, or follow a real clock. Rates are set anew only
when the transfers in progress or a traced speed have changed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedgmr_hpc.network.link_traces import SERVER, Direction, LinkTrace

EPSILON_S = 1e-9  # what a link carries in less is rounding


@dataclass(frozen=True, slots=True)
class Listener:
    """A client's part of a broadcast. `own_bytes` is what its own link carries; it is less than
    `end - begin` when the stream holds positions that this client already knows."""

    client: int
    begin: int
    end: int
    own_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is: the part of its own bytes that its client's link has carried, 0 to 1,
    and the bytes per second that it carries now."""

    client: int
    direction: Direction
    frac: float
    rate: float


@dataclass(slots=True)
class _Download:
    listener: Listener
    drawn: float  # bytes per second of its link, unless there is a trace
    taken: float
    rate: float = 0.0  # what its link and its rank allow now, stream bytes per second
    caught_up: bool = False

    @property
    def scale(self) -> float:
        """Stream bytes for each byte on its own link."""
        return (self.listener.end - self.listener.begin) / max(self.listener.own_bytes, 1)


@dataclass(slots=True)
class _Broadcast:
    size: int
    sent: float = 0.0
    downloads: list[_Download] = field(default_factory=list)


@dataclass(slots=True)
class _Upload:
    client: int
    size: int
    drawn: float  # bytes per second of its link, unless there is a trace
    left: float
    limit: float = 0.0  # of its link now
    rate: float = 0.0  # its share of all links now


_STATE = (  # of the links, beside the transfers
    *("now_s", "_server_up", "_server_down", "_emission", "_are_rates_set", "_rates_until_s"),
    "_change_s",
)


def _make_broadcast(downloads: list[dict[str, Any]], **fields: Any) -> _Broadcast:
    return _Broadcast(
        **fields,
        downloads=[
            _Download(**{**each, "listener": Listener(**each["listener"])}) for each in downloads
        ],
    )


class FluidLinks:
    """Transfers in progress. `advance` moves them to a time; `next_change_s` is when a rate
    changes.

    Args:
        rank_of: the rank that hosts each client; without it there are no caps.
        rank_down: cap of what the clients of one rank download together, bytes per second.
        rank_up: the same for uploads.
        trace: speeds of links that follow a trace, the server's too.
    """

    def __init__(
        self,
        rank_of: Mapping[int, int] | None = None,
        rank_down: float = math.inf,
        rank_up: float = math.inf,
        trace: LinkTrace | None = None,
    ) -> None:
        self.now_s = 0.0
        self._server_up = self._server_down = math.inf
        self.broadcasts: list[_Broadcast] = []
        self.uploads: list[_Upload] = []
        self.rank_of = rank_of or {}
        self.rank_down = rank_down if rank_of else math.inf
        self.rank_up = rank_up if rank_of else math.inf
        self.trace = trace or LinkTrace({})
        self._emission = math.inf  # rate of a broadcast that is sent
        self._are_rates_set = False
        self._rates_until_s = math.inf  # then the trace changes them
        self._change_s: float | None = None  # the next change, once asked for

    def set_server(self, up: float, down: float) -> None:
        """Set the rates of the server's links from now on."""
        self._server_up, self._server_down = up, down
        self._forget_rates()

    def _forget_rates(self) -> None:
        self._are_rates_set, self._change_s = False, None

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back; cached rates too, so that time goes on in the same
        steps.
        """
        return {
            **{name: getattr(self, name) for name in _STATE},
            "broadcasts": [asdict(broadcast) for broadcast in self.broadcasts],
            "uploads": [asdict(upload) for upload in self.uploads],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.broadcasts = [_make_broadcast(**fields) for fields in state["broadcasts"]]
        self.uploads = [_Upload(**fields) for fields in state["uploads"]]

    def start_broadcast(
        self, size: int, listeners: Sequence[Listener], rate_of: Callable[[int], float]
    ) -> None:
        """Start a stream of `size` bytes now; `rate_of(client)` is the client's own link."""
        downloads = [_Download(each, rate_of(each.client), float(each.begin)) for each in listeners]
        self.broadcasts.append(_Broadcast(size, downloads=downloads))
        self._forget_rates()

    def start_upload(self, client: int, size: int, rate: float) -> None:
        """Start an upload of `size` bytes now over a link of `rate`."""
        self.uploads.append(_Upload(client, size, rate, float(size)))
        self._forget_rates()

    def cancel(self, client: int) -> None:
        """Remove a client's transfers. A broadcast continues up to what the others need."""
        self.uploads = [upload for upload in self.uploads if upload.client != client]
        for broadcast in self.broadcasts:
            others = [d for d in broadcast.downloads if d.listener.client != client]
            if len(others) < len(broadcast.downloads):
                broadcast.size = max((d.listener.end for d in others), default=0)
                broadcast.downloads = others
        self.broadcasts = [b for b in self.broadcasts if b.downloads or b.sent < b.size]
        self._forget_rates()

    def progress(self) -> list[Progress]:
        """Return every transfer in flight: downloads as they began, then uploads."""
        if not self.broadcasts and not self.uploads:
            return []
        emission, tolerance_s = self._set_rates(), self.tolerance_s
        found = [
            _download_progress(download, broadcast, emission, tolerance_s)
            for broadcast in self.broadcasts
            for download in broadcast.downloads
        ]
        for upload in self.uploads:
            frac = 1 - upload.left / max(upload.size, 1)
            found.append(Progress(upload.client, "up", _clip(frac), upload.rate))
        return found

    @property
    def tolerance_s(self) -> float:
        """What counts as no time: far above the rounding of the clock, which grows with it."""
        return max(EPSILON_S, 8 * math.ulp(self.now_s))

    def next_change_s(self) -> float:
        """Return earliest time at which a transfer ends or changes its rate; infinity when idle."""
        if not self.broadcasts and not self.uploads:
            return math.inf
        if self._change_s is None:
            self._change_s = self._find_change_s()
        return self._change_s

    def _find_change_s(self) -> float:
        emission, tolerance_s = self._set_rates(), self.tolerance_s
        waits = [upload.left / upload.rate for upload in self.uploads]
        for broadcast in self.broadcasts:
            is_sending = broadcast.sent < broadcast.size
            if is_sending:
                waits.append((broadcast.size - broadcast.sent) / emission)
            for download in broadcast.downloads:
                rate = emission if is_sending else 0.0
                waits += _download_waits(download, broadcast, rate, tolerance_s)
        change_s = self.now_s + max(min(waits, default=math.inf), tolerance_s / 2)
        return min(change_s, self._rates_until_s)

    def advance(self, to_s: float) -> tuple[list[int], list[int]]:
        """Move every transfer to `to_s`, at most the next change; return clients that have
        finished (downloads, uploads), in client order."""
        if not self.broadcasts and not self.uploads:
            self.now_s = to_s
            return [], []
        emission = self._set_rates()
        step_s, self.now_s, self._change_s = to_s - self.now_s, to_s, None
        tolerance_s = self.tolerance_s
        for upload in self.uploads:
            upload.left -= upload.rate * step_s
        for broadcast in self.broadcasts:
            was_sending = broadcast.sent < broadcast.size
            _move_broadcast(broadcast, emission, step_s, tolerance_s)
            if was_sending and broadcast.sent == broadcast.size:
                self._forget_rates()
        return self._finish_downloads(tolerance_s), self._finish_uploads(tolerance_s)

    def _set_rates(self) -> float:
        """Set what every transfer may have now; return the rate of a broadcast that is sent."""
        if self._are_rates_set and self.now_s < self._rates_until_s:
            return self._emission
        sending = sum(broadcast.sent < broadcast.size for broadcast in self.broadcasts)
        self._emission = self._link_rate(SERVER, "up", self._server_up) / max(sending, 1)
        self._set_download_rates(self._emission)
        self._set_upload_rates()
        self._rates_until_s = self.trace.next_change_s(self.now_s)
        # A rank's cap is shared by what its downloads can use, which changes as they move.
        self._are_rates_set = math.isinf(self.rank_down)
        return self._emission

    def _link_rate(self, link: int, direction: Direction, drawn: float) -> float:
        traced = self.trace.rate(link, direction, self.now_s)
        return drawn if traced is None else traced

    def _set_download_rates(self, emission: float) -> None:
        downloads = [(download, b) for b in self.broadcasts for download in b.downloads]
        for download, _ in downloads:
            own_rate = self._link_rate(download.listener.client, "down", download.drawn)
            download.rate = own_rate * download.scale
        if math.isinf(self.rank_down):
            return
        tolerance_s = self.tolerance_s
        wanted = [_own_rate(d, b, emission, tolerance_s) for d, b in downloads]
        ranks = [self.rank_of[download.listener.client] for download, _ in downloads]
        shares = share_fairly(wanted, math.inf, ranks, self.rank_down)
        for (download, _), want, share in zip(downloads, wanted, shares, strict=True):
            if share < want:
                download.rate = share * download.scale

    def _set_upload_rates(self) -> None:
        uploads = sorted(self.uploads, key=lambda upload: upload.client)
        for upload in uploads:
            upload.limit = self._link_rate(upload.client, "up", upload.drawn)
        limits = [upload.limit for upload in uploads]
        ranks = [self.rank_of.get(upload.client, 0) for upload in uploads]
        capacity = self._link_rate(SERVER, "down", self._server_down)
        rates = share_fairly(limits, capacity, ranks, self.rank_up)
        for upload, rate in zip(uploads, rates, strict=True):
            upload.rate = rate

    def _finish_downloads(self, tolerance_s: float) -> list[int]:
        finished: list[int] = []
        for broadcast in self.broadcasts:
            done = [d for d in broadcast.downloads if _is_done(d, tolerance_s)]
            if done:
                finished += [download.listener.client for download in done]
                broadcast.downloads = [
                    d for d in broadcast.downloads if not _is_done(d, tolerance_s)
                ]
                self._forget_rates()
        self.broadcasts = [b for b in self.broadcasts if b.downloads or b.sent < b.size]
        return sorted(finished)

    def _finish_uploads(self, tolerance_s: float) -> list[int]:
        finished = sorted(u.client for u in self.uploads if u.left <= u.limit * tolerance_s)
        if finished:
            self.uploads = [u for u in self.uploads if u.left > u.limit * tolerance_s]
            self._forget_rates()
        return finished


def share_fairly(
    limits: Sequence[float], capacity: float, ranks: Sequence[int], rank_cap: float
) -> list[float]:
    """Return max-min fair rates of flows that cross a common link and a capped link of their rank.

    Args:
        limits: the most that each flow can use; ties go to the first.
        capacity: of the common link.
        ranks: the rank of each flow.
        rank_cap: the most that the flows of one rank get together.
    """
    if math.isinf(rank_cap) and sum(limits) <= capacity:
        return list(limits)
    waiting: dict[int, list[int]] = defaultdict(list)  # of a rank, the slowest last
    for flow in sorted(range(len(limits)), key=lambda f: (limits[f], f), reverse=True):
        waiting[ranks[flow]].append(flow)
    left = dict.fromkeys(waiting, rank_cap)
    rates = [0.0] * len(limits)

    def level(rank: int) -> float:
        """Return what the slowest flow of a rank can have at least: the others can have no less."""
        return min(limits[waiting[rank][-1]], left[rank] / len(waiting[rank]))

    for num_waiting in range(len(limits), 0, -1):
        rank = min((rank for rank in waiting if waiting[rank]), key=level)
        rate = min(level(rank), capacity / num_waiting)
        rates[waiting[rank].pop()] = rate
        capacity, left[rank] = capacity - rate, left[rank] - rate
    return rates


def _clip(frac: float) -> float:
    return min(max(frac, 0.0), 1.0)


def _download_progress(
    download: _Download, broadcast: _Broadcast, emission: float, tolerance_s: float
) -> Progress:
    listener = download.listener
    frac = (download.taken - listener.begin) / max(listener.end - listener.begin, 1)
    rate = _own_rate(download, broadcast, emission, tolerance_s)
    return Progress(listener.client, "down", _clip(frac), rate)


def _own_rate(
    download: _Download, broadcast: _Broadcast, emission: float, tolerance_s: float
) -> float:
    """Return what crosses a listener's own link now, if its rate allows, bytes per second."""
    rate = download.rate
    if broadcast.sent < broadcast.size:
        if _is_ahead(download, broadcast, emission * tolerance_s):
            return 0.0
        if broadcast.sent - download.taken <= emission * tolerance_s:
            rate = min(rate, emission)
    return rate / (download.scale or 1.0)


def _download_waits(
    download: _Download, broadcast: _Broadcast, emission: float, tolerance_s: float
) -> list[float]:
    """Return times until this download ends or changes its rate."""
    if _is_ahead(download, broadcast, emission * tolerance_s):
        return [(download.taken - broadcast.sent) / emission]
    backlog = 0.0 if download.caught_up else broadcast.sent - download.taken
    rate = _download_rate(download, emission, broadcast)
    waits = [(download.listener.end - download.taken) / rate] if rate > 0 else []
    if backlog > 0 and download.rate > emission:
        waits.append(backlog / (download.rate - emission))
    return waits


def _is_done(download: _Download, tolerance_s: float) -> bool:
    return download.listener.end - download.taken <= download.rate * tolerance_s


def _is_ahead(download: _Download, broadcast: _Broadcast, tolerance_bytes: float) -> bool:
    """Return whether the stream has not yet reached this download's part."""
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
