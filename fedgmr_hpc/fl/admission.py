"""Admission: when the server stops waiting and merges (docs/method.md#admission).

`window` is paced by those with the greatest bandwidth share of the clients that take part, which
have been sent something: it closes `slack_s` after the last of them has arrived. `barrier` is paced
by all that take part and closes at once. `count` (FedBuff) closes at once when that many updates
have arrived since the last merge, `each` (FedAsync) at every arrival, even while the last merge is
under way: `links.merge_s` delays a version, but does not make the next one wait. Whatever is there
at the close is merged, so arrivals at one time share a merge.

Who has delivered waits for the merge, and is sent what it has made. With `count` it is sent the
version that there is, at once, so that as many train at any time, and may bring a second update to
the same merge; but not where the buffer keeps a client's last update only.

A round is a merge for `window` and `barrier`, and for `count` and `each` as many merged updates as
clients take part at a time. No window waits for a client that is gone: a window that waited only
for such clients closes with what has arrived, or, if nothing has, is paced by those who are left.
Rounds done stay done when clients go.

A rule is a class registered under a name for `admission.kind`; its fields are its options. The
server sees to what holds for all: a window closes once, never in the past or without an arrival,
and never waits when everybody has arrived and nobody goes on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

from fedgmr_hpc.config.axes import AdmissionConfig
from fedgmr_hpc.config.choices.failures import check_state
from fedgmr_hpc.config.choices.registry import ADMISSIONS, register_admission
from fedgmr_hpc.config.choices.section import Section
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.messages import must


@dataclass(frozen=True, slots=True)
class Window:
    """The open window, as a rule sees it.

    Attributes:
        now_s: the time.
        arrived: clients whose updates wait for the next merge.
        taking: clients that take part: who has been sent something, and who has arrived and waits.
        awaited: pacing clients that have not gone since the window opened.
        round: rounds done.
        state: the rule's own for the whole run, whatever JSON can hold; written in place, empty at
            first.
        num_updates: how many wait for the next merge.
        opened_s: when it opened: when the version was sent. Who arrives during the merge before
            that arrives earlier.
    """

    now_s: float
    arrived: AbstractSet[int]
    taking: AbstractSet[int]
    awaited: AbstractSet[int]
    round: int
    state: dict[str, Any]
    num_updates: int
    opened_s: float = 0.0


class AdmissionRule(Section):
    """The base of all rules, which waits for the pacing clients: all that take part.

    Attributes:
        counts: what makes a round: a merge, or as many merged updates as clients take part.
        sends_at_once: whether who delivers before the window is told to close is sent the current
            version at once, without waiting for the merge.
    """

    counts: ClassVar[Literal["merges", "updates"]] = "merges"
    sends_at_once: ClassVar[bool] = False

    def pacing(self, shares: Sequence[float], taking: Collection[int]) -> frozenset[int]:
        """Return whom a window waits for, of those who take part."""
        return frozenset(taking)

    def close_s(self, window: Window) -> float | None:
        """Return when the window closes, None to wait for further arrivals. Asked at every arrival
        and when clients have gone, until it has said a time.
        """
        return window.now_s if window.arrived and window.awaited <= window.arrived else None


@register_admission("window")
class Paced(AdmissionRule):
    """Waits for the best-connected, and then a little longer."""

    slack_s: float = 0.5

    def pacing(self, shares: Sequence[float], taking: Collection[int]) -> frozenset[int]:
        """Return those with the greatest share."""
        return best_connected(shares, taking)

    def close_s(self, window: Window) -> float | None:
        """Return when the slack is over."""
        at_s = super().close_s(window)
        return None if at_s is None else at_s + self.slack_s


@register_admission("barrier")
class Barrier(AdmissionRule):
    """Waits for all."""


@register_admission("count")
class Counted(AdmissionRule):
    """Waits for so many updates, whose clients go on meanwhile."""

    counts = "updates"
    sends_at_once = True
    count: int | None = None

    def close_s(self, window: Window) -> float | None:
        """Return now if they are there."""
        return window.now_s if window.num_updates >= (self.count or 1) else None


@register_admission("each")
class Each(AdmissionRule):
    """Waits for one update."""

    counts = "updates"

    def close_s(self, window: Window) -> float | None:
        """Return now."""
        return window.now_s if window.arrived else None


def best_connected(shares: Sequence[float], among: Collection[int]) -> frozenset[int]:
    """Return the clients with the greatest of these shares; never empty, as `among` is not."""
    fastest = max(shares[client] for client in among)
    return frozenset(client for client in among if shares[client] == fastest)


class Admission:
    """The open window, the clients it can wait for, and the rounds done.

    Attributes:
        active: clients that are left.
        taking: those that take part, see the module.
        awaited: the pacing clients of the open window that have not gone since it opened.
        round: rounds done.
        opened_s: see `Window`.
        sends_at_once: see `AdmissionRule`.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        shares: Sequence[float],
        sampled: int | None = None,
        *,
        is_buffered: bool = False,
    ) -> None:
        """
        Args:
            shares: [C] bandwidth shares.
            sampled: how many clients take part at a time at most; None for all.
            is_buffered: whether the server keeps each client's last update, and only that.
        """
        self.rule: AdmissionRule = ADMISSIONS.make(config.kind, config)
        self.sends_at_once = self.rule.sends_at_once and not is_buffered
        self.shares = tuple(shares)
        self.active = set(range(len(shares)))
        self.taking = set(self.active)
        self.sampled = len(shares) if sampled is None else sampled
        self.round = 0
        self.opened_s = 0.0
        self._num_updates = 0  # merged since the round began, where updates make rounds
        self._state: dict[str, Any] = {}  # of the rule
        self.open()

    def open(self, taking: Collection[int] | None = None, now_s: float | None = None) -> None:
        """Open the next window, for the same clients or those that are `taking` part now.

        Args:
            now_s: when they are sent the version; None before.
        """
        self.taking = self.taking if taking is None else set(taking)
        self.opened_s = self.opened_s if now_s is None else now_s
        self.is_closing = False
        self.awaited = set(self._pacing())

    def _pacing(self) -> frozenset[int]:
        return self.rule.pacing(self.shares, self.taking) if self.taking else frozenset()

    def close_s(
        self, now_s: float, arrived: AbstractSet[int], num_updates: int | None = None
    ) -> float | None:
        """Return when the window closes; None while it has to wait, and after it has been
        returned once.

        Args:
            arrived: clients whose updates wait for the next merge.
            num_updates: how many wait; None for one of each of these clients.
        """
        if self.is_closing:
            return None
        num_updates = len(arrived) if num_updates is None else num_updates
        window = Window(
            now_s,
            arrived,
            self.taking,
            self.awaited,
            self.round,
            self._state,
            num_updates,
            self.opened_s,
        )
        at_s = self._asked_s(window)
        if at_s is None and arrived and self.taking <= arrived and not self.sends_at_once:
            at_s = now_s
        self.is_closing = bool(arrived) and at_s is not None
        return max(now_s, at_s) if self.is_closing and at_s is not None else None

    def _asked_s(self, window: Window) -> float | None:
        """Return what the rule says.

        Raises:
            RunError: it is no time, or the rule keeps what cannot be saved.
        """
        at_s: Any = self.rule.close_s(window)
        who = f"admission rule {type(self.rule).__name__}"
        check_state(f"{who}: window.state", window.state)
        is_number = isinstance(at_s, Real) and not isinstance(at_s, bool)
        if at_s is None or (is_number and not math.isnan(at_s)):
            return None if at_s in (None, math.inf) else float(at_s)  # never is to wait
        need = "return a time in seconds, or None to wait"
        raise RunError(must(f"{who}: `close_s`", need, at_s), stage="receive")

    def lose(self, clients: Collection[int], arrived: AbstractSet[int]) -> None:
        """Note that clients have gone; others are left.

        Args:
            arrived: clients whose updates wait for the next merge, without those that have gone.
        """
        self.active.difference_update(clients)
        self.taking.difference_update(clients)
        self.awaited.difference_update(clients)
        if not self.awaited and not arrived:
            self.awaited = set(self._pacing())

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back."""
        sets = {"active": self.active, "taking": self.taking, "awaited": self.awaited}
        return {
            **{name: sorted(clients) for name, clients in sets.items()},
            "is_closing": self.is_closing,
            "round": self.round,
            "num_updates": self._num_updates,
            "opened_s": self.opened_s,
            "rule": self._state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.active, self.taking = set(state["active"]), set(state["taking"])
        self.awaited, self.is_closing = set(state["awaited"]), state["is_closing"]
        self.round, self._num_updates = state["round"], state["num_updates"]
        self._state = copy.deepcopy(state.get("rule", {}))  # which older checkpoints lack
        self.opened_s = state.get("opened_s", 0.0)  # likewise

    def merge(self, num_updates: int) -> None:
        """Close the window: count its updates into rounds and open the next one."""
        passed = 1
        if self.rule.counts == "updates":
            in_round = min(self.sampled, len(self.active))
            passed, self._num_updates = divmod(self._num_updates + num_updates, in_round)
        self.round += passed
        self.open()
