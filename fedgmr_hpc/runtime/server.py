"""Rank 0's I/O loop: take the clock's next event, ask the coordinator, carry out its commands.

On the virtual clock the order of events is known before anybody has trained, because an upload's
length depends only on its mask, type and codec. So all ranks train in parallel, and the server
waits for a result only when its arrival is next.

Shapes: C clients, P prunable entries, D dense entries.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedgmr_hpc.config.choices.failures import naming_plugins
from fedgmr_hpc.config.choices.named_content import check_content
from fedgmr_hpc.config.records import Floats, shared_fields
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import (
    CloseAt,
    Closed,
    Command,
    Delivered,
    Dispatch,
    Evaluate,
    Evaluated,
    Event,
    Finish,
    Lost,
    Merged,
    Quarantined,
    Resumed,
    Started,
)
from fedgmr_hpc.fl.selection import Availability, read_availability
from fedgmr_hpc.fl.submodels import PrunableLayer
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import run_layout, run_model, run_weights
from fedgmr_hpc.network.links import Arrival, VirtualClock
from fedgmr_hpc.network.throttle import WallClock
from fedgmr_hpc.runtime.callbacks.contract import RoundEnd
from fedgmr_hpc.runtime.callbacks.teller import Teller
from fedgmr_hpc.runtime.evaluations import VALIDATION, Evaluator
from fedgmr_hpc.runtime.ledger import PositionCodes, make_ledger
from fedgmr_hpc.runtime.progress import Progress
from fedgmr_hpc.runtime.rank_pool import RankPool
from fedgmr_hpc.runtime.rank_state import place_clients
from fedgmr_hpc.runtime.replay import EventLog, ReplayClock
from fedgmr_hpc.runtime.timeline import SpanName
from fedgmr_hpc.runtime.wall.pool import LivePool
from fedgmr_hpc.storage.checkpoint import EXIT_CHECKPOINTED
from fedgmr_hpc.storage.process import resident_bytes
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.storage.rows import MergeRow, UpdateRow
from fedgmr_hpc.storage.writer import ResultWriter
from fedgmr_hpc.transport.contract import Transport

log = logging.getLogger("fedgmr_hpc")


def prunable_layers(config: Config, num_classes: int | None = None) -> list[PrunableLayer]:
    """Return the prunable tensors of a run's model as the masks see them."""
    is_relative = config.submodel.layer_mean
    if is_relative is None:
        is_relative = run_model(config, num_classes).has_relative_scores
    return [
        PrunableLayer(e.name, e.offset, e.offset + e.size, e.cost, e.axes, is_relative)
        for e in run_layout(config, num_classes).entries
        if e.prunable
    ]


def load_availability(config: Config) -> Availability | None:
    """Return the trace of a run's clients, None if there is none.

    Raises:
        ValueError: it cannot be read, says something that cannot be, or is not what the run began
            with.
    """
    clients = config.clients
    if clients.availability is None:
        return None
    check_content("clients.availability", clients.availability, clients.availability_xxh3)
    return read_availability(clients.availability, clients.count, clients.availability_period_s)


