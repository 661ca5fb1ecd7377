"""The server's state machine: events in, commands out; no rank, socket, clock or file.

    Started, Delivered, Closed, Evaluated, Lost, Resumed
        -> Coordinator.handle -> CloseAt, Evaluate, Merged, Dispatch, Quarantined, Finish

One merge: `Dispatch` sends sub-models, every update comes back as `Delivered`, the arrivals that
admission waits for command `CloseAt`, and `Closed` merges. Whenever the round passes a multiple of
`interval_rounds` a refresh follows, in this order: merge, validate (`Evaluate` -> `Evaluated`),
restore densities, cut masks, dispatch. Time reaches the rules only as `now_s` of an event;
replaying the events replays the same bytes.

With sampling, or clients that come and go, a dispatch goes to whoever selection/ chooses of the
idle ones; if no client takes part, `CloseAt` names the time at which one can, or at which the run
ends. Where admission says that clients go on at once, an arrival that closes no window is answered
with a `Dispatch`, too.

A client that is `Lost`, or whose update is at fault (`Quarantined`, see quarantine.py), is gone for
good: its updates leave the buffer at once, merged before or not, so no later version is made from a
client that is gone. The paper has neither.

Weights are kept in the packed order of the current masks (fl/submodels.py). A version's arrays are
never written again, so a `Dispatch` may be encoded at any later time.

Shapes: C clients, P prunable entries, D dense entries.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import NoReturn

import numpy as np

from fedgmr_hpc.config.errors import DIVERGED, RunError
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.admission import Admission, best_connected
from fedgmr_hpc.fl.aggregation import BufferEntry, ServerRule, ages_of
from fedgmr_hpc.fl.buffer import UpdateBuffer
from fedgmr_hpc.fl.clients import Client
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
)
from fedgmr_hpc.fl.masking import Masking
from fedgmr_hpc.fl.quarantine import UsualSizes, find_fault
from fedgmr_hpc.fl.restoration import Restoration
from fedgmr_hpc.fl.scores import ScoreError
from fedgmr_hpc.fl.selection import Availability, Selection
from fedgmr_hpc.fl.submodels import MaskSet, PrunableLayer
from fedgmr_hpc.fl.threads import Threads
from fedgmr_hpc.fl.updates import Assignment, Update


class Coordinator:
    """The learning side of the server.

    Attributes:
        classes: how many clients begin with each density.
        same_since: see `Assignment`.
        ready_s: time since which the current version exists.
        limit_s: when the run ends.
    """

    def __init__(
        self,
        config: Config,
        shares: Sequence[float],
        weights: Floats,
        layers: Sequence[PrunableLayer],
        availability: Availability | None = None,
        num_trained: tuple[int, int] | None = None,
        num_samples: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            shares: [C] bandwidth shares, the initial densities of partial sub-models.
            weights: [P + D] initial weights, natural order.
            layers: the P prunable entries by tensor.
            availability: when clients can be chosen; None for always.
            num_trained: how many of the prunable and of the dense entries are trained; behind them
                come running statistics. None for all.
            num_samples: [C] training samples that each client holds; None for one each.
        """
        self.config, sampled = config, config.clients.sampled
        densities = [1.0] * len(shares) if config.submodel.kind == "full" else list(shares)
        self.restoration = Restoration(
            config.restoration, densities, config.clients.max_densities or ()
        )
        self.classes = Counter(self.restoration.densities)
        ladder = sorted(self.classes) if config.eval.submodels else ()
        self.masking = Masking(config.submodel, layers, ladder)
        self.masks = self.masking.newest
        self.admission = Admission(
            config.admission, shares, sampled, is_buffered=config.aggregation.buffered
        )
        chosen_by = config.clients, config.seed, shares
        self.selection = Selection(*chosen_by, availability, num_samples)
        recent = max(1, config.run.interval_rounds // 2)
        self.clients = [Client(cycle_times_s=deque(maxlen=recent)) for _ in shares]
        self.quarantined: set[int] = set()
        self.version = self.same_since = 0
        # version of each client's last merged update, -1 without one
        self.base_versions = np.full(len(shares), -1)
        self.packed: Floats = weights[: self.masks.size].copy()
        self.dense: Floats = weights[self.masks.size :].copy()
        max_entries = config.aggregation.max_entries or sampled
        choices = config.aggregation.model_copy(update={"max_entries": max_entries})
        self.buffer = UpdateBuffer(choices, num_samples or [1] * len(shares))
        sizes = len(self.packed), len(self.dense)
        self.threads = Threads(config.run.server_threads)
        self.rule = ServerRule(config.aggregation, sizes, num_trained or sizes, self.threads)
        self.scores: dict[int, float] = {}
        self.is_last, self.limit_s = False, config.run.max_time_s or math.inf
        self.ready_s = 0.0
        self._report: Merged | None = None
        self._usual = UsualSizes()

    @property
    def round(self) -> int:
        """Rounds done, see admission.py."""
        return self.admission.round

    def handle(self, event: Event) -> list[Command]:
        """Take one event; return what is to be done, in order.

        Raises:
            RunError: an update not asked for, a model that has diverged, or no client left.
        """
        if isinstance(event, Delivered):
            return self._deliver(event)
        if isinstance(event, Lost):
            self._check_left(event.clients, event.reason)
            return self._drop(event.now_s, event.clients)
        if isinstance(event, Closed):
            return self._close(event)
        if isinstance(event, Evaluated):
            return self._refresh(event)
        if isinstance(event, Resumed):
            return self._resume(event.now_s)
        self._report = self._make_report(0, ())
        return [self.look()]

    def _deliver(self, event: Delivered) -> list[Command]:
        update = event.update
        client = self.clients[update.client]
        masks = client.check_owed(update, len(self.dense), self.version)
        if fault := self._find_fault(update, masks):
            return self._quarantine(event.now_s, update.client, fault)
        if update.grad_squares is not None:
            self.masking.add_grad_squares(update.grad_squares, masks, update.num_samples)
        self.buffer.add(update, masks)
        self.selection.deliver(update, client.deliver(event.now_s))
        is_current = self.restoration.deliver(update.client, masks.densities[update.level])
        if is_current and not np.isnan(update.score):
            self.scores[update.client] = update.score
        return self._go_on(event.now_s)

    def _go_on(self, now_s: float) -> list[Command]:
        """Close the window if that is due, or send at once, without a merge in between."""
        arrived = self.buffer.arrived
        at_s = self.admission.close_s(now_s, arrived.keys(), self.buffer.num_arrived)
        if at_s is not None:
            return [CloseAt(at_s)]
        if self.admission.sends_at_once and not self.admission.is_closing:
            return self._dispatch(max(now_s, self.ready_s), opens_window=False)
        return []

    def _find_fault(self, update: Update, masks: MaskSet) -> str | None:
        """Return why an update must not be merged."""
        num_kept = len(update.values)

        def same_entries() -> tuple[Floats, Floats]:
            return self._pack_current(masks)[:num_kept], self.dense

        usual = partial(self._usual.of, self.version, (masks.mask_id, num_kept), same_entries)
        return find_fault(update, self.config.aggregation.max_norm_ratio, usual, self.threads)

    def _pack_current(self, masks: MaskSet) -> Floats:
        """Return [P] current prunable weights in the packed order of these masks."""
        if masks.mask_id == self.masks.mask_id:
            return self.packed
        return masks.pack(self.masks.unpack(self.packed))

    def _quarantine(self, now_s: float, client: int, fault: str) -> list[Command]:
        self.quarantined.add(client)
        self._check_left((client,), fault)
        return [Quarantined(client, self.version, fault), *self._drop(now_s, (client,))]

    def _check_left(self, going: Iterable[int], reason: str) -> None:
        """Fail if no client is left without those that go now."""
        if not self.admission.active.issubset(going):
            return
        self._check_finite()
        if len(self.quarantined) == len(self.clients):
            self._fail_diverged(f"every client is quarantined, the last because {reason}")
        num_lost = len(self.clients) - len(self.quarantined)
        gone = f"{num_lost} lost, {len(self.quarantined)} quarantined, the last because {reason}"
        raise RunError(f"no client is left: {gone}", version=self.version, stage="receive")

    def _drop(self, now_s: float, gone: Sequence[int]) -> list[Command]:
        """Continue without these clients; nothing that the server holds of them is used any
        more.
        """
        self.same_since = self.version + 1
        for client in gone:
            self.clients[client].leave()
            self.base_versions[client] = -1
            self.restoration.lose(client)
            self.buffer.drop(client)
            self.scores.pop(client, None)
        self.admission.lose(gone, self.buffer.arrived.keys())
        is_over = not self.admission.taking and not self.admission.sends_at_once
        if is_over and not self.admission.is_closing:
            return self._wake(now_s)
        return self._go_on(now_s)

    def _close(self, event: Closed) -> list[Command]:
        arrived, before = self.buffer.waiting(), self.round
        if not arrived:  # no client took part, or what had arrived is of clients that are gone
            now_s = max(event.now_s, self.ready_s)
            return self._end() if now_s >= self.limit_s else self._dispatch(now_s)
        for entry in arrived:
            self.base_versions[entry.client] = entry.base_version
        self.admission.merge(len(arrived))
        self._merge(sorted(arrived, key=attrgetter("client")))
        self.version += 1
        self.ready_s = event.ready_s
        run = self.config.run
        self.is_last = event.ready_s >= self.limit_s or self.round >= run.max_rounds
        if self.is_last or self.round // run.interval_rounds > before // run.interval_rounds:
            return [self.look()]
        if self.config.submodel.refresh == "round" and self.round > before:
            self._cut()
        return [*self._finish_report(), *self._dispatch(event.ready_s)]

    def _end(self) -> list[Command]:
        """End the run, whose time was over before a client could be chosen again."""
        self.is_last = True
        return [self.look()]

    def _merge(self, arrived: Sequence[BufferEntry]) -> None:
        entries, held = self.buffer.take(self.masks), (self.packed, self.dense)
        ages = self.base_versions, self.version
        new = self.rule.merge(held, entries, arrived, self.masks, *ages)
        self.packed, self.dense = new.packed, new.dense
        self._report = self._make_report(self.version + 1, [entry.client for entry in arrived])
        np.add.at(self._report.weight, [entry.client for entry in entries], new.shares)

    def _make_report(self, version: int, merged: Sequence[int]) -> Merged:
        zeros = np.zeros((2, len(self.clients)))
        ages = ages_of(self.base_versions, self.version)
        return Merged(version, self.round, tuple(merged), ages, density=zeros[0], weight=zeros[1])

    def _finish_report(self) -> list[Merged]:
        """Return the report on the last merge, unless that was done before."""
        report, self._report = self._report, None
        if report is None:
            return []
        report.density[:] = self.restoration.densities
        return [report]

    def look(self) -> Evaluate:
        """Return the current version, to be evaluated: the validation of a refresh is answered with
        `Evaluated`; whoever drives the coordinator may look at any other time, too.
        """
        return Evaluate(self.version, self.round, self.masks, self.packed, self.dense)

    def _refresh(self, event: Evaluated) -> list[Command]:
        self._check_finite()
        self.ready_s = event.now_s
        if self.is_last:
            if self.config.eval.submodels:
                self._cut()  # as if the run went on
            weights = np.concatenate([self.masks.unpack(self.packed), self.dense])
            return [*self._finish_report(), Finish(weights)]
        times = [client.mean_cycle_s() for client in self.clients]
        fastest = best_connected(self.admission.shares, self.admission.active)
        self.restoration.refresh(
            event.now_s, event.accuracy, self.scores, times, fastest, self.round
        )
        self.scores = {}
        self._cut()
        for client, density in zip(self.clients, self.restoration.densities, strict=True):
            client.refresh(density)
        return [*self._finish_report(), *self._dispatch(event.now_s)]

    def _check_finite(self) -> None:
        for part in (self.packed, self.dense):
            if len(part) and not np.isfinite([part.min(), part.max()]).all():
                self._fail_diverged("a weight is not finite")

    def _fail_diverged(self, why: str) -> NoReturn:
        told = f"{DIVERGED}: {why}; lower train.learning_rate"
        raise RunError(told, version=self.version, stage="merge")

    def rank(self) -> None:
        """Rank the current version's entries. A refresh needs it, and whoever drives the
        coordinator may call it while the validation is still under way: densities do not enter.
        """
        try:
            self.masking.rank(self.packed)
        except ScoreError as error:
            self._check_finite()  # of weights that are not, no score can be asked for
            raise RunError(error.message, version=self.version, stage="merge") from None
        except RunError as error:
            self._fail_diverged(error.message)

    def _cut(self) -> None:
        """Cut masks for the present densities and pack the weights in their order."""
        self.rank()
        densities = list(self.restoration.active_densities().values())
        old, self.masks = self.masks, self.masking.cut(self.packed, densities, self.round)
        if old is not self.masks:
            self.same_since = max(self.same_since, self.version)
            self.packed = old.unpack(self.packed)  # the packed one is free before the next is
            self.packed = self.masks.pack(self.packed)
            self.rule.state.repack(old, self.masks)

    def _dispatch(self, now_s: float, *, opens_window: bool = True) -> list[Command]:
        """Send this version to those who are chosen, and open the next window, or go on with it."""
        idle = self._idle()
        busy = self.admission.taking.difference(idle)
        turn = self.buffer.num_arrived if self.admission.sends_at_once else 0
        known = now_s, self.round, self.restoration.densities
        chosen = self.selection.choose(idle, len(busy), *known, key=(self.version, turn))
        assignments = tuple(self._assign(client, now_s) for client in chosen)
        if opens_window:
            self.admission.open(busy.union(chosen), now_s)
        else:
            self.admission.taking = busy.union(chosen)
        if not self.admission.taking:
            return self._wake(now_s)
        if not assignments:
            return []
        return [Dispatch(self.version, self.masks, self.packed, self.dense, assignments, now_s)]

    def _idle(self) -> list[int]:
        """Return clients of the run with nothing in flight, and nothing that they wait for."""
        waiting = () if self.admission.sends_at_once else self.buffer.arrived
        active, clients = self.admission.active, self.clients
        return [c for c in sorted(active) if clients[c].in_flight is None and c not in waiting]

    def _wake(self, now_s: float) -> list[Command]:
        """Close the window since no client takes part: at once if updates wait, otherwise when a
        client can be chosen, or the run's time is over.
        """
        wake_s = now_s
        if not self.buffer.arrived:
            wake_s = min(self.selection.wake_s(self._idle(), now_s), self.limit_s)
        if math.isinf(wake_s):
            raise RunError("no client will be available again", version=self.version)
        self.admission.is_closing = True
        return [CloseAt(max(wake_s, now_s))]

    def _resume(self, now_s: float) -> list[Command]:
        """Send the current version to those whose updates are lost with the process before, as is
        what all clients kept.
        """
        self.same_since, self.ready_s = self.version + 1, now_s
        for client in self.clients:
            client.recall(self.config.train.steps)
        return [*self._dispatch(now_s), *self._go_on(now_s)]

    def _assign(self, client_id: int, now_s: float) -> Assignment:
        client, train = self.clients[client_id], self.config.train
        density = self.restoration.densities[client_id]
        level = self.masks.level(density)
        assignment = Assignment(
            client=client_id,
            base_version=self.version,
            mask_id=self.masks.mask_id,
            level=level,
            density=density,
            num_kept=self.masks.counts[level],
            first_step=client.steps,
            learning_rate=train.rate_in(self.round),
            measure=self.restoration.watches_scores and not client.is_scored,
            same_since=self.same_since,
        )
        client.take(assignment, self.masks, train.steps, now_s)
        return assignment
