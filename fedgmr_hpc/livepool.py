"""The client ranks on the wall clock: a client lives on one rank, and its bytes take their time.

A dispatch goes out as one throttled transfer a client, an update comes back as another; pieces and
grants follow what the clock's links let through (comm/throttle.py). Nothing here waits for one
client: `next` is the first arrival or end of a window that really happens. Evaluations are shared
among the ranks as on the virtual clock and are not throttled; they are no part of what is modelled.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedgmr_hpc.comm.faults import FaultPlan, flip_bit
from fedgmr_hpc.comm.fluid import Listener
from fedgmr_hpc.comm.links import Arrival, Broadcast, WindowEnd
from fedgmr_hpc.comm.linktrace import Direction
from fedgmr_hpc.comm.pieces import SIZE, Incoming, Mark, Outgoing, read_mark
from fedgmr_hpc.comm.throttle import TICK_S, WallClock
from fedgmr_hpc.comm.transport import Message, Tag, Transport
from fedgmr_hpc.config import Config
from fedgmr_hpc.fl.events import Dispatch, Lost
from fedgmr_hpc.ledger import PositionCodes
from fedgmr_hpc.rankpool import Chunk, RankPool, RankState
from fedgmr_hpc.rankpool import Outgoing as OutgoingFrames
from fedgmr_hpc.records import Assignment, RunError, TransferRow, TransportTimeout, WireError

log = logging.getLogger("fedgmr_hpc")
LEAST_BYTES = 4096  # a piece is never shorter, but for the last
MAX_MESSAGES = 16  # taken before the links are looked at again
LOOK_UP_S = 0.25  # the longest wait before the server looks after its other duties


def place_clients(num_clients: int, num_ranks: int) -> dict[int, int]:
    """The rank that hosts each client: dealt out in turn, so that every rank has fast and slow."""
    return {client: 1 + client % (num_ranks - 1) for client in range(num_clients)}


@dataclass(slots=True)
class _Held:
    """What a client knows of the newest masks."""

    mask_id: int = -1
    num_known: int = 0  # levels whose positions it has


@dataclass(slots=True)
class Cycle:
    """One client's dispatch, its training, and its update on the way back."""

    task: Assignment
    number: int
    payload: Outgoing | None  # the dispatch, until the client has it
    asked_s: float  # when the present transfer was ready to go
    began_s: float = 0.0  # when its links took it up
    done_s: float | None = None  # when its links were through with it
    up_bytes: int = 0
    update: Incoming | None = None
    granted_bytes: int = 0
    has_overrun: bool = False
    frac: float = 0.0  # of the present transfer that the links have let through
    hits: frozenset[int] = frozenset()  # faults of the present transfer
    through_wall_s: float | None = None  # when everything had been let through
    num_resent: int = 0  # of the present transfer
    short: Message | None = None  # the offer that an update came along with

    @property
    def direction(self) -> Direction:
        """Where the present transfer, or else the next one, goes."""
        return "up" if self.payload is None else "down"


