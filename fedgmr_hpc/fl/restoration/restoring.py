"""Gradual model restoration: when densities grow, and to what (docs/method.md#restoration).

At each refresh, with validation scores only: cool-downs fall; the server's and the clients'
stagnation counters take their new scores; a stagnated server lifts the floor under all densities, a
stagnated client its own density; clients below the floor are lifted to it. The `time` trigger lifts
the floor at fixed times instead. Stage 1 (`balance`, formula 4) runs until the first restoration
and moves densities towards equal cycle times.

Deviations from the released code (docs/method.md#deviations, 19 to 25): the server watches W on
validation data, not a zero-including average on test data; a score counts once; the floor starts
at, and never stays below, the lowest density; one rule set for all methods; the arming gate is a
choice; a client cannot restore again before it has delivered at its new density.

A client that is gone keeps its last density, takes no part in any rule, and does not hold the floor
down. A client short of memory or speed never grows beyond its ceiling (not in the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedgmr_hpc.config.axes import RestorationConfig
from fedgmr_hpc.config.choices.registry import RESTORATIONS
from fedgmr_hpc.fl.restoration.schedule import BuiltIn, Refresh, Schedule

TIME_FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of total_time_s


@dataclass
class Plateau:
    """Counts evaluations without a new best score (docs/method.md#stagnation)."""

    best: float | None = None
    count: int = 0

    def add(self, score: float) -> None:
        """Take one new measurement."""
        if self.best is None or score > self.best:
            self.best, self.count = score, 0
        else:
            self.count += 1

    def reset(self) -> None:
        """Forget: the next score is the best so far."""
        self.best, self.count = None, 0


@dataclass
class Restoration:
    """The density schedules of all clients.

    Attributes:
        densities: the density each client gets at its next dispatch.
        ceilings: the highest density of each client; empty for no limits.
        rungs: ascending steps of the ladder, the initial densities and 1.
    """

    config: RestorationConfig
    densities: list[float]
    ceilings: tuple[float, ...] = ()
    rungs: tuple[float, ...] = ()
    floor: float = 0.0
    server: Plateau = field(default_factory=Plateau)
    clients: list[Plateau] = field(default_factory=list)
    server_cooldown: int = 0
    cooldowns: list[int] = field(default_factory=list)
    undelivered: set[int] = field(default_factory=set)  # restored, nothing delivered since
    lost: set[int] = field(default_factory=set)
    armed: bool = False
    restored: bool = False
    num_time_steps: int = 0
    own: dict[str, Any] = field(default_factory=dict)  # of a plug-in's schedule
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if self.config.trigger != "none":
            self.schedule = RESTORATIONS.make(self.config.trigger, self.config)
        self.rungs = tuple(sorted({*self.densities, 1.0}))
        self.ceilings = self.ceilings or (1.0,) * len(self.densities)
        self.densities = [min(pair) for pair in zip(self.densities, self.ceilings, strict=True)]
        self.floor = min(self.densities)
        self.clients = [Plateau() for _ in self.densities]
        self.cooldowns = [0] * len(self.densities)
        self.armed = not self.config.arm_after_first_plateau

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back: all that ever changes."""
        fixed = ("config", "ceilings", "rungs", "schedule")
        changing = {name: value for name, value in asdict(self).items() if name not in fixed}
        return changing | {"undelivered": sorted(self.undelivered), "lost": sorted(self.lost)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        for name, value in state.items():
            setattr(self, name, value)
        self.server = Plateau(**state["server"])
        self.clients = [Plateau(**plateau) for plateau in state["clients"]]
        self.undelivered, self.lost = set(state["undelivered"]), set(state["lost"])

    @property
    def watches_scores(self) -> bool:
        """Whether clients need to score their local models."""
        return self.schedule is not None and self.schedule.watches_scores

    def deliver(self, client: int, density: float) -> bool:
        """Take note of a client's update.

        Args:
            density: of the masks and the level that it was trained with.

        Returns:
            Whether that is still the client's density.
        """
        is_current = density == self.densities[client]
        if is_current:
            self.undelivered.discard(client)
        return is_current

    def lose(self, client: int) -> None:
        """Note that a client is gone for good; others are left."""
        self.lost.add(client)
        self.clients[client].reset()

    def active_densities(self) -> dict[int, float]:
        """Return density of every client that is not gone, by client."""
        return {c: density for c, density in enumerate(self.densities) if c not in self.lost}

    def refresh(
        self,
        now_s: float,
        server_score: float,
        client_scores: Mapping[int, float],
        cycle_times_s: Sequence[float | None],
        fastest: frozenset[int],
        round_: int = 0,
    ) -> list[float]:
        """Refresh: return the clients' densities from their next dispatch on.

        Args:
            now_s: virtual time.
            server_score: validation accuracy of the server's model.
            client_scores: validation accuracies measured since the last refresh, by client.
            cycle_times_s: mean recent time from dispatch to delivery of each client, None before
                any and for clients that are gone.
            fastest: the best-connected clients, the reference of formula (4).
            round_: rounds done.
        """
        before, schedule = list(self.densities), self.schedule
        if isinstance(schedule, BuiltIn):
            if schedule.watches_scores:
                self._follow_scores(server_score, client_scores)
            if schedule.watches_time:
                self._follow_time(now_s)
        elif schedule is not None:
            scores = server_score, client_scores
            self._follow(schedule, self._view(now_s, round_, scores, cycle_times_s))
        self.restored |= self.densities != before
        if self.config.balance and not self.restored:
            self._balance(cycle_times_s, fastest)
        return list(self.densities)

    def _view(
        self,
        now_s: float,
        round_: int,
        scores: tuple[float, Mapping[int, float]],
        cycle_times_s: Sequence[float | None],
    ) -> Refresh:
        return Refresh(
            now_s,
            round_,
            tuple(self.densities),
            self.ceilings,
            self.rungs,
            *scores,
            tuple(cycle_times_s),
            waiting=frozenset(self.undelivered),
            gone=frozenset(self.lost),
            state=self.own,
        )

    def _follow(self, schedule: Schedule, view: Refresh) -> None:
        for client, density in enumerate(schedule.allowed(view)):
            if density > self.densities[client]:
                self.undelivered.add(client)
            self.densities[client] = density

    def _follow_scores(self, server_score: float, client_scores: Mapping[int, float]) -> None:
        self.cooldowns = [max(0, left - 1) for left in self.cooldowns]
        silent = self.server_cooldown > 0
        self.server_cooldown = max(0, self.server_cooldown - 1)
        if silent:
            return
        self.server.add(server_score)
        for client, score in client_scores.items():
            self.clients[client].add(score)
        patience = self.config.patience
        stagnated = [c for c, plateau in enumerate(self.clients) if plateau.count >= patience]
        if self.server.count >= patience:
            self._restore_floor()
        for client in stagnated:
            self._restore_client(client)
        self._lift_to_floor()

    def _restore_floor(self) -> None:
        """Raise every client's floor, since the server has stagnated, and let the trigger rest
        (wait for stable).
        """
        if not self.armed:
            self.armed = True
            self.server.count = 0
            return
        if self.floor >= 1.0:
            return
        self.floor = self.next_density(self.floor)
        self.server_cooldown = self.config.patience - 1
        for plateau in (self.server, *self.clients):
            plateau.reset()

    def _restore_client(self, client: int) -> None:
        is_ready = self.cooldowns[client] == 0 and client not in self.undelivered
        if not is_ready or self.densities[client] >= self.ceilings[client]:
            return
        self._set(client, self.next_density(self.densities[client]))
        self.cooldowns[client] = max(1, 2 * self.config.patience)
        self.server.reset()
        self.clients[client].reset()

    def _lift_to_floor(self) -> None:
        active = self.active_densities()
        self.floor = max(self.floor, min(active.values()))
        for client, density in active.items():
            if density < min(self.floor, self.ceilings[client]):
                self._set(client, self.floor)
                self.clients[client].reset()
                self.server.reset()

    def _follow_time(self, now_s: float) -> None:
        due = sum(now_s >= share * self.config.total_time_s for share in TIME_FRACTIONS)
        while self.num_time_steps < due:
            self.num_time_steps += 1
            self.floor = self.next_density(self.floor)
            for plateau in (self.server, *self.clients):
                plateau.reset()
        self._lift_to_floor()

    def _set(self, client: int, density: float) -> None:
        self.densities[client] = min(density, self.ceilings[client])
        self.undelivered.add(client)

    def next_density(self, density: float) -> float:
        """Return the step after `density`: the next rung over 0.01 above it, + fixed_step, or x
        factor.
        """
        if self.config.step == "fixed":
            return min(1.0, round(density + self.config.fixed_step, 9))
        if self.config.step == "factor":
            return min(1.0, round(density * self.config.factor, 9))
        return next((rung for rung in self.rungs if rung > density + 0.01), 1.0)

    def _balance(self, cycle_times_s: Sequence[float | None], fastest: frozenset[int]) -> None:
        """Balance by formula (4): P_i <- clip(P_i (1 + lambda (T_0 - T_i) / T_i), min_density,
        1).
        """
        reference = [
            time for c, time in enumerate(cycle_times_s) if c in fastest and time is not None
        ]
        if not reference:
            return
        target_s = sum(reference) / len(reference)
        for client, time_s in enumerate(cycle_times_s):
            if time_s and client not in fastest:
                step = 1 + self.config.balance_rate * (target_s - time_s) / time_s
                balanced = round(self.densities[client] * step, 4)
                self.densities[client] = min(
                    self.ceilings[client], max(self.config.min_density, balanced)
                )
        self.floor = min(self.active_densities().values())
