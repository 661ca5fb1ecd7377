"""The client ranks as a pool of workers: queues of work, what was sent, what came back.

Placement is free, because a task carries all it needs: a task goes to whichever rank has room, and
the frames it uses go ahead of it, once per rank and version. Where clients keep something from one
dispatch to the next (fl/client_memory.py) all tasks of a client go to one rank, which has its
memory. Validation chunks come first (the server waits for them), then training, and test chunks
fill the time a rank would be idle.
"""

from __future__ import annotations

import json
import logging
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from fedgmr_hpc.config.errors import RankFailed, RunError, TransportTimeout, WireError
from fedgmr_hpc.config.records import fields_of, shared_fields
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.events import Dispatch
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.fl.threads import Threads
from fedgmr_hpc.fl.updates import Assignment, Update
from fedgmr_hpc.runtime.dispatch_frames import DispatchFrames
from fedgmr_hpc.runtime.ledger import PositionCodes
from fedgmr_hpc.runtime.progress import trace_log
from fedgmr_hpc.runtime.rank_state import (
    RankClocks,
    RankState,
    RoundTrip,
    host_rank,
    keeps_memories,
)
from fedgmr_hpc.runtime.timeline import RankTrace, Tracer
from fedgmr_hpc.storage.checkpoint import pack_tree, unpack_tree
from fedgmr_hpc.training.chunks import Chunk, Evaluation, Part
from fedgmr_hpc.transport.contract import Message, Tag, Transport
from fedgmr_hpc.wire.frames import Frame, Kind
from fedgmr_hpc.wire.parcels import Parcel, hands_over, open_parcel

log = logging.getLogger("fedgmr_hpc")
PINGS_PER_TIMEOUT = 4
LARGE_BYTES = 1 << 20  # of an update; a shorter one is decoded sooner than another thread wakes up
LOOK_UP_S = 1.0  # how long a wait goes on before the server looks after its other duties