class Server:
    """Runs one federated training from `Started` to `Finish`."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        data: FederatedData,
        writer: ResultWriter,
        progress: Progress,
        run_id: int,
        recorded: Result | None = None,
        tell: Teller | None = None,
    ) -> None:
        """
        Args:
            recorded: a run to replay; its events are followed instead of a clock's.
            tell: tells callbacks; None where there are none.
        """
        self.config, self.transport, self.data = config, transport, data
        self.writer, self.progress, self.run_id = writer, progress, run_id
        self.tell = tell or Teller()
        shares = config.clients.bandwidth_shares()
        classes = data.num_classes
        weights, layers = run_weights(config, classes), prunable_layers(config, classes)
        self.num_prunable = layers[-1].stop
        layout = run_layout(config, classes)
        self.coordinator = Coordinator(
            config,
            shares,
            weights,
            layers,
            load_availability(config),
            layout.num_trained,
            num_samples=[len(part) for part in data.train_parts],
        )
        codes = PositionCodes()
        num_dense = len(weights) - self.num_prunable
        self.ledger = make_ledger(config, len(shares), num_dense, codes)
        self.clock, self.pool = self._make_clock(codes, recorded)
        self.log = EventLog(config)
        self.in_flight: dict[int, Assignment] = {}
        self.unmerged: list[UpdateRow] = []
        self.now_s = 0.0  # virtual time at which the current version exists
        self.weights: Floats | None = None
        self.began_s = time.perf_counter()
        self.evaluator = Evaluator(
            config.eval,
            self.coordinator,
            self.pool,
            data,
            writer,
            progress,
            self.tell,
            num_statistics=layout.num_statistics,
            run_id=run_id,
            wall_s=self.wall_s,
        )
        self.base_bytes = [0, 0]  # sent and received before this process resumed the run
        self.first_event: Event | None = Started(0.0)

    def _make_clock(
        self, codes: PositionCodes, recorded: Result | None
    ) -> tuple[VirtualClock | ReplayClock | LivePool, RankPool]:
        """Make what says what happens next, and the ranks that do the work."""
        config, shares = self.config, self.config.clients.bandwidth_shares()
        if config.clock == "wall" and recorded is None:
            rank_of = place_clients(len(shares), self.transport.size)
            live = LivePool(
                config,
                self.transport,
                self.run_id,
                codes,
                self.writer.flush_if_due,
                clock=WallClock(config.links, shares, config.seed, config.time_scale, rank_of),
                rank_of=rank_of,
                upload_bytes=self.ledger.upload_bytes,
                record=self.writer.append,
            )
            return live, live
        pool = RankPool(config, self.transport, self.run_id, codes, self.writer.flush_if_due)
        if recorded is not None:
            return ReplayClock(config, recorded), pool
        return VirtualClock(config.links, shares, config.seed), pool

    def run(self, should_stop: Callable[[Server], bool] | None = None) -> Floats | None:
        """Run to the end; return the final weights [P + D], natural order, and behind them the
        statistics of static batch norms.

        Args:
            should_stop: asked between events; when it says so, the ranks end with exit code 75, and
                there are no weights.
        """
        if isinstance(self.pool, LivePool):
            self.pool.start()
        if self.config.trace:
            self.pool.measure_offsets()
        event = self.first_event and self._handle(self.first_event)
        while self.weights is None:
            if event is None and should_stop is not None and should_stop(self):
                break
            event = event or self._next_event()
            event = event and self._handle(event)
        while self.evaluator.is_waiting:
            self._pump("the evaluations under way")
        self.pool.stop(EXIT_CHECKPOINTED if self.weights is None else 0)
        return self.weights

    def settle(self) -> None:
        """Wait until the ranks have done all that they were given, and rows of it are written."""
        while not self.pool.is_idle:
            self._pump("the work under way, for a checkpoint")

    def _handle(self, event: Event) -> Event | None:
        """Have an event handled and the commands carried out; return the event that one answers
        with. Commands hold versions of the model, so none outlives this.
        """
        follow_up: Event | None = None
        if isinstance(event, Resumed):
            self._forget_in_flight(event.now_s)
        if isinstance(event, Closed):
            self.evaluator.look(event.ready_s)
        row = self.log.row(event)
        if row is not None:
            self.writer.append(row)
        with naming_plugins(rank=0, version=self.coordinator.version, stage="merge"):
            for command in self._decide(event):
                follow_up = self._execute(command) or follow_up
        return follow_up

    def _forget_in_flight(self, now_s: float) -> None:
        """Note that what was under way is lost, with the clients' memories; a replay has to wait
        for it.
        """
        self.settle()
        self.pool.updates.clear()
        self.in_flight.clear()
        self.ledger.forget_positions()
        if self.pool.is_placed:
            self.pool.give_memories([])
        self.now_s = now_s

    def _decide(self, event: Event) -> list[Command]:
        spans: dict[type[Event], SpanName] = {Closed: "merge", Evaluated: "density"}
        if type(event) not in spans:
            return self.coordinator.handle(event)
        with self.pool.tracer.span(spans[type(event)], version=self.coordinator.version):
            return self.coordinator.handle(event)

    def _next_event(self) -> Event | None:
        """Return the next event; None to look after other duties first."""
        happened = self.clock.next()
        if happened is None:
            return None
        if isinstance(happened, Arrival):
            return self._deliver(happened)
        if isinstance(happened, Lost) and self.coordinator.quarantined.issuperset(happened.clients):
            return None  # gone already, and for another reason
        if isinstance(happened, Lost | Resumed):
            return happened
        self.now_s = happened.now_s
        if self.coordinator.buffer.arrived:  # else nobody took part, and somebody can now
            self.now_s = self.clock.merge_end_s(happened.now_s)
        return Closed(happened.now_s, self.now_s)

    def _deliver(self, arrival: Arrival) -> Delivered:
        while arrival.client not in self.pool.updates:
            self._pump(f"the update of client {arrival.client}")
        update, rank = self.pool.updates.pop(arrival.client)
        assignment = self.in_flight.pop(arrival.client)
        self.unmerged.append(
            UpdateRow(
                **shared_fields(update, UpdateRow),
                now_s=arrival.now_s,
                version=0,
                down_bytes=self.ledger.last_down_bytes[update.client],
                up_bytes=self.ledger.charge_upload(assignment),
                wall_overrun=int(update.client in self.pool.overran),
                wall_rank=rank,
            )
        )
        self.pool.overran.discard(update.client)
        return Delivered(arrival.now_s, update)

    def _execute(self, command: Command) -> Event | None:
        if isinstance(command, Evaluate):
            return self._evaluate(command)
        if isinstance(command, CloseAt):
            self.clock.close_at(command.at_s)
        elif isinstance(command, Merged):
            self._record_merge(command)
        elif isinstance(command, Dispatch):
            self._dispatch(command)
        elif isinstance(command, Quarantined):
            log.warning(
                "client %d is quarantined from version %d on: %s",
                command.client,
                command.version,
                command.reason,
            )
        elif isinstance(command, Finish):
            self.weights = self.evaluator.complete(command.weights)
            self.evaluator.look(math.nextafter(self.now_s, math.inf))
        return None

    def _dispatch(self, dispatch: Dispatch) -> None:
        self.in_flight.update({a.client: a for a in dispatch.assignments})
        self.pool.submit(dispatch)  # ranks begin before the server counts bytes
        self.clock.broadcast(dispatch.at_s, self.ledger.charge_dispatch(dispatch))

    def _evaluate(self, command: Evaluate) -> Evaluated:
        evaluation = self.evaluator.validate(command, self.now_s)
        if not self.coordinator.is_last:
            self.coordinator.rank()  # while the ranks validate
        while not evaluation.is_done(VALIDATION):
            self._pump("the validation")
        self.now_s = self.clock.validated_s(self.now_s)
        return Evaluated(self.now_s, self.evaluator.accuracy(evaluation))

    def _pump(self, awaited: str) -> None:
        self.pool.pump(awaited)
        self.evaluator.write_rows()

    def _record_merge(self, merged: Merged) -> None:
        if merged.version > 0:
            for row in self.unmerged:
                is_merged = row.client in merged.clients  # not if it was lost or quarantined since
                self.writer.append(replace(row, version=merged.version if is_merged else 0))
            self.writer.append(self._merge_row(merged))
            self.unmerged = []
        self.evaluator.merged(merged)
        figures: dict[str, Any] = {
            "mean_density": float(merged.density.mean()),
            "server_up_bytes": self.ledger.server_up_bytes,
            "server_down_bytes": self.ledger.server_down_bytes,
        }
        self.progress.update(merged.round, self.now_s, **figures)
        self.tell.merged(RoundEnd(merged.round, merged.version, self.now_s, **figures))

    def _merge_row(self, merged: Merged) -> MergeRow:
        return MergeRow(
            version=merged.version,
            round=merged.round,
            now_s=self.now_s,
            num_merged=len(merged.clients),
            server_up_bytes=self.ledger.server_up_bytes,
            server_down_bytes=self.ledger.server_down_bytes,
            staleness=merged.staleness,
            density=merged.density,
            weight=merged.weight,
            up_bytes=self.ledger.up_bytes,
            down_bytes=self.ledger.down_bytes,
            wall_s=self.wall_s(),
            wall_rss_bytes=resident_bytes(),
        )

    def wall_s(self) -> float:
        """Return wall time since the run began, without that between a checkpoint and its
        resumption.
        """
        return time.perf_counter() - self.began_s

    @property
    def moved_bytes(self) -> list[int]:
        """Bytes that this rank has sent and received, before a resume too."""
        moved = (self.transport.sent_bytes, self.transport.received_bytes)
        return [base + more for base, more in zip(self.base_bytes, moved, strict=True)]
