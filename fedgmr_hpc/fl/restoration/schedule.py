"""Schedules: a density for every client at every refresh (docs/method.md#restoration).

A schedule is a class registered under a name for `restoration.trigger`; its fields are its options.
The server sees to what holds for all: no density above a client's ceiling, none raised again before
the client has delivered at its new density, and none changed of a client that is gone.

Shapes: C clients.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar

from fedgmr_hpc.config.choices.failures import check_state
from fedgmr_hpc.config.choices.registry import register_restoration
from fedgmr_hpc.config.choices.section import Section
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.messages import must


@dataclass(frozen=True, slots=True)
class Refresh:
    """A refresh, as a schedule sees it.

    Attributes:
        now_s: the time.
        round: rounds done.
        densities: [C] of each client at present.
        ceilings: [C] the highest of each.
        rungs: ascending steps of the ladder: the initial densities and 1.
        server_score: validation accuracy of the server's model.
        client_scores: those of clients that were measured since the last refresh.
        cycle_times_s: [C] mean recent time from dispatch to delivery, None before any.
        waiting: clients that have not delivered since their density was raised.
        gone: clients that are gone for good.
        state: the schedule's own, whatever JSON can hold; written in place, empty at first.
    """

    now_s: float
    round: int
    densities: Sequence[float]
    ceilings: Sequence[float]
    rungs: Sequence[float]
    server_score: float
    client_scores: Mapping[int, float]
    cycle_times_s: Sequence[float | None]
    waiting: AbstractSet[int]
    gone: AbstractSet[int]
    state: dict[str, Any]


class Schedule(Section):
    """The base of all schedules.

    Attributes:
        watches_scores: whether clients score their trained models for it, on validation samples.
    """

    watches_scores: ClassVar[bool] = False

    @abstractmethod
    def densities(self, refresh: Refresh) -> Sequence[float]:
        """Return the densities [C] from each client's next dispatch on."""

    def allowed(self, refresh: Refresh) -> list[float]:
        """Return what it asks for, as far as that is allowed.

        Raises:
            RunError: it does not ask for one density > 0 a client, or keeps what cannot be saved.
        """
        who, found = f"schedule {type(self).__name__}", self.densities(refresh)
        asked = _numbers(found)
        is_whole = asked is not None and len(asked) == len(refresh.densities)
        if asked is None or not is_whole or not all(0 < each < math.inf for each in asked):
            need = f"give each of {len(refresh.densities)} clients a density > 0"
            because = "`densities` returns nothing" if found is None else ""
            raise RunError(must(who, need, asked or found, because=because), stage="merge")
        check_state(f"{who}: refresh.state", refresh.state)
        return [
            now
            if client in refresh.gone or (client in refresh.waiting and density > now)
            else min(density, refresh.ceilings[client])
            for client, (now, density) in enumerate(zip(refresh.densities, asked, strict=True))
        ]


def _numbers(found: Any) -> list[float] | None:
    """Return what a schedule has returned as numbers; None where it is no list of them."""
    each = list(found) if isinstance(found, Iterable) else [found]
    try:
        return [float(density) for density in each]
    except (TypeError, ValueError):
        return None


class BuiltIn(Schedule):
    """A trigger of restoring.py, whose rules raise a floor under all densities, too."""

    watches_time: ClassVar[bool] = False

    def densities(self, refresh: Refresh) -> Sequence[float]:
        """Return the present densities: those rules raise them, not the schedule."""
        return refresh.densities


@register_restoration("plateau")
class Plateaus(BuiltIn):
    """At a plateau of the scores."""

    watches_scores = True


@register_restoration("time")
class Times(BuiltIn):
    """At fixed times."""

    watches_time = True


@register_restoration("both")
class PlateausAndTimes(BuiltIn):
    """At either."""

    watches_scores, watches_time = True, True
