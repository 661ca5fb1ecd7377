"""Transfers of the clients on the wall clock: pieces, grants, and whatever has to be sent again.

A client's `Cycle` is its dispatch on the way down, its training, and its update on the way up. What
the links let through (network/throttle.py) is sent, or granted, as pieces (wire/pieces.py). An
attempt that comes damaged, or of which nothing comes, is followed by another one, over the client's
link alone; marks carry the attempt's number, so that one loss is counted once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fedgmr_hpc.config.errors import WireError
from fedgmr_hpc.config.sections import WireConfig
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.network.faults import FaultPlan, flip_bit
from fedgmr_hpc.network.fluid import Listener
from fedgmr_hpc.network.link_traces import Direction
from fedgmr_hpc.network.links import Broadcast
from fedgmr_hpc.network.throttle import TICK_S, Moved, WallClock
from fedgmr_hpc.storage.rows import TransferRow
from fedgmr_hpc.transport.contract import Message, Tag, Transport
from fedgmr_hpc.wire.pieces import SIZE, Incoming, Mark, Outgoing, read_mark

LEAST_BYTES = 4096  # a piece is never shorter, but for the last
LOOK_UP_S = 0.25  # the longest wait before the server looks at what has come


@dataclass(slots=True)
class Cycle:
    """One client's dispatch, its training, and its update on the way back."""

    task: Assignment
    number: int
    payload: Outgoing | None  # the dispatch, until the client has it
    asked_s: float  # when the present transfer was ready to go
    began_s: float = 0.0  # when its links took it up
    begun: dict[int, float] = field(default_factory=dict)  # likewise, by attempt
    down_bytes: int = 0  # of the dispatch, as the links see it
    done_s: float | None = None  # when its links were through with it
    up_bytes: int = 0
    update: Incoming | None = None
    granted_bytes: int = 0
    has_overrun: bool = False
    frac: float = 0.0  # of the present transfer that the links have let through
    hits: frozenset[int] = frozenset()  # faults of the present transfer
    through_wall_s: float | None = None  # when everything had been let through
    num_resent: int = 0  # of the present transfer
    short: memoryview | None = None  # the update, if it came along with its offer

    @property
    def direction(self) -> Direction:
        """Where the present transfer, or else the next one, goes."""
        return "up" if self.payload is None else "down"

    @property
    def is_training(self) -> bool:
        """Whether the client has its dispatch, and has not offered its update."""
        return self.payload is None and self.update is None

    @property
    def is_owed(self) -> bool:
        """Whether something has to come from the client's rank."""
        return self.is_training or self.through_wall_s is not None

    def await_links(self, asked_s: float) -> None:
        """Note that the present transfer is ready to go; nothing of it has been let through."""
        self.asked_s, self.frac, self.done_s, self.through_wall_s = asked_s, 0.0, None, None