class RankPool:
    """Hands work to ranks 1.. and collects updates and evaluations.

    Attributes:
        decoding: waits for large updates that are being decoded, as they came.
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
        self.is_relayed = config.run.relay == "auto"
        self.hands_over = hands_over(config.wire, transport)
        self.most_owed = config.train.parallel_clients + 1  # those at work, and one ready
        self.is_placed = keeps_memories(config)  # whether a client must stay on one rank
        self.tasks: deque[tuple[DispatchFrames, Assignment]] = deque()
        self.evaluations: dict[int, Evaluation] = {}
        self.urgent: deque[Chunk] = deque()
        self.postponed: list[tuple[Evaluation, Part, bool]] = []  # parts, and if they are awaited
        self.idle_time: deque[Chunk] = deque()
        self.updates: dict[int, tuple[Update, int]] = {}
        self.threads = Threads(config.run.server_threads)
        self.decoding: deque[Callable[[], tuple[Frame, int]]] = deque()
        self.overran: set[int] = set()  # clients whose update took longer than it may
        self.goodbyes: dict[int, dict[str, Any]] = {}
        self.tracer = Tracer(config.trace)
        self.clocks = RankClocks()
        self.memories: dict[int, list[dict[str, Any]]] = {}  # by rank, once asked for
        self.wait_s = 0.0
        self.pinged_s = time.perf_counter()

    def submit(self, dispatch: Dispatch) -> None:
        """Queue a dispatch: a small sub-model for every rank, so that all begin at once, then the
        large ones, so that the last update to come back is small again; equals by client, as they
        are likely to arrive."""
        outgoing = DispatchFrames(dispatch, self.config.wire.dtype, self.run_id, self.codes)
        order = sorted(dispatch.assignments, key=lambda a: (a.level, a.client))
        first, rest = order[: len(self.ranks)], order[len(self.ranks) :]
        rest.sort(key=lambda a: (-a.level, a.client))
        self.tasks.extend((outgoing, assignment) for assignment in (*first, *rest))
        self._feed()

    def evaluate(
        self, evaluation: Evaluation, parts: Sequence[Part], *, is_awaited: bool = False
    ) -> None:
        """Queue parts of an evaluation, for idle time unless they are awaited."""
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
        """Queue a part, or postpone it until what it needs is measured.

        Scores need the statistics of static batch norms. And a rank holds one version for
        evaluation: once it has a newer one it cannot go back, so a newer version waits as long as
        an older one waits for statistics.
        """
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
        """Wait until the ranks have what they need, before the server turns to other work."""
        self.transport.flush(self.config.run.timeout_s)

    def _feed(self) -> None:
        """Give ranks with room their next piece of work."""
        for depth in range(1, self.most_owed + 1):
            for rank, state in self.ranks.items():
                if not (self.urgent or self.tasks or self.idle_time):
                    return
                if state.owes < depth:
                    self._feed_rank(rank, state, is_idle=not state.owes)

    def _feed_rank(self, rank: int, state: RankState, *, is_idle: bool) -> None:
        """Send one task, if one that the rank may take is waiting. Test chunks only fill idle
        time.
        """
        if self.urgent:
            self._send_chunk(rank, state, self.urgent.popleft())
        elif (index := self._find_task(rank)) is not None:
            outgoing, task = self.tasks[index]
            del self.tasks[index]
            self._send_task(rank, state, outgoing, task)
        elif self.idle_time and is_idle:
            self._send_chunk(rank, state, self.idle_time.popleft())
        else:
            return
        state.owes += 1

    def _find_task(self, rank: int) -> int | None:
        """Return the first waiting task that the rank may take."""
        hosts = (host_rank(task.client, self.transport.size) for _, task in self.tasks)
        own = (index for index, host in enumerate(hosts) if not self.is_placed or host == rank)
        return next(own, None)

    def _send_task(
        self, rank: int, state: RankState, outgoing: DispatchFrames, task: Assignment
    ) -> None:
        if state.version != task.base_version:
            state.version, state.levels = task.base_version, set()
        if state.mask_id != task.mask_id:
            state.mask_id, state.num_known = task.mask_id, 0
        is_whole = self.config.transmission == "whole"
        for level in state.levels_to_send(task, whole=is_whole):
            parcel = outgoing.parcel(level, with_positions=level >= state.num_known)
            self._send_frame(rank, parcel)
            state.num_known = max(state.num_known, level + 1)
        self.transport.send(rank, Tag.TASK, json.dumps(task.as_json()).encode())

    def _send_frame(self, rank: int, parcel: Parcel) -> None:
        if self.hands_over:
            parcel.hand(self.transport, rank, Tag.FRAME)
            return
        with self.tracer.span("encode", version=parcel.frame.base_version):
            shared = parcel.shared
        if self.is_relayed:
            self.transport.send_shared(rank, Tag.FRAME, shared)
        else:
            self.transport.send(rank, Tag.FRAME, *shared.parts)

    def _send_chunk(self, rank: int, state: RankState, chunk: Chunk) -> None:
        evaluation = chunk.evaluation
        if state.eval_version != evaluation.version:
            state.eval_version, state.norm_levels = evaluation.version, set()
            assert evaluation.parcel is not None
            self._send_frame(rank, evaluation.parcel)
            if all(other.eval_version == evaluation.version for other in self.ranks.values()):
                self._drop_parcel(evaluation)
        if chunk.part.level is not None:
            self._send_ladder(rank, state, evaluation.ladder)
        state.chunks.append(chunk)
        norms = state.missing_norms(evaluation, chunk.part.level)
        task = {"version": evaluation.version, **chunk.part._asdict(), "start": chunk.start}
        self.transport.send(rank, Tag.EVALUATE, json.dumps(task | {"norms": norms}).encode())

    def _drop_parcel(self, evaluation: Evaluation) -> None:
        """Note that every rank has the version's frame."""
        evaluation.parcel = None

    def _send_ladder(self, rank: int, state: RankState, ladder: MaskSet | None) -> None:
        assert ladder is not None
        if state.ladder_id != ladder.mask_id:
            state.ladder_id = ladder.mask_id
            self.transport.send(rank, Tag.MASKS, *pack_tree(fields_of(ladder)))

    def pump(self, awaited: str) -> None:
        """Take one message from a rank, or an update that is decoded if none is there.

        Raises:
            RankFailed: the message is a rank's failure.
            RunError: none came before the deadline; names `awaited` and the ranks that owe one.
        """
        self._feed()
        message = self.transport.recv_now() if self.decoding else None
        if message is None and self.decoding:
            with self.tracer.span("decode"):
                self._keep(self.decoding.popleft()())
            return
        if message is None:
            message = self._wait(awaited)
        self._take(message)
        self._feed()

    def _wait(self, awaited: str) -> Message:
        began_s = time.perf_counter()
        with self.tracer.span("receive"):
            message = self._receive(awaited, began_s + self.config.run.timeout_s)
        self.wait_s += time.perf_counter() - began_s
        return message

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
        """Tell ranks without work that the server lives, so that their deadlines are real."""
        now_s = time.perf_counter()
        if now_s - self.pinged_s > self.config.run.timeout_s / PINGS_PER_TIMEOUT:
            self.pinged_s = now_s
            for rank in self.ranks:
                self.transport.send(rank, Tag.HELLO, b"")

    def _take(self, message: Message) -> None:
        if message.tag == Tag.FAILURE:
            self._fail(json.loads(bytes(message.payload)))
        if message.tag == Tag.TRACE:
            self.clocks.traces[message.source] = Tracer.from_bytes(message.payload)
            return
        if message.tag == Tag.STOP:
            self.goodbyes[message.source] = json.loads(bytes(message.payload))
            return
        if message.tag == Tag.MEMORIES:
            self.memories[message.source] = unpack_tree(message.payload)["memories"]
            return
        self.ranks[message.source].owes -= 1
        if message.tag == Tag.UPDATE and len(message.payload) >= LARGE_BYTES:
            self.decoding.append(self.threads.start(_open_update, message))
        elif message.tag == Tag.UPDATE:
            self._take_update(message)
        elif message.tag == Tag.RESULT:
            self._take_result(message.source, json.loads(bytes(message.payload)))

    def _fail(self, failure: dict[str, Any]) -> None:
        to = trace_log if failure.pop("is_told") else log
        to.error("rank %d failed:\n%s", failure["rank"], failure.pop("trace"))
        raise RankFailed(failure.pop("message"), **failure)

    def _take_update(self, message: Message) -> None:
        with self.tracer.span("decode"):
            self._keep(_open_update(message))

    def _keep(self, opened: tuple[Frame, int]) -> None:
        """Keep an update until it is its turn."""
        frame, rank = opened
        if frame.run != self.run_id or frame.kind != Kind.UPDATE:
            raise WireError("not an update of this run", rank=rank, stage="decode")
        squares = frame.extra if len(frame.extra) else None
        update = Update(**shared_fields(frame, Update), grad_squares=squares)
        self.updates[frame.client] = (update, rank)

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
        """Note that statistics are measured: queue what waited for them, before all else if a newer
        version is to be evaluated.
        """
        is_old = evaluation.version < max(self.evaluations)
        for part, is_awaited in evaluation.finish_norms(level):
            self._queue(evaluation, part, is_awaited or is_old)
        postponed, self.postponed = self.postponed, []
        for later in postponed:
            self._queue(*later)

    def measure_offsets(self) -> None:
        """Compare every rank's clock with this one's; only while none of them has work."""
        for rank in list(self.ranks):
            self._measure_offset(rank)

    def _measure_offset(self, rank: int) -> None:
        self.clocks.measure(rank, self._ask_time)

    def _ask_time(self, rank: int) -> RoundTrip:
        sent_s = time.perf_counter()
        self.transport.send(rank, Tag.CLOCK, b"")
        while True:
            message = self.transport.recv(self.config.run.timeout_s)
            if (message.source, message.tag) == (rank, Tag.CLOCK):
                break
            self._take(message)
        return sent_s, struct.unpack("<d", message.payload)[0], time.perf_counter()

    def rank_traces(self) -> list[RankTrace]:
        """Return the timeline's rows: what every rank did, in this rank's time."""
        hosts = {rank: goodbye["host"] for rank, goodbye in self.goodbyes.items()}
        return self.clocks.aligned(self.tracer, hosts)

    @property
    def is_idle(self) -> bool:
        """Whether the ranks have done all that they were and all that they are to be given."""
        is_owed = any(state.owes for state in self.ranks.values())
        return not (is_owed or self.tasks or self.urgent or self.idle_time or self.decoding)

    def collect_memories(self) -> list[dict[str, Any]]:
        """Ask idle ranks for what their clients keep."""
        self.memories = {}
        for rank in self.ranks:
            self.transport.send(rank, Tag.MEMORIES, b"")
        while len(self.memories) < len(self.ranks):
            self.pump("what clients keep")
        return [each for _, own in sorted(self.memories.items()) for each in own]

    def give_memories(self, memories: Sequence[dict[str, Any]]) -> None:
        """Have every rank take what its clients keep in place of what it has of them."""
        for rank in self.ranks:
            own = [m for m in memories if host_rank(m["client"], self.transport.size) == rank]
            self.transport.send(rank, Tag.MEMORIES, *pack_tree({"memories": own}))
        self._hand_over()

    def stop(self, code: int = 0) -> None:
        """End all ranks, with an exit code, once they have served what they hold, and collect
        their goodbyes, with what they traced.
        """
        if self.config.trace:
            self.measure_offsets()
        self.tasks.clear()
        for rank in self.ranks:
            self.transport.send(rank, Tag.STOP, json.dumps({"code": code}).encode())
        while len(self.goodbyes) < len(self.ranks):
            self.pump("the ranks' goodbyes")


def _open_update(message: Message) -> tuple[Frame, int]:
    """Return an update and the rank that it is from; any thread may.

    Raises:
        WireError: it is damaged.
    """
    try:
        return open_parcel(message), message.source
    except WireError as error:
        raise WireError(error.message, rank=message.source, stage="decode") from None