class LivePool(RankPool):
    """Dispatches, collects and keeps time, all for real.

    Args:
        clock: the wall clock.
        rank_of: the rank that hosts each client.
        upload_bytes: length of the update that answers an assignment.
        record: takes the row of each transfer that is through.
    """

    def __init__(
        self,
        config: Config,
        transport: Transport,
        run_id: int,
        codes: PositionCodes,
        while_waiting: Callable[[], None],
        *,
        clock: WallClock,
        rank_of: dict[int, int],
        upload_bytes: Callable[[Assignment], int],
        record: Callable[[TransferRow], None],
    ) -> None:
        super().__init__(config, transport, run_id, codes, while_waiting)
        self.clock, self.rank_of, self.record = clock, rank_of, record
        self.upload_bytes = upload_bytes
        self.heard_s = dict.fromkeys(self.ranks, time.perf_counter())
        self.faults = FaultPlan(config.faults, config.seed)
        self.cycles: dict[int, Cycle] = {}  # by client
        self.held = {client: _Held() for client in rank_of}
        self.happened: deque[Arrival | WindowEnd | Lost] = deque()
        self.moved_wall_s = 0.0
        self.idle_since_s = 0.0  # 0 while messages come
        self.num_dispatched = 0
        self.is_over = False

    # --- the clock's side

    def next(self) -> Arrival | WindowEnd | Lost:
        """The next thing that happens."""
        while not self.happened:
            self.pump("an update")
        return self.happened.popleft()

    def merge_end_s(self, now_s: float) -> float:
        """When a merge that begins now is done."""
        return self.clock.merge_end_s(now_s)

    def close_at(self, at_s: float) -> None:
        """Schedules a `WindowEnd`."""
        self.clock.close_at(at_s)

    def validated_s(self, ready_s: float) -> float:
        """When the validation that could begin at `ready_s` was done."""
        return max(ready_s, self.clock.now_s())

    def broadcast(self, at_s: float, broadcast: Broadcast) -> None:
        """Lets the bytes of a dispatch go."""
        for listener in broadcast.listeners:
            if listener.client in self.cycles:
                cycle = self.cycles[listener.client]
                cycle.asked_s = max(at_s, self.clock.now_s())
                cycle.frac, cycle.done_s, cycle.through_wall_s = 0.0, None, None
        self.clock.broadcast(at_s, broadcast)

    # --- the ranks' side

    def submit(self, dispatch: Dispatch) -> None:
        """Prepares one transfer for each client of a dispatch; `broadcast` lets them go."""
        frames = OutgoingFrames(dispatch, self.config, self.run_id, self.codes)
        self.num_dispatched += 1
        for task in dispatch.assignments:
            if self.rank_of[task.client] not in self.ranks:
                continue  # it was lost, which the coordinator has yet to hear
            parts = [frames.frame(level, with_positions=new) for level, new in self._levels(task)]
            payload = Outgoing([part for each in parts for part in each])
            number = self.num_dispatched
            self.cycles[task.client] = Cycle(task, number, payload, 0.0)
            lengths = [sum(len(part) for part in each) for each in parts]
            content = {"task": task.as_json(), "number": number, "lengths": lengths}
            rank = self.rank_of[task.client]
            self.transport.send(rank, Tag.TASK, json.dumps(content).encode())

    def _hand_over(self) -> None:
        """Waits for nobody: a rank may have gone silent."""
        self.transport.poll()

    def _levels(self, task: Assignment) -> list[tuple[int, bool]]:
        """The increments of a sub-model, and whether the client needs their positions."""
        held = self.held[task.client]
        if held.mask_id != task.mask_id:
            held.mask_id, held.num_known = task.mask_id, 0
        levels = [(level, level >= held.num_known) for level in range(task.level + 1)]
        held.num_known = max(held.num_known, task.level + 1)
        return levels

    def pump(self, awaited: str) -> None:
        """Moves what may move and takes the messages that are there within a tick."""
        self._feed()
        self._move()
        self.while_waiting()
        self._ping()
        message = self._wait_for_message()
        if message is None:
            self._look_for_lost()
        num_taken = 0
        while message is not None:
            self.heard_s[message.source] = time.perf_counter()
            self._take(message)
            num_taken += 1
            message = self.transport.recv_now() if num_taken < MAX_MESSAGES else None

    def _wait_for_message(self) -> Message | None:
        wait_s = 0.0 if self.happened else min(self.clock.next_wall_s(), LOOK_UP_S)
        began_s = time.perf_counter()
        try:
            message = self.transport.recv(wait_s)
            self.tracer.add("receive", self.idle_since_s or began_s, time.perf_counter())
            self.idle_since_s = 0.0
            return message
        except TransportTimeout:
            self.idle_since_s = self.idle_since_s or began_s
            return None
        finally:
            self.wait_s += time.perf_counter() - began_s

    def _look_for_lost(self) -> None:
        """Goes on without the clients of a rank that owes something and has long been silent."""
        now_s = time.perf_counter()
        for rank in list(self.ranks):
            if not self._owes(rank):
                self.heard_s[rank] = now_s
            elif now_s - self.heard_s[rank] > self.config.run.timeout_s:
                self._lose(rank)

    def _owes(self, rank: int) -> bool:
        if self.is_over:
            return rank not in self.goodbyes
        return bool(self.ranks[rank].chunks) or any(
            cycle.through_wall_s is not None
            or cycle.num_resent > 0
            or (cycle.payload is None and cycle.update is None)
            for client, cycle in self.cycles.items()
            if self.rank_of[client] == rank
        )

    def _lose(self, rank: int) -> None:
        reason = f"rank {rank} has been silent for {self.config.run.timeout_s:g} s"
        self.urgent.extendleft(reversed(self.ranks.pop(rank).chunks))
        self.offsets.pop(rank)
        self.transport.gone.add(rank)
        log.warning("goes on without rank %d: %s", rank, reason)
        if not self.ranks and not self.is_over:
            raise RunError(f"{reason}, and no other rank is left", rank=rank, stage="receive")
        for client in (client for client, host in self.rank_of.items() if host == rank):
            if self.cycles.pop(client, None) is not None:
                self.clock.expect_upload(client, 0)
            self.happened.append(Lost(self.clock.now_s(), (client,), reason))

    def _move(self) -> None:
        """Sends and grants what the links have let through."""
        if self.is_over:
            return
        moved = self.clock.advance()
        for at_s in moved.closed:
            self.happened.append(WindowEnd(max(at_s, moved.now_s)))
        for (client, direction), began_s in moved.began.items():
            for cycle in self._present(client, direction):
                self._begin(cycle, direction, began_s)
        for (client, direction), done_s in moved.finished.items():
            for cycle in self._present(client, direction):
                cycle.done_s, cycle.frac = done_s, 1.0
        for (client, direction), frac in moved.frac.items():
            for cycle in self._present(client, direction):
                cycle.frac = frac
        now_wall_s = time.perf_counter()
        is_tick = now_wall_s - self.moved_wall_s >= TICK_S
        if is_tick:  # what is held or late is under way no more, so look at all of them
            self.moved_wall_s = now_wall_s
        due = list(self.cycles) if is_tick else [client for client, _ in moved.finished]
        for client in due:
            if client in self.cycles:
                self._let_through(client, self.cycles[client], moved.now_s)

    def _present(self, client: int, direction: Direction) -> list[Cycle]:
        """The cycle whose present transfer this is; none for one of a client that was lost, or
        that turned out not to be needed."""
        cycle = self.cycles.get(client)
        return [] if cycle is None or cycle.direction != direction else [cycle]

    def _begin(self, cycle: Cycle, direction: Direction, began_s: float) -> None:
        cycle.began_s, cycle.frac, cycle.through_wall_s = began_s, 0.0, None
        client, attempt = cycle.task.client, cycle.num_resent
        cycle.hits = self.faults.hits(client, direction, cycle.number, attempt, began_s)

    def _let_through(self, client: int, cycle: Cycle, now_s: float) -> None:
        if cycle.through_wall_s is not None:
            self._check_through(cycle)
            return
        if cycle.frac == 0.0 or self.faults.is_held(cycle.hits, cycle.began_s, now_s):
            return
        if cycle.payload is not None:
            upto = int(cycle.frac * cycle.payload.size)
            if upto - cycle.payload.sent >= LEAST_BYTES or cycle.frac == 1.0:
                self._send_piece(client, cycle, cycle.payload, upto)
        elif cycle.short is not None:
            if cycle.frac == 1.0:
                short, cycle.short = cycle.short, None
                self._take_piece(cycle, Mark(client, cycle.number, 0, cycle.up_bytes), short)
        elif cycle.update is not None:
            upto = int(cycle.frac * cycle.up_bytes)
            if upto - cycle.granted_bytes >= LEAST_BYTES or cycle.frac == 1.0:
                cycle.granted_bytes = upto
                mark = Mark(client, cycle.number, 0, upto)
                self.transport.send(self.rank_of[client], Tag.GRANT, mark.pack())
        if cycle.frac == 1.0:
            cycle.through_wall_s = time.perf_counter()

    def _check_through(self, cycle: Cycle) -> None:
        """Takes a transfer for lost that should long have been through. If it may not be sent
        again, a rank of which nothing was heard since is given until it counts as lost itself.
        """
        assert cycle.through_wall_s is not None
        late_s = time.perf_counter() - cycle.through_wall_s
        is_silent = self.heard_s[self.rank_of[cycle.task.client]] < cycle.through_wall_s
        if is_silent and cycle.num_resent == self.config.wire.max_resends:
            return
        if late_s > self.config.wire.resend_after_s and (cycle.payload or cycle.update):
            error = WireError(f"nothing came of a transfer for {late_s:.1f} s")
            if cycle.payload is not None:
                self._send_again(cycle, cycle.payload, error)
            else:
                self._ask_again(cycle, error)

    def _send_piece(self, client: int, cycle: Cycle, payload: Outgoing, upto: int) -> None:
        begin, is_last = payload.sent, upto == payload.size
        head = Mark(client, cycle.number, begin, upto).pack()
        parts: list[Any] = [*payload.take(upto)]
        if not parts or (begin == 0 and self.faults.has(cycle.hits, "drop")):
            return
        if is_last and self.faults.has(cycle.hits, "corrupt"):
            parts[-1] = flip_bit(parts[-1])
        for _ in range(1 + self.faults.has(cycle.hits, "duplicate")):
            self.transport.send(self.rank_of[client], Tag.PIECE, head, *parts)

    def _feed_rank(self, rank: int, state: RankState, *, is_idle: bool) -> bool:
        """Test chunks wait until none of the rank's clients trains."""
        return super()._feed_rank(rank, state, is_idle=is_idle and not self._is_training(rank))

    def _send_chunk(self, rank: int, state: RankState, chunk: Chunk) -> None:
        """Keeps the version's frame: the chunks of a rank that is lost go to those left."""
        payload = chunk.evaluation.payload
        super()._send_chunk(rank, state, chunk)
        chunk.evaluation.payload = payload

    def _is_training(self, rank: int) -> bool:
        return any(
            cycle.payload is None and cycle.update is None
            for client, cycle in self.cycles.items()
            if self.rank_of[client] == rank
        )

    def _take(self, message: Message) -> None:
        takes = {
            Tag.GOT: self._take_got,
            Tag.OFFER: self._take_offer,
            Tag.PIECE: self._take_piece,
            Tag.RETRY: self._take_retry,
        }
        if message.source not in self.ranks:
            return  # it was lost, and wakes up
        if message.tag not in takes:
            super()._take(message)
            return
        mark = read_mark(message.payload)
        cycle = self.cycles.get(mark.client)
        if cycle is not None and cycle.number == mark.number:
            takes[message.tag](cycle, mark, message)

    def _take_got(self, cycle: Cycle, mark: Mark, message: Message) -> None:
        if cycle.payload is None:
            return
        self._record(cycle, "down", mark.end)
        cycle.payload, cycle.frac, cycle.through_wall_s, cycle.num_resent = None, 0.0, None, 0

    def _take_offer(self, cycle: Cycle, mark: Mark, message: Message) -> None:
        cycle.has_overrun = bool(mark.begin)
        cycle.up_bytes, cycle.update = mark.end, Incoming(mark.end)
        # so short that it came along, to be held until its time
        cycle.short = message if len(message.payload) > SIZE else None
        cycle.granted_bytes, cycle.done_s, cycle.frac, cycle.through_wall_s = 0, None, 0.0, None
        cycle.asked_s = self.clock.now_s()
        self.clock.offer(mark.client)

    def _take_piece(self, cycle: Cycle, mark: Mark, message: Message) -> None:
        piece: Any = message.payload[SIZE:]
        if cycle.update is None or (mark.begin == 0 and self.faults.has(cycle.hits, "drop")):
            return
        if mark.end == cycle.up_bytes and self.faults.has(cycle.hits, "corrupt"):
            piece = flip_bit(piece)
        try:
            for _ in range(1 + self.faults.has(cycle.hits, "duplicate")):
                cycle.update.put(mark, piece)
        except WireError as error:
            self._ask_again(cycle, error)
            return
        if cycle.update.is_complete:
            self._complete(cycle, cycle.update)

    def _complete(self, cycle: Cycle, update: Incoming) -> None:
        """Every byte of an update is there."""
        client = cycle.task.client
        whole = Message(self.rank_of[client], Tag.PIECE, update.buffer.data)
        try:
            self._take_update(whole)
        except WireError as error:
            self._ask_again(cycle, error)
            return
        self._record(cycle, "up", cycle.up_bytes)
        if cycle.has_overrun:
            self.overran.add(client)
        del self.cycles[client]
        self.happened.append(Arrival(self.clock.now_s(), client))

    def _take_retry(self, cycle: Cycle, mark: Mark, message: Message) -> None:
        if cycle.payload is not None and cycle.payload.sent:  # else it is being sent again already
            self._send_again(cycle, cycle.payload, WireError("its dispatch came damaged"))

    def _send_again(self, cycle: Cycle, payload: Outgoing, error: WireError) -> None:
        """A dispatch did not get through: once more, over the client's link alone."""
        self._count_resend(cycle, error)
        payload.rewind()
        client, size = cycle.task.client, payload.size
        self.clock.expect_upload(client, self.upload_bytes(cycle.task))
        again = Broadcast(size, (Listener(client, 0, size, size),), {})
        self.broadcast(self.clock.now_s(), again)

    def _ask_again(self, cycle: Cycle, error: WireError) -> None:
        """An update came damaged: the client offers it once more."""
        self._count_resend(cycle, error)
        client = cycle.task.client
        cycle.through_wall_s, cycle.frac = None, 0.0
        self.clock.expect_upload(client, self.upload_bytes(cycle.task))
        cycle.update = None
        mark = Mark(client, cycle.number, 0, cycle.up_bytes)
        self.transport.send(self.rank_of[client], Tag.RETRY, mark.pack())

    def _count_resend(self, cycle: Cycle, error: WireError) -> None:
        cycle.num_resent += 1
        if cycle.num_resent > self.config.wire.max_resends:
            raise WireError(
                f"{error.message}; sent {cycle.num_resent} times",
                rank=self.rank_of[cycle.task.client],
                client=cycle.task.client,
                version=cycle.task.base_version,
                stage="receive",
            )

    def _record(self, cycle: Cycle, direction: Direction, num_bytes: int) -> None:
        now_s = self.clock.now_s()
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
                queue_wait_s=cycle.began_s - cycle.asked_s,
                num_resent=cycle.num_resent,
            )
        )
        cycle.done_s = None

    def stop(self) -> None:
        """Ends all ranks; what is still on its way is no part of the run."""
        self.is_over = True
        super().stop()
