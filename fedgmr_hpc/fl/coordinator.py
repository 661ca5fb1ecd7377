"""The server's state machine: events in, commands out; no rank, socket, clock or file.

    Started, Delivered, Closed, Evaluated, Lost
        -> Coordinator.handle -> CloseAt, Evaluate, Merged, Dispatch, Quarantined, Finish

One merge: `Dispatch` sends sub-models, every update comes back as `Delivered`, the arrivals that
admission waits for command `CloseAt`, and `Closed` merges. Whenever the round passes a multiple of
`interval_rounds` a refresh follows, in this order: merge, validate (`Evaluate` -> `Evaluated`),
restore densities, cut masks, dispatch. Time reaches the rules only as `now_s` of an event;
replaying the events replays the same bytes.

A client that is `Lost`, or whose update is at fault (`Quarantined`, see quarantine.py), is gone for
good: its updates leave the buffer at once, merged before or not, so no later version is made from a
client that is gone. The paper has neither.

Weights are kept in the packed order of the current masks (fl/submodels.py). A version's arrays are
never written again, so a `Dispatch` may be encoded at any later time.

Shapes: C clients, P prunable entries, D dense entries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config import Config
from fedgmr_hpc.fl.admission import Admission, pacing_clients
from fedgmr_hpc.fl.aggregation import merge, staleness_weight
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
)
from fedgmr_hpc.fl.quarantine import has_finite_entries, norm_fault
from fedgmr_hpc.fl.restoration import Restoration
from fedgmr_hpc.fl.submodels import (
    Keys,
    MaskSet,
    PrunableLayer,
    cut_masks,
    full_masks,
    rank_entries,
    score_entries,
)
from fedgmr_hpc.records import Assignment, Floats, RunError, Update


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
        self.admission = Admission(config.admission, shares)
        recent = max(1, config.run.interval_rounds // 2)
        self.clients = [Client(cycle_times_s=deque(maxlen=recent)) for _ in shares]
        self.quarantined: set[int] = set()
        self.version = 0
        self.masks = full_masks(self.num_prunable)
        self.packed: Floats = weights[: self.num_prunable].copy()
        self.dense: Floats = weights[self.num_prunable :].copy()
        self.buffer = UpdateBuffer(config.aggregation)
        self.scores: dict[int, float] = {}
        self.is_last = False
        self._report: Merged | None = None
        self._keys: Keys | None = None  # of the current version, between ranking and cutting
        self._last_refresh: Floats | None = None  # [P] natural, only for score wg
        self._grad_squares: Floats | None = None  # [P] natural, only for score g

    @property
    def round(self) -> int:
        """Rounds done, see admission.py."""
        return self.admission.round

    def handle(self, event: Event) -> list[Command]:
        """Takes one event; returns what is to be done, in order.

        Raises:
            RunError: an update that was not asked for, a model that has diverged, or no client
                left.
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
        self._report = self._make_report(0, ())
        return [self._evaluate()]

    def _deliver(self, event: Delivered) -> list[Command]:
        update = event.update
        client = self.clients[update.client]
        masks = client.check_owed(update, len(self.dense), self.version)
        if fault := self._find_fault(update, masks):
            return self._quarantine(event.now_s, update.client, fault)
        if update.grad_squares is not None:
            self._add_grad_squares(update.grad_squares, masks, update.num_samples)
        self.buffer.add(update, masks)
        client.deliver(event.now_s)
        self.restoration.deliver(update.client, update.density)
        is_current = update.density == self.restoration.densities[update.client]
        if is_current and not np.isnan(update.score):
            self.scores[update.client] = update.score
        return self._close_if_complete(event.now_s)

    def _close_if_complete(self, now_s: float) -> list[Command]:
        at_s = self.admission.close_s(now_s, self.buffer.arrived.keys())
        return [] if at_s is None else [CloseAt(at_s)]

    def _find_fault(self, update: Update, masks: MaskSet) -> str | None:
        """Why an update must not be merged."""
        if not has_finite_entries(update):
            return "a value is not finite"
        max_ratio = self.config.aggregation.max_norm_ratio
        if max_ratio is None:
            return None
        same = self._pack_current(masks)[: len(update.values)]
        return norm_fault((update.values, update.dense), (same, self.dense), max_ratio)

    def _pack_current(self, masks: MaskSet) -> Floats:
        """[P] current prunable weights in the packed order of these masks."""
        if masks.mask_id == self.masks.mask_id:
            return self.packed
        return masks.pack(self.masks.unpack(self.packed))

    def _quarantine(self, now_s: float, client: int, fault: str) -> list[Command]:
        self.quarantined.add(client)
        self._check_left((client,), fault)
        return [Quarantined(client, self.version, fault), *self._drop(now_s, (client,))]

    def _check_left(self, going: Iterable[int], reason: str) -> None:
        """Fails if nobody is left without the clients that go now."""
        if not self.admission.active.issubset(going):
            return
        self._check_finite()
        if len(self.quarantined) == len(self.clients):
            self._fail_diverged(f"every client is quarantined, the last because {reason}")
        num_lost = len(self.clients) - len(self.quarantined)
        raise RunError(
            f"no client is left: {num_lost} lost, {len(self.quarantined)} quarantined, "
            f"the last because {reason}",
            version=self.version,
            stage="receive",
        )

    def _drop(self, now_s: float, gone: Sequence[int]) -> list[Command]:
        """Goes on without clients; nothing that the server holds of them is used any more."""
        for client in gone:
            self.clients[client].leave()
            self.restoration.lose(client)
            self.buffer.drop(client)
            self.scores.pop(client, None)
        self.admission.lose(gone, self.buffer.arrived.keys())
        return self._close_if_complete(now_s)

    def _add_grad_squares(self, squares: Floats, masks: MaskSet, num_samples: int) -> None:
        if self._grad_squares is None:
            self._grad_squares = np.zeros(self.num_prunable, np.float32)
        at = slice(0, len(squares)) if masks.perm is None else masks.perm[: len(squares)]
        self._grad_squares[at] += squares * np.float32(num_samples)

    def _close(self, event: Closed) -> list[Command]:
        merged, before = tuple(sorted(self.buffer.arrived)), self.round
        if not merged:  # what had arrived is of clients that are gone
            self.admission.open()
            return []
        for client in merged:
            self.clients[client].base_version = self.buffer.arrived[client].base_version
        self.admission.merge(len(merged))
        self._merge(merged)
        self.version += 1
        run = self.config.run
        is_late = run.max_time_s is not None and event.ready_s >= run.max_time_s
        self.is_last = is_late or self.round >= run.max_rounds
        if self.is_last or self.round // run.interval_rounds > before // run.interval_rounds:
            return [self._evaluate()]
        return [self._finish_report(), self._dispatch(event.ready_s, merged)]

    def _merge(self, merged: tuple[int, ...]) -> None:
        choices = self.config.aggregation
        sigma = self._staleness_weights()
        entries = self.buffer.take(self.masks)
        weights = [sigma[entry.client] * entry.num_samples for entry in entries]
        rho = float(sum(sigma[client] for client in merged) / sigma.sum())
        self.packed, self.dense = merge(
            self.packed, self.dense, entries, weights, rule=choices.rule, rho=rho
        )
        self._report = self._make_report(self.version + 1, merged)
        total = sum(weights)
        for entry, weight in zip(entries, weights, strict=True):
            self._report.weight[entry.client] = weight / total

    def _staleness_weights(self) -> NDArray[np.float64]:
        """sigma of every client's last update at its age now [C], 0 for clients without one."""
        choices = self.config.aggregation
        return np.array(
            [
                staleness_weight(
                    client.age(self.version),
                    rule=choices.staleness,
                    exponent=choices.exponent,
                    hinge_delay=choices.hinge_delay,
                )
                if client.base_version is not None
                else 0.0
                for client in self.clients
            ]
        )

    def _make_report(self, version: int, merged: tuple[int, ...]) -> Merged:
        zeros = np.zeros((2, len(self.clients)))
        ages = np.array([client.age(self.version) for client in self.clients], np.int64)
        return Merged(version, self.round, merged, ages, density=zeros[0], weight=zeros[1])

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
        times = [client.mean_cycle_s() for client in self.clients]
        fastest = pacing_clients("window", self.admission.shares, self.admission.active)
        self.restoration.refresh(event.now_s, event.accuracy, self.scores, times, fastest)
        self.scores = {}
        if not self.is_full:
            self._cut(list(self.restoration.active_densities().values()))
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
        self.packed = self.masks.unpack(self.packed)  # the packed one is free before the next is
        self.packed = masks.pack(self.packed)
        self.masks = masks

    def _dispatch(self, now_s: float, receivers: Sequence[int]) -> Dispatch:
        active = self.admission.active
        assignments = tuple(self._assign(c, now_s) for c in receivers if c in active)
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
        client.take(assignment, self.masks, train.steps, now_s)
        return assignment
