"""The server's state machine: events in, commands out; no rank, socket, clock or file.

    Started, Delivered, Closed, Evaluated
        -> Coordinator.handle -> CloseAt, Evaluate, Merged, Dispatch, Finish

One round: `Dispatch` sends sub-models, every update comes back as `Delivered`, the pacing clients'
arrivals command `CloseAt`, and `Closed` merges. Every `interval_rounds` rounds a refresh follows,
in this order: merge, validate (`Evaluate` -> `Evaluated`), restore densities, cut masks, dispatch.
Time reaches the rules only as `now_s` of an event; replaying the events replays the same bytes.

Weights are kept in the packed order of the current masks (fl/submodels.py). A version's arrays are
never written again, so a `Dispatch` may be encoded at any later time.

Shapes: C clients, P prunable entries, D dense entries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config import Config
from fedgmr_hpc.fl.admission import closing_slack_s, pacing_clients
from fedgmr_hpc.fl.aggregation import BufferEntry, merge, staleness_weight
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
    Merged,
)
from fedgmr_hpc.fl.restoration import Restoration
from fedgmr_hpc.fl.submodels import (
    Keys,
    MaskSet,
    PrunableLayer,
    cut_masks,
    full_masks,
    rank_entries,
    repack,
    score_entries,
)
from fedgmr_hpc.records import Assignment, Floats, RunError, Update


@dataclass
class _Client:
    """What the server knows of one client."""

    steps: int = 0
    dispatched_s: float = 0.0
    in_flight: Assignment | None = None
    masks: MaskSet | None = None  # of the assignment in flight
    base_version: int | None = None  # of the last merged update
    is_scored: bool = False  # its local model was, or is being, scored since the last refresh
    cycle_times_s: deque[float] = field(default_factory=deque)


class Coordinator:
    """The learning side of the server."""

    def __init__(
        self,
        config: Config,
        shares: Sequence[float],
        weights: Floats,
        layers: Sequence[PrunableLayer],
    ) -> None:
        """
        Args:
            shares: [C] bandwidth shares, the initial densities of partial sub-models.
            weights: [P + D] initial weights, natural order.
            layers: the P prunable entries by tensor.
        """
        self.config, self.layers = config, tuple(layers)
        self.num_prunable = self.layers[-1].stop
        self.is_full = config.submodel.kind == "full"
        densities = [1.0] * len(shares) if self.is_full else list(shares)
        self.restoration = Restoration(config.restoration, densities)
        self.pacing = pacing_clients(config.admission.kind, shares)
        self.fastest = pacing_clients("window", shares)
        recent = max(1, config.run.interval_rounds // 2)
        self.clients = [_Client(cycle_times_s=deque(maxlen=recent)) for _ in shares]
        self.version = self.round = 0
        self.masks = full_masks(self.num_prunable)
        self.packed = weights[: self.num_prunable].copy()
        self.dense = weights[self.num_prunable :].copy()
        self.buffer: dict[int, BufferEntry] = {}
        self.arrived: dict[int, BufferEntry] = {}
        self.awaited = set(self.pacing)
        self.scores: dict[int, float] = {}
        self.is_last = False
        self._report: Merged | None = None
        self._old_masks: dict[int, MaskSet] = {}  # that updates held here may still be packed for
        self._keys: Keys | None = None  # of the current version, between ranking and cutting
        self._last_refresh: Floats | None = None  # [P] natural, only for score wg
        self._grad_squares: Floats | None = None  # [P] natural, only for score g

    def handle(self, event: Event) -> list[Command]:
        """Takes one event; returns what is to be done, in order."""
        if isinstance(event, Delivered):
            return self._deliver(event)
        if isinstance(event, Closed):
            return self._close(event)
        if isinstance(event, Evaluated):
            return self._refresh(event)
        self._report = self._make_report(0, ())
        return [self._evaluate()]

    def _deliver(self, event: Delivered) -> list[Command]:
        update = event.update
        client = self.clients[update.client]
        masks = self._check_owed(update)
        if update.grad_squares is not None:
            self._add_grad_squares(update.grad_squares, masks, update.num_samples)
        self.arrived[update.client] = BufferEntry(
            client=update.client,
            base_version=update.base_version,
            values=update.values,
            index=None,
            dense=update.dense,
            num_samples=update.num_samples,
            mask_id=masks.mask_id,
        )
        self.buffer.pop(update.client, None)  # the next merge takes the new one
        client.in_flight = client.masks = None
        client.cycle_times_s.append(event.now_s - client.dispatched_s)
        self.restoration.deliver(update.client, update.density)
        is_current = update.density == self.restoration.densities[update.client]
        if is_current and not np.isnan(update.score):
            self.scores[update.client] = update.score
        was_waiting = bool(self.awaited)
        self.awaited.discard(update.client)
        if was_waiting and not self.awaited:
            admission = self.config.admission
            return [CloseAt(event.now_s + closing_slack_s(admission.kind, admission.slack_s))]
        return []

    def _check_owed(self, update: Update) -> MaskSet:
        """The masks of the assignment that this update answers."""
        client = self.clients[update.client]
        owed = client.in_flight
        answered = f"masks {update.mask_id}, version {update.base_version}"
        expected = "none" if owed is None else f"masks {owed.mask_id}, version {owed.base_version}"
        if owed is None or client.masks is None or answered != expected:
            raise RunError(
                f"update for {answered} arrived, expected {expected}",
                client=update.client,
                version=self.version,
                stage="receive",
            )
        if len(update.values) != owed.num_kept or len(update.dense) != len(self.dense):
            raise RunError(
                f"update has {len(update.values)} + {len(update.dense)} values, "
                f"expected {owed.num_kept} + {len(self.dense)}",
                client=update.client,
                version=owed.base_version,
                stage="receive",
            )
        return client.masks

    def _add_grad_squares(self, squares: Floats, masks: MaskSet, num_samples: int) -> None:
        if self._grad_squares is None:
            self._grad_squares = np.zeros(self.num_prunable, np.float32)
        at = slice(0, len(squares)) if masks.perm is None else masks.perm[: len(squares)]
        self._grad_squares[at] += squares * np.float32(num_samples)

    def _close(self, event: Closed) -> list[Command]:
        merged = tuple(sorted(self.arrived))
        self.buffer.update(self.arrived)
        for client in merged:
            self.clients[client].base_version = self.arrived[client].base_version
        self._evict()
        self._merge(merged)
        self.version += 1
        self.round += 1
        run = self.config.run
        is_late = run.max_time_s is not None and event.ready_s >= run.max_time_s
        self.is_last = is_late or self.round >= run.max_rounds
        if self.is_last or self.round % run.interval_rounds == 0:
            return [self._evaluate()]
        return [self._finish_report(), self._dispatch(event.ready_s, merged)]

    def _evict(self) -> None:
        """Drops what was delivered longest ago, but nothing that was never merged."""
        limit = self.config.aggregation.max_entries
        while limit is not None and len(self.buffer) > max(limit, len(self.arrived)):
            del self.buffer[next(iter(self.buffer))]  # a delivery puts its update at the end

    def _merge(self, merged: tuple[int, ...]) -> None:
        choices = self.config.aggregation
        sigma = self._staleness_weights()
        sources = self.buffer if choices.buffered else self.arrived
        for client, entry in sources.items():
            sources[client] = self._in_current_order(entry)
        entries = [sources[client] for client in sorted(sources)]
        weights = [sigma[entry.client] * entry.num_samples for entry in entries]
        rho = float(sum(sigma[client] for client in merged) / sigma.sum()) if merged else 0.0
        self.packed, self.dense = merge(
            self.packed, self.dense, entries, weights, rule=choices.rule, rho=rho
        )
        self._report = self._make_report(self.version + 1, merged)
        total = sum(weights)
        for entry, weight in zip(entries, weights, strict=True):
            self._report.weight[entry.client] = weight / total
        if not choices.buffered:
            self.buffer.clear()
        self.arrived = {}
        self._forget_masks()
        self.awaited = set(self.pacing)

    def _in_current_order(self, entry: BufferEntry) -> BufferEntry:
        """The update in the packed order of the current masks; most are replaced before that."""
        if entry.mask_id == self.masks.mask_id:
            return entry
        old = self._old_masks[entry.mask_id]
        values, index = repack(entry.values, entry.index, old, self.masks)
        return replace(entry, values=values, index=index, mask_id=self.masks.mask_id)

    def _forget_masks(self) -> None:
        """Drops mask sets that no update, held or under way, is packed for."""
        used = {e.mask_id for e in (*self.buffer.values(), *self.arrived.values())}
        used |= {c.masks.mask_id for c in self.clients if c.masks is not None}
        self._old_masks = {i: masks for i, masks in self._old_masks.items() if i in used}

    def _staleness_weights(self) -> NDArray[np.float64]:
        """sigma of every client's last update at its age now [C], 0 for clients without one."""
        choices = self.config.aggregation
        return np.array(
            [
                staleness_weight(
                    self._age(client),
                    rule=choices.staleness,
                    exponent=choices.exponent,
                    hinge_delay=choices.hinge_delay,
                )
                if client.base_version is not None
                else 0.0
                for client in self.clients
            ]
        )

    def _age(self, client: _Client) -> int:
        """Age in versions of a client's last update, 0 if there is none."""
        return 0 if client.base_version is None else self.version - client.base_version + 1

    def _make_report(self, version: int, merged: tuple[int, ...]) -> Merged:
        zeros = np.zeros((2, len(self.clients)))
        ages = np.array([self._age(client) for client in self.clients], np.int64)
        return Merged(version, version, merged, ages, density=zeros[0], weight=zeros[1])

    def _finish_report(self) -> Merged:
        assert self._report is not None
        self._report.density[:] = self.restoration.densities
        return self._report

    def _evaluate(self) -> Evaluate:
        return Evaluate(self.version, self.round, self.masks, self.packed, self.dense)

    def _refresh(self, event: Evaluated) -> list[Command]:
        self._check_finite()
        if self.is_last:
            weights = np.concatenate([self.masks.unpack(self.packed), self.dense])
            return [self._finish_report(), Finish(weights)]
        times = [
            sum(c.cycle_times_s) / len(c.cycle_times_s) if c.cycle_times_s else None
            for c in self.clients
        ]
        densities = self.restoration.refresh(
            event.now_s, event.accuracy, self.scores, times, self.fastest
        )
        self.scores = {}
        if not self.is_full:
            self._cut(densities)
        for client in self.clients:
            client.is_scored = client.in_flight is not None and client.in_flight.measure
        report = self._finish_report()
        receivers = report.clients if self.version else range(len(self.clients))
        return [report, self._dispatch(event.now_s, receivers)]

    def _check_finite(self) -> None:
        for part in (self.packed, self.dense):
            if not np.isfinite([part.min(), part.max()]).all():
                self._fail_diverged("a weight is not finite")

    def _fail_diverged(self, why: str) -> NoReturn:
        raise RunError(
            f"the model has diverged: {why}; lower train.learning_rate",
            version=self.version,
            stage="merge",
        )

    def rank(self) -> None:
        """Ranks the current version's entries. A refresh needs it, and whoever drives the
        coordinator may call it while the validation is still under way: densities do not enter.
        """
        if self.is_full or self._keys is not None:
            return
        natural = self.masks.unpack(self.packed)
        kind = self.config.submodel.score
        scores = score_entries(kind, natural, self._last_refresh, self._grad_squares)
        self._last_refresh = natural.copy() if kind == "wg" else None
        layers = self.layers
        if not self.config.submodel.use_costs:
            layers = tuple(PrunableLayer(la.name, la.start, la.stop, 1.0) for la in layers)
        try:
            self._keys = rank_entries(
                natural, scores, layers, floor_frac=self.config.submodel.floor_frac
            )
        except RunError as error:
            self._fail_diverged(error.message)
        if self._grad_squares is not None:
            self._grad_squares = np.zeros_like(self._grad_squares)

    def _cut(self, densities: Sequence[float]) -> None:
        self.rank()
        assert self._keys is not None
        masks = cut_masks(self._keys, densities, mask_id=self.masks.mask_id + 1)
        self._keys = None
        self._old_masks[self.masks.mask_id] = self.masks
        self.packed = self.masks.unpack(self.packed)  # the packed one is free before the next is
        self.packed = masks.pack(self.packed)
        self.masks = masks

    def _dispatch(self, now_s: float, receivers: Sequence[int]) -> Dispatch:
        assignments = tuple(self._assign(client, now_s) for client in receivers)
        return Dispatch(self.version, self.masks, self.packed, self.dense, assignments)

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
            learning_rate=train.learning_rate
            * train.decay_factor ** (self.round // train.decay_rounds),
            measure=self.restoration.watches_scores and not client.is_scored,
        )
        client.steps += train.steps
        client.in_flight, client.masks = assignment, self.masks
        client.dispatched_s = now_s
        client.is_scored |= assignment.measure
        return assignment