class Transfers:
    """What is on its way between the server and the clients.

    Args:
        rank_of: the rank that hosts each client.
        upload_bytes: length of the update that answers an assignment.
        record: takes the row of each transfer that has arrived.
        deliver: takes an update when its last byte is there, and when that was; raises WireError
            if it is damaged.

    Attributes:
        cycles: by client.
        heard_s: when each rank was last heard of, in seconds of `patience_s`.
        woke_s: when each was last heard of after a long silence, likewise.
    """

    def __init__(
        self,
        wire: WireConfig,
        faults: FaultPlan,
        transport: Transport,
        clock: WallClock,
        rank_of: dict[int, int],
        *,
        upload_bytes: Callable[[Assignment], int],
        record: Callable[[TransferRow], None],
        deliver: Callable[[Cycle, Message, float], None],
    ) -> None:
        self.wire, self.transport, self.clock, self.rank_of = wire, transport, clock, rank_of
        self.upload_bytes, self.record, self.deliver = upload_bytes, record, deliver
        self.faults = faults
        self.cycles: dict[int, Cycle] = {}
        self._looked_s, self._away_s = time.perf_counter(), 0.0
        self.heard_s = dict.fromkeys(range(1, transport.size), self.patience_s)
        self.woke_s = dict.fromkeys(range(1, transport.size), -math.inf)
        self._moved_wall_s = 0.0
        self._takes: dict[Tag, Callable[[Cycle, Mark, memoryview], None]] = {
            Tag.GOT: self._take_got,
            Tag.OFFER: self._take_offer,
            Tag.PIECE: self._take_piece,
            Tag.RETRY: self._take_retry,
        }

    @property
    def patience_s(self) -> float:
        """Wall seconds, without those in which the server did something else than look: what came
        meanwhile is not late.
        """
        return time.perf_counter() - self._away_s

    def look(self) -> None:
        """Note that the server looks at what has come."""
        now_s = time.perf_counter()
        self._away_s += max(0.0, now_s - self._looked_s - 2 * LOOK_UP_S)
        self._looked_s = now_s

    def hear(self, rank: int) -> None:
        """Note that something has come from a rank."""
        now_s = self.patience_s
        if now_s - self.heard_s[rank] > self.wire.resend_after_s:
            self.woke_s[rank] = now_s
        self.heard_s[rank] = now_s

    def broadcast(self, at_s: float, broadcast: Broadcast) -> None:
        """Let the bytes of a dispatch go."""
        asked_s = max(at_s, self.clock.now_s())
        for listener in broadcast.listeners:
            if (cycle := self.cycles.get(listener.client)) is not None:
                cycle.down_bytes = listener.own_bytes
                cycle.await_links(asked_s)
        self.clock.broadcast(at_s, broadcast)

    def lose(self, client: int) -> None:
        """Give up what is on its way to or from a client that is gone."""
        if self.cycles.pop(client, None) is not None:
            self.clock.expect_upload(client, 0)

    def of_rank(self, rank: int) -> Iterator[Cycle]:
        """Return the cycles of the clients that a rank hosts."""
        return (cycle for client, cycle in self.cycles.items() if self.rank_of[client] == rank)

    def take(self, message: Message) -> bool:
        """Take a message about a transfer; False if this is none. One of a cycle that is over is
        ignored."""
        take = self._takes.get(message.tag)
        if take is None:
            return False
        mark = read_mark(message.payload)
        cycle = self.cycles.get(mark.client)
        if cycle is not None and cycle.number == mark.number:
            take(cycle, mark, message.payload[SIZE:])
        return True

    def move(self, moved: Moved) -> None:
        """Send and grant what the links have let through."""
        for (client, direction), began_s in moved.began.items():
            if (cycle := self._present(client, direction)) is not None:
                self._begin(cycle, direction, began_s)
        for (client, direction), done_s in moved.finished.items():
            if (cycle := self._present(client, direction)) is not None:
                cycle.done_s, cycle.frac = done_s, 1.0
        for (client, direction), frac in moved.frac.items():
            if (cycle := self._present(client, direction)) is not None:
                cycle.frac = frac
        for cycle in self._due(moved):
            self._let_through(cycle, moved.now_s)

    def _present(self, client: int, direction: Direction) -> Cycle | None:
        """Return the cycle whose present transfer this is.

        None where the client was lost meanwhile, or the transfer turned out not to be needed: the
        links may still finish one whose last attempt had arrived after all.
        """
        cycle = self.cycles.get(client)
        return cycle if cycle is not None and cycle.direction == direction else None

    def _due(self, moved: Moved) -> list[Cycle]:
        """Return the cycles to look at now.

        Whatever the links have finished is passed on at once, as somebody waits for it. All others
        are looked at once a tick: a cycle that a fault holds back, or that is late, is in none of
        the links' news any more.
        """
        now_wall_s = time.perf_counter()
        if now_wall_s - self._moved_wall_s >= TICK_S:
            self._moved_wall_s = now_wall_s
            return list(self.cycles.values())
        return [self.cycles[client] for client, _ in moved.finished if client in self.cycles]

    def _begin(self, cycle: Cycle, direction: Direction, began_s: float) -> None:
        cycle.began_s, cycle.frac, cycle.through_wall_s = began_s, 0.0, None
        client, attempt = cycle.task.client, cycle.num_resent
        cycle.begun[attempt] = began_s
        cycle.hits = self.faults.hits(client, direction, cycle.number, attempt, began_s)

    def _let_through(self, cycle: Cycle, now_s: float) -> None:
        if cycle.through_wall_s is not None:
            self._check_through(cycle)
            return
        if cycle.frac == 0.0 or self.faults.is_held(cycle.hits, cycle.began_s, now_s):
            return
        if cycle.frac == 1.0:
            cycle.through_wall_s = self.patience_s
        if cycle.payload is not None:
            self._send_piece(cycle, cycle.payload)
        elif cycle.short is not None:
            self._release_short(cycle, cycle.short)
        elif cycle.update is not None:
            self._grant(cycle)

    def _check_through(self, cycle: Cycle) -> None:
        """Take a transfer for lost that should have arrived long ago.

        Where it may not be sent again, the run would fail. But a rank that has said nothing since
        may be dead rather than the transfer lost: then `LivePool` loses the rank, and the run goes
        on without it. Where it wakes up after all, its answers get as long once more.
        """
        assert cycle.through_wall_s is not None
        rank = self.rank_of[cycle.task.client]
        late_s = self.patience_s - max(cycle.through_wall_s, self.woke_s[rank])
        if late_s <= self.wire.resend_after_s:
            return
        is_silent = self.heard_s[rank] < cycle.through_wall_s
        if is_silent and cycle.num_resent == self.wire.max_resends:
            return
        error = WireError(f"nothing came of a transfer for {late_s:.1f} s")
        if cycle.payload is not None:
            self._send_again(cycle, cycle.payload, error)
        elif cycle.update is not None:
            self._ask_again(cycle, error)

    def _mark(self, cycle: Cycle, begin: int, end: int) -> Mark:
        return Mark(cycle.task.client, cycle.number, begin, end, cycle.num_resent)

    def _send_piece(self, cycle: Cycle, payload: Outgoing) -> None:
        # The links say which share of the bytes may have gone by now. Tiny pieces would cost more
        # messages than they save time, so all but the last wait until they are worth one.
        begin, upto = payload.sent, int(cycle.frac * payload.size)
        if upto - begin < LEAST_BYTES and cycle.frac < 1.0:
            return
        parts: list[Any] = [*payload.take(upto)]
        if not parts or (begin == 0 and self.faults.has(cycle.hits, "drop")):
            return
        if upto == payload.size and self.faults.has(cycle.hits, "corrupt"):
            parts[-1] = flip_bit(parts[-1])
        head, rank = self._mark(cycle, begin, upto).pack(), self.rank_of[cycle.task.client]
        for _ in range(1 + self.faults.has(cycle.hits, "duplicate")):
            self.transport.send(rank, Tag.PIECE, head, *parts)

    def _release_short(self, cycle: Cycle, short: memoryview) -> None:
        # The bytes are here since the offer; for the run they arrive when the links are done.
        if cycle.frac == 1.0:
            cycle.short = None
            self._take_piece(cycle, self._mark(cycle, 0, cycle.up_bytes), short)

    def _grant(self, cycle: Cycle) -> None:
        # The server alone keeps the time of the links, so it tells the rank how far it may send.
        upto = int(cycle.frac * cycle.up_bytes)
        if upto - cycle.granted_bytes >= LEAST_BYTES or cycle.frac == 1.0:
            cycle.granted_bytes = upto
            self._send_mark(Tag.GRANT, cycle, upto)

    def _send_mark(self, tag: Tag, cycle: Cycle, end: int) -> None:
        mark = self._mark(cycle, 0, end)
        self.transport.send(self.rank_of[mark.client], tag, mark.pack())

    def _take_got(self, cycle: Cycle, mark: Mark, rest: memoryview) -> None:
        if cycle.payload is None:
            return
        if mark.attempt < cycle.num_resent:  # the present attempt turns out not to be needed
            self.clock.expect_upload(mark.client, self.upload_bytes(cycle.task))
            cycle.began_s, cycle.done_s = cycle.begun.get(mark.attempt, cycle.began_s), None
        self._record(cycle, "down", mark.end, self.clock.now_s())
        cycle.payload, cycle.frac, cycle.through_wall_s, cycle.num_resent = None, 0.0, None, 0
        cycle.begun = {}

    def _take_offer(self, cycle: Cycle, mark: Mark, rest: memoryview) -> None:
        cycle.has_overrun = bool(mark.begin)
        cycle.up_bytes, cycle.update = mark.end, Incoming(mark.end)
        cycle.short = rest if len(rest) else None  # to be held until its time
        cycle.granted_bytes = 0
        cycle.await_links(self.clock.now_s())
        self.clock.offer(mark.client)

    def _take_piece(self, cycle: Cycle, mark: Mark, piece: Any) -> None:
        if cycle.update is None or mark.attempt != cycle.num_resent:
            return  # of an attempt that was given up
        if mark.begin == 0 and self.faults.has(cycle.hits, "drop"):
            return
        if mark.end == cycle.up_bytes and self.faults.has(cycle.hits, "corrupt"):
            piece = flip_bit(piece)
        try:
            for _ in range(1 + self.faults.has(cycle.hits, "duplicate")):
                cycle.update.put(mark, piece)
            if cycle.update.is_complete:
                self._complete(cycle, cycle.update)
        except WireError as error:
            self._ask_again(cycle, error)

    def _complete(self, cycle: Cycle, update: Incoming) -> None:
        """Deliver an update that is there to the last byte."""
        now_s, client = self.clock.now_s(), cycle.task.client
        whole = Message(self.rank_of[client], Tag.PIECE, update.buffer.data)
        self.deliver(cycle, whole, now_s)
        self._record(cycle, "up", cycle.up_bytes, now_s)
        del self.cycles[client]

    def _take_retry(self, cycle: Cycle, mark: Mark, rest: memoryview) -> None:
        """Send a dispatch again that came damaged."""
        # A mark of an earlier attempt tells of a loss that is known already.
        if cycle.payload is not None and mark.attempt == cycle.num_resent:
            self._send_again(cycle, cycle.payload, WireError("its dispatch came damaged"))

    def _send_again(self, cycle: Cycle, payload: Outgoing, error: WireError) -> None:
        """Send a dispatch once more, over the client's link alone: the others have had theirs."""
        self._count_resend(cycle, error)
        payload.rewind()
        client, size = cycle.task.client, cycle.down_bytes
        self.clock.expect_upload(client, self.upload_bytes(cycle.task))
        again = Broadcast(size, (Listener(client, 0, size, size),), {})
        self.broadcast(self.clock.now_s(), again)

    def _ask_again(self, cycle: Cycle, error: WireError) -> None:
        """Have the client offer a damaged update once more."""
        self._count_resend(cycle, error)
        cycle.through_wall_s, cycle.frac, cycle.update = None, 0.0, None
        self.clock.expect_upload(cycle.task.client, self.upload_bytes(cycle.task))
        self._send_mark(Tag.RETRY, cycle, cycle.up_bytes)

    def _count_resend(self, cycle: Cycle, error: WireError) -> None:
        cycle.num_resent += 1
        if cycle.num_resent > self.wire.max_resends:
            raise WireError(
                f"{error.message}; sent {cycle.num_resent} times",
                rank=self.rank_of[cycle.task.client],
                client=cycle.task.client,
                version=cycle.task.base_version,
                stage="receive",
            )

    def _record(self, cycle: Cycle, direction: Direction, num_bytes: int, now_s: float) -> None:
        # What the link model allowed, to compare with what the transport took.
        lawful_s = (now_s if cycle.done_s is None else cycle.done_s) - cycle.began_s
        self.record(
            TransferRow(
                now_s=now_s,
                client=cycle.task.client,
                base_version=cycle.task.base_version,
                is_upload=int(direction == "up"),
                bytes=num_bytes,
                requested_bytes_per_s=num_bytes / max(lawful_s, 1e-9),
                achieved_bytes_per_s=num_bytes / max(now_s - cycle.began_s, 1e-9),
                queue_wait_s=max(0.0, cycle.began_s - cycle.asked_s),
                num_resent=cycle.num_resent,
            )
        )
        cycle.done_s = None
