"""The client ranks as a pool of hands: queues of work, what each holds and owes, what came back.

Placement is free, because a task carries all it needs: a task goes to whichever rank has room, and
the frames it uses go ahead of it, once per rank and version. With int8 on the wire all tasks of a
client go to one rank, which keeps its error feedback. Validation chunks come first (the server
waits for them), then training, and test chunks fill the time a rank would be idle.
"""

from __future__ import annotations

import json
import logging
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedgmr_hpc.config.errors import RankFailed, RunError, TransportTimeout, WireError
from fedgmr_hpc.config.records import fields_of, shared_fields
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.events import Dispatch
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.fl.updates import Assignment, Update
from fedgmr_hpc.runtime.ledger import PositionCodes
from fedgmr_hpc.runtime.timeline import ClockOffset, RankTrace, Tracer, align, estimate_offset
from fedgmr_hpc.storage.checkpoint import pack_tree, unpack_tree
from fedgmr_hpc.training.chunks import Chunk, Evaluation, Part
from fedgmr_hpc.transport.contract import Message, Tag, Transport
from fedgmr_hpc.wire.frames import Frame, Kind, decode_frame, encode_parts

log = logging.getLogger("fedgmr_hpc")
PREFETCH = 2  # tasks a rank holds: one at work, one ready
PINGS_PER_TIMEOUT = 4
ROUND_TRIPS = 8  # of which the shortest says how two clocks differ
LOOK_UP_S = 1.0  # how long a wait goes on before the server looks after its other duties


class Outgoing:
    """A dispatch's frames, each encoded when first needed."""

    def __init__(
        self, dispatch: Dispatch, config: Config, run_id: int, codes: PositionCodes
    ) -> None:
        self.dispatch, self._dtype, self._run_id = dispatch, config.wire.dtype, run_id
        self._codes = codes
        self._encoded: dict[tuple[int, bool], tuple[memoryview, ...]] = {}

    def frame(self, level: int, *, with_positions: bool) -> tuple[memoryview, ...]:
        """The increment of a level in parts, with the dense part if it is the first."""
        key = (level, with_positions)
        if key not in self._encoded:
            d = self.dispatch
            coded = self._codes.code(d.masks, level) if with_positions else None
            self._encoded[key] = encode_parts(
                Frame(
                    kind=Kind.INCREMENT,
                    run=self._run_id,
                    client=-1,
                    base_version=d.version,
                    mask_id=d.masks.mask_id,
                    level=level,
                    density=d.masks.densities[level],
                    num_prunable=d.masks.size,
                    values=d.packed[d.masks.increment(level)],
                    positions=d.masks.positions(level) if with_positions else None,
                    dense=d.dense if level == 0 else d.dense[:0],
                    dtype=self._dtype,
                ),
                coded,
            )
        return self._encoded[key]


def host_rank(client: int, num_ranks: int) -> int:
    """The rank of a client that must stay on one: dealt out in turn, as on the wall clock."""
    return 1 + client % (num_ranks - 1)


@dataclass
class RankState:
    """What a client rank holds and owes."""

    owes: int = 0
    chunks: deque[Chunk] = field(default_factory=deque)  # of what it owes, in the order sent
    version: int = -1
    levels: set[int] = field(default_factory=set)  # sent of that version
    mask_id: int = -1
    num_known: int = 0  # levels whose positions it has
    eval_version: int = -1
    ladder_id: int = -1  # mask id of the ladder it has
    norm_levels: set[int | None] = field(default_factory=set)  # whose statistics it has, likewise


