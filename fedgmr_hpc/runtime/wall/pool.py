"""The client ranks on the wall clock: a client lives on one rank, and its bytes take their time.

A dispatch goes out as one throttled transfer a client, an update comes back as another (see
transfers.py). Nothing here waits for one client: `next` is the first arrival or end of a window
that really happens. Evaluations are shared among the ranks as on the virtual clock and are not
throttled; they are no part of what is modelled.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedgmr_hpc.config.errors import RunError, TransportError, TransportTimeout
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.events import Dispatch, Lost
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.network.faults import FaultPlan
from fedgmr_hpc.network.links import Arrival, Broadcast, WindowEnd
from fedgmr_hpc.network.throttle import WallClock
from fedgmr_hpc.runtime.dispatch_frames import DispatchFrames
from fedgmr_hpc.runtime.ledger import PositionCodes
from fedgmr_hpc.runtime.rank_pool import RankPool
from fedgmr_hpc.runtime.rank_state import RankState
from fedgmr_hpc.runtime.wall.transfers import LOOK_UP_S, Cycle, Transfers
from fedgmr_hpc.storage.rows import TransferRow
from fedgmr_hpc.training.chunks import Evaluation
from fedgmr_hpc.transport.contract import Message, Tag, Transport
from fedgmr_hpc.wire.pieces import Outgoing

log = logging.getLogger("fedgmr_hpc")
MAX_MESSAGES = 16  # taken before the links are looked at again
TURN_S = 1.0  # after which the server looks after its other duties though nothing has happened


@dataclass(slots=True)
class _Held:
    """What a client knows of the newest masks."""

    mask_id: int = -1
    num_known: int = 0  # levels whose positions it has


class LivePool(RankPool):
    """Dispatches, collects and keeps time, all for real.

    Args:
        clock: the wall clock.
        rank_of: the rank that hosts each client.
        upload_bytes: length of the update that answers an assignment.
        record: takes the row of each transfer that has arrived.
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
        self.is_relayed = False  # a rank that has gone silent may keep nobody else waiting
        self.hands_over = False  # frames travel in pieces
        self.clock, self.rank_of = clock, rank_of
        self.transfers = Transfers(
            config.wire,
            FaultPlan(config.faults, config.seed),
            transport,
            clock,
            rank_of,
            upload_bytes=upload_bytes,
            record=record,
            deliver=self._deliver,
        )
        self.held = {client: _Held() for client in rank_of}
        self.happened: deque[Arrival | WindowEnd | Lost] = deque()
        self.idle_since_s = 0.0  # 0 while messages come
        self.num_dispatched = 0
        self.is_over = False

    # --- the clock's side

    def start(self) -> None:
        """Let time begin, or go on, once every rank is ready to work.

        Raises:
            RunError: a rank has not answered in time.
        """
        for rank in self.ranks:
            try:
                self._ask_time(rank)
            except TransportTimeout:
                reason = f"{self._silence(rank)} since the start"
                raise RunError(reason, rank=rank, stage="receive") from None
        self.clock.start()

    def _measure_offset(self, rank: int) -> None:
        """Go on without a rank that does not answer: only its spans are missing then."""
        self._ping()  # the others may have to wait for as long as a rank may be silent
        try:
            super()._measure_offset(rank)
        except TransportTimeout:
            self._lose(rank, self._silence(rank))

    def next(self) -> Arrival | WindowEnd | Lost | None:
        """Return the next thing that happens; None if nothing has for a while."""
        began_s = time.perf_counter()
        while not self.happened:
            if time.perf_counter() - began_s > TURN_S:
                return None
            self.pump("an update")
        return self.happened.popleft()

    def merge_end_s(self, now_s: float) -> float:
        """Return when a merge that begins now is done."""
        return self.clock.merge_end_s(now_s)

    def close_at(self, at_s: float) -> None:
        """Schedule a `WindowEnd`."""
        self.clock.close_at(at_s)

    def validated_s(self, ready_s: float) -> float:
        """Return when the validation that could begin at `ready_s` was done."""
        return max(ready_s, self.clock.now_s())

    def broadcast(self, at_s: float, broadcast: Broadcast) -> None:
        """Let the bytes of a dispatch go."""
        self.transfers.broadcast(at_s, broadcast)

    # --- the ranks' side

    def submit(self, dispatch: Dispatch) -> None:
        """Prepare one transfer for each client of a dispatch; `broadcast` lets them go."""
        frames = DispatchFrames(dispatch, self.config.wire.dtype, self.run_id, self.codes)
        self.num_dispatched += 1
        for task in dispatch.assignments:
            if self.rank_of[task.client] not in self.ranks:
                continue  # it was lost, which the coordinator has yet to hear
            parcels = [frames.parcel(level, with_positions=n) for level, n in self._levels(task)]
            parts = [parcel.shared.parts for parcel in parcels]
            payload = Outgoing([part for each in parts for part in each])
            number = self.num_dispatched
            self.transfers.cycles[task.client] = Cycle(task, number, payload, 0.0)
            lengths = [sum(len(part) for part in each) for each in parts]
            content = {"task": task.as_json(), "number": number, "lengths": lengths}
            rank = self.rank_of[task.client]
            self.transport.send(rank, Tag.TASK, json.dumps(content).encode())

    def _hand_over(self) -> None:
        """Wait for nobody: a rank may have gone silent."""
        self.transport.poll()

    def _levels(self, task: Assignment) -> list[tuple[int, bool]]:
        """Return the increments of a sub-model, and whether the client needs their positions."""
        held = self.held[task.client]
        if held.mask_id != task.mask_id:
            held.mask_id, held.num_known = task.mask_id, 0
        levels = [(level, level >= held.num_known) for level in range(task.level + 1)]
        held.num_known = max(held.num_known, task.level + 1)
        return levels

    def pump(self, awaited: str) -> None:
        """Move what may move, and take the messages that are there within a tick."""
        self.transfers.look()
        self._feed()
        self._move()
        self.while_waiting()
        self._ping()
        message = self._wait_for_message()
        if message is None:
            self._look_for_lost()
        num_taken = 0
        while message is not None:
            self.transfers.hear(message.source)
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
        """Go on without the clients of a rank that owes something and has long been silent."""
        now_s, heard_s = self.transfers.patience_s, self.transfers.heard_s
        for rank in list(self.ranks):
            if not self._owes(rank):
                heard_s[rank] = now_s
            elif now_s - heard_s[rank] > self.config.run.timeout_s:
                self._lose(rank, self._silence(rank))

    def _silence(self, rank: int) -> str:
        return f"rank {rank} has been silent for {self.config.run.timeout_s:g} s"

    def _owes(self, rank: int) -> bool:
        if self.is_over:
            return rank not in self.goodbyes
        is_owed = any(cycle.is_owed for cycle in self.transfers.of_rank(rank))
        return is_owed or bool(self.ranks[rank].chunks)

    def _lose(self, rank: int, reason: str) -> None:
        # Its evaluations go to the others, in their order and before newer ones, which may wait
        # for their statistics.
        self.urgent.extendleft(reversed(self.ranks.pop(rank).chunks))
        self.transport.gone.add(rank)
        doing = "ending" if self.is_over else "continuing"
        log.warning("%s without rank %d: %s", doing, rank, reason)
        if not self.ranks and not self.is_over:
            raise RunError(f"{reason}, and no other rank is left", rank=rank, stage="receive")
        for client in (client for client, host in self.rank_of.items() if host == rank):
            self.transfers.lose(client)
            self.happened.append(Lost(self.clock.now_s(), (client,), reason))

    def _move(self) -> None:
        """Let the links carry what they can by now."""
        if self.is_over:
            return
        moved = self.clock.advance()
        for at_s in moved.closed:
            self.happened.append(WindowEnd(max(at_s, moved.now_s)))
        self.transfers.move(moved)

    def _feed_rank(self, rank: int, state: RankState, *, is_idle: bool) -> None:
        """Test chunks wait until none of the rank's clients trains."""
        if is_idle and self.idle_time:
            is_idle = not any(cycle.is_training for cycle in self.transfers.of_rank(rank))
        super()._feed_rank(rank, state, is_idle=is_idle)

    def _drop_parcel(self, evaluation: Evaluation) -> None:
        """Keep the version's frame: the chunks of a rank that is lost go to those left."""

    def _take(self, message: Message) -> None:
        if message.source not in self.ranks:
            return  # it was lost, and wakes up
        if not self.transfers.take(message):
            super()._take(message)

    def _deliver(self, cycle: Cycle, message: Message, now_s: float) -> None:
        """Note that an update is there.

        Raises:
            WireError: it is damaged.
        """
        self._take_update(message)
        client = cycle.task.client
        if cycle.has_overrun:
            self.overran.add(client)
        self.happened.append(Arrival(now_s, client))

    def stop(self, code: int = 0) -> None:
        """End all ranks; what is still on its way is no part of the run, and neither are ranks of
        which nothing can be heard any more.
        """
        self.is_over = True
        try:
            super().stop(code)
        except TransportError as error:
            for rank in self.ranks.keys() - self.goodbyes.keys():
                self._lose(rank, str(error))

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back: the clock. What is in flight is not saved."""
        return self.clock.state() | {"num_dispatched": self.num_dispatched}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on at a saved time."""
        self.clock.restore(state)
        self.num_dispatched = state["num_dispatched"]