class RankPool:
    """Hands work to ranks 1.. and collects updates and evaluations.

    Attributes:
        updates: decoded updates by client, with the rank they came from, until taken.
        goodbyes: what each rank said of itself when stopped.
    """

    def __init__(
        self,
        config: Config,
        transport: Transport,
        run_id: int,
        codes: PositionCodes,
        while_waiting: Callable[[], None],
    ) -> None:
        self.config, self.transport, self.run_id = config, transport, run_id
        self.codes, self.while_waiting = codes, while_waiting
        self.ranks = {rank: RankState() for rank in range(1, transport.size)}
        self.is_placed = config.wire.dtype == "int8"  # whether a client must stay on one rank
        self.tasks: deque[tuple[Outgoing, Assignment]] = deque()
        self.evaluations: dict[int, Evaluation] = {}
        self.urgent: deque[Chunk] = deque()
        self.postponed: list[tuple[Evaluation, Part, bool]] = []  # parts, and if they are awaited
        self.idle_time: deque[Chunk] = deque()
        self.updates: dict[int, tuple[Update, int]] = {}
        self.overran: set[int] = set()  # clients whose update took longer than it may
        self.goodbyes: dict[int, dict[str, Any]] = {}
        self.tracer = Tracer(config.trace)
        self.offsets: dict[int, list[ClockOffset]] = {rank: [] for rank in self.ranks}
        self.traces: dict[int, Tracer] = {}
        self.remainders: dict[int, list[dict[str, Any]]] = {}  # by rank, once asked for
        self.wait_s = 0.0
        self.pinged_s = time.perf_counter()

    def submit(self, dispatch: Dispatch) -> None:
        """Queues a dispatch: a small sub-model for every rank, so that all begin at once, then the
        large ones, so that the last update to come back is small again; equals by client, as they
        are likely to arrive."""
        outgoing = Outgoing(dispatch, self.config, self.run_id, self.codes)
        order = sorted(dispatch.assignments, key=lambda a: (a.level, a.client))
        first, rest = order[: len(self.ranks)], order[len(self.ranks) :]
        rest.sort(key=lambda a: (-a.level, a.client))
        self.tasks.extend((outgoing, assignment) for assignment in (*first, *rest))
        self._feed()

    def evaluate(
        self, evaluation: Evaluation, parts: Sequence[Part], *, is_awaited: bool = False
    ) -> None:
        """Queues parts of an evaluation, for idle time unless they are awaited."""
        if evaluation.version not in self.evaluations:
            # A rank holds one version for evaluation, so what is left of the last one goes first.
            self.urgent.extend(self.idle_time)
            self.idle_time.clear()
            self.evaluations[evaluation.version] = evaluation
        for part in parts:
            self._queue(evaluation, part, is_awaited)
        self._feed()
        self._hand_over()

    def _queue(self, evaluation: Evaluation, part: Part, is_awaited: bool) -> None:
        """Queues a part, or lets it wait for the statistics of what it is to score, and for those
        that an older version waits for: a rank does not go back to that."""
        before = [each for v, each in self.evaluations.items() if v < evaluation.version]
        if any(each.waiting for each in before):
            self.postponed.append((evaluation, part, is_awaited))
            return
        if part.pool == "norms":
            evaluation.waiting[part.level] = []
        elif part.level in evaluation.waiting:
            evaluation.waiting[part.level].append((part, is_awaited))
            return
        queue = self.urgent if is_awaited else self.idle_time
        queue.extend(Chunk(evaluation, part, start) for start in evaluation.chunks[part])

    def _hand_over(self) -> None:
        """Waits until the ranks have what they need, before the server turns to other work."""
        self.transport.flush(self.config.run.timeout_s)

    def _feed(self) -> None:
        """Gives ranks with room their next piece of work."""
        for depth in range(1, PREFETCH + 1):
            for rank, state in self.ranks.items():
                is_fed = state.owes >= depth or self._feed_rank(rank, state, is_idle=not state.owes)
                if not is_fed and not self.is_placed:
                    return  # nothing waits for any other rank either

    def _feed_rank(self, rank: int, state: RankState, *, is_idle: bool) -> bool:
        """Sends one task; False if none is waiting. Test chunks only fill idle time."""
        if self.urgent:
            self._send_chunk(rank, state, self.urgent.popleft())
        elif (index := self._find_task(rank)) is not None:
            outgoing, task = self.tasks[index]
            del self.tasks[index]
            self._send_task(rank, state, outgoing, task)
        elif self.idle_time and is_idle:
            self._send_chunk(rank, state, self.idle_time.popleft())
        else:
            return False
        state.owes += 1
        return True

    def _find_task(self, rank: int) -> int | None:
        """The first waiting task that the rank may take."""
        hosts = (host_rank(task.client, self.transport.size) for _, task in self.tasks)
        own = (index for index, host in enumerate(hosts) if not self.is_placed or host == rank)
        return next(own, None)

    def _send_task(self, rank: int, state: RankState, outgoing: Outgoing, task: Assignment) -> None:
        if state.version != task.base_version:
            state.version, state.levels = task.base_version, set()
        if state.mask_id != task.mask_id:
            state.mask_id, state.num_known = task.mask_id, 0
        for level in self._levels_to_send(state, task):
            with self.tracer.span("encode", version=task.base_version):
                parts = outgoing.frame(level, with_positions=level >= state.num_known)
            self.transport.send(rank, Tag.FRAME, *parts)
            state.num_known = max(state.num_known, level + 1)
        self.transport.send(rank, Tag.TASK, json.dumps(task.as_json()).encode())

    def _levels_to_send(self, state: RankState, task: Assignment) -> range:
        """Increments the rank lacks; a whole sub-model is sent anew for each level, as it is
        charged.
        """
        if self.config.transmission == "whole":
            is_new = task.level not in state.levels
            state.levels.add(task.level)
            return range(task.level + 1 if is_new else 0)
        missing = range(len(state.levels), task.level + 1)
        state.levels.update(missing)
        return missing

    def _send_chunk(self, rank: int, state: RankState, chunk: Chunk) -> None:
        evaluation = chunk.evaluation
        if state.eval_version != evaluation.version:
            state.eval_version, state.norm_levels = evaluation.version, set()
            self.transport.send(rank, Tag.FRAME, *evaluation.payload)
            if all(other.eval_version == evaluation.version for other in self.ranks.values()):
                self._drop_payload(evaluation)
        if chunk.part.level is not None:
            self._send_ladder(rank, state, evaluation.ladder)
        state.chunks.append(chunk)
        norms = self._missing_norms(state, evaluation, chunk.part.level)
        task = {"version": evaluation.version, **chunk.part._asdict(), "start": chunk.start}
        self.transport.send(rank, Tag.EVALUATE, json.dumps(task | {"norms": norms}).encode())

    def _missing_norms(
        self, state: RankState, evaluation: Evaluation, level: int | None
    ) -> list[float] | None:
        """[S] statistics that the rank needs and has not; None without any."""
        if level not in evaluation.statistics or level in state.norm_levels:
            return None
        state.norm_levels.add(level)
        return [float(value) for value in evaluation.statistics[level]]

    def _drop_payload(self, evaluation: Evaluation) -> None:
        """Every rank has the version's frame."""
        evaluation.payload = ()

    def _send_ladder(self, rank: int, state: RankState, ladder: MaskSet | None) -> None:
        assert ladder is not None
        if state.ladder_id != ladder.mask_id:
            state.ladder_id = ladder.mask_id
            self.transport.send(rank, Tag.MASKS, *pack_tree(fields_of(ladder)))

    def pump(self, awaited: str) -> None:
        """Takes one message from a rank.

        Raises:
            RankFailed: the message is a rank's failure.
            RunError: none came before the deadline; names `awaited` and the ranks that owe one.
        """
        self._feed()
        began_s = time.perf_counter()
        with self.tracer.span("receive"):
            message = self._receive(awaited, began_s + self.config.run.timeout_s)
        self.wait_s += time.perf_counter() - began_s
        self._take(message)
        self._feed()

    def _receive(self, awaited: str, deadline_s: float) -> Message:
        timeout_s = self.config.run.timeout_s
        while True:
            self._ping()
            self.while_waiting()
            try:
                return self.transport.recv(min(LOOK_UP_S, timeout_s / PINGS_PER_TIMEOUT))
            except TransportTimeout:
                if time.perf_counter() >= deadline_s:
                    silent = sorted(rank for rank, state in self.ranks.items() if state.owes)
                    raise RunError(
                        f"waited {timeout_s:g} s for {awaited}; silent ranks: {silent}",
                        stage="receive",
                    ) from None

    def _ping(self) -> None:
        """Tells ranks without work that the server lives, so that their deadlines are real."""
        now_s = time.perf_counter()
        if now_s - self.pinged_s > self.config.run.timeout_s / PINGS_PER_TIMEOUT:
            self.pinged_s = now_s
            for rank in self.ranks:
                self.transport.send(rank, Tag.HELLO, b"")

    def _take(self, message: Message) -> None:
        if message.tag == Tag.FAILURE:
            self._fail(json.loads(bytes(message.payload)))
        if message.tag == Tag.TRACE:
            self.traces[message.source] = Tracer.from_bytes(message.payload)
            return
        if message.tag == Tag.STOP:
            self.goodbyes[message.source] = json.loads(bytes(message.payload))
            return
        if message.tag == Tag.REMAINDERS:
            self.remainders[message.source] = unpack_tree(message.payload)["remainders"]
            return
        self.ranks[message.source].owes -= 1
        if message.tag == Tag.UPDATE:
            self._take_update(message)
        elif message.tag == Tag.RESULT:
            self._take_result(message.source, json.loads(bytes(message.payload)))

    def _fail(self, failure: dict[str, Any]) -> None:
        log.error("rank %d failed:\n%s", failure["rank"], failure.pop("traceback"))
        raise RankFailed(failure.pop("message"), **failure)

    def _take_update(self, message: Message) -> None:
        try:
            with self.tracer.span("decode"):
                frame = decode_frame(message.payload)
        except WireError as error:
            raise WireError(error.message, rank=message.source, stage="decode") from None
        if frame.run != self.run_id or frame.kind != Kind.UPDATE:
            raise WireError("not an update of this run", rank=message.source, stage="decode")
        squares = frame.extra if len(frame.extra) else None
        update = Update(**shared_fields(frame, Update), grad_squares=squares)
        self.updates[frame.client] = (update, message.source)

    def _take_result(self, source: int, result: dict[str, Any]) -> None:
        self.ranks[source].chunks.popleft()
        part = Part(result["pool"], result["level"])
        evaluation = self.evaluations[result["version"]]
        chunks, start = evaluation.chunks[part], result["start"]
        if part.pool != "norms":
            chunks[start] = (result["correct"], result["loss_sum"])
            return
        chunks[start] = result["norms"]
        if evaluation.is_done(part):
            self._go_on(evaluation, part.level)

    def _go_on(self, evaluation: Evaluation, level: int | None) -> None:
        """Statistics are measured: queues what waited for them, before all else if a newer version
        is to be evaluated."""
        is_old = evaluation.version < max(self.evaluations)
        for part, is_awaited in evaluation.finish_norms(level):
            self._queue(evaluation, part, is_awaited or is_old)
        postponed, self.postponed = self.postponed, []
        for later in postponed:
            self._queue(*later)

    def measure_offsets(self) -> None:
        """Compares every rank's clock with this one's; only while none of them has work."""
        for rank, offsets in self.offsets.items():
            offsets.append(estimate_offset([self._ask_time(rank) for _ in range(ROUND_TRIPS)]))

    def _ask_time(self, rank: int) -> tuple[float, float, float]:
        sent_s = time.perf_counter()
        self.transport.send(rank, Tag.CLOCK, b"")
        while (message := self.transport.recv(self.config.run.timeout_s)).tag != Tag.CLOCK:
            self._take(message)
        return sent_s, struct.unpack("<d", message.payload)[0], time.perf_counter()

    def rank_traces(self) -> list[RankTrace]:
        """The timeline's rows: what every rank did, in this rank's time."""
        mine = RankTrace(0, socket.gethostname(), self.tracer.spans())
        return [mine] + [
            RankTrace(
                rank,
                self.goodbyes[rank]["host"],
                align(trace.spans(), *self.offsets[rank]),
                tuple(self.offsets[rank]),
                trace.num_dropped,
            )
            for rank, trace in sorted(self.traces.items())
        ]

    @property
    def is_idle(self) -> bool:
        """Whether the ranks have done all that they were and all that they are to be given."""
        is_owed = any(state.owes for state in self.ranks.values())
        return not (is_owed or self.tasks or self.urgent or self.idle_time)

    def collect_remainders(self) -> list[dict[str, Any]]:
        """Asks idle ranks for their clients' error feedback (feedback.py)."""
        self.remainders = {}
        for rank in self.ranks:
            self.transport.send(rank, Tag.REMAINDERS, b"")
        while len(self.remainders) < len(self.ranks):
            self.pump("the ranks' error feedback")
        return [each for _, own in sorted(self.remainders.items()) for each in own]

    def give_remainders(self, remainders: Sequence[dict[str, Any]]) -> None:
        """Has every rank take those of its clients in place of its own."""
        for rank in self.ranks:
            own = [r for r in remainders if host_rank(r["client"], self.transport.size) == rank]
            self.transport.send(rank, Tag.REMAINDERS, *pack_tree({"remainders": own}))
        self._hand_over()

    def stop(self, code: int = 0) -> None:
        """Ends all ranks, with an exit code, once they have served what they hold, and collects
        their goodbyes.
        """
        self.tasks.clear()
        for rank in self.ranks:
            self.transport.send(rank, Tag.STOP, json.dumps({"code": code}).encode())
        while len(self.goodbyes) < len(self.ranks):
            self.pump("the ranks' goodbyes")
