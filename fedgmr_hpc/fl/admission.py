"""Admission: when the server stops waiting and merges (docs/method.md#admission).

`window` is paced by those with the greatest bandwidth share of the clients that take part, which
have been sent something: it closes `slack_s` after the last of them has arrived. `barrier` is paced
by all that take part and closes at once. `count`
(FedBuff) closes at once when that many updates have arrived since the last merge, `each` (FedAsync)
at every arrival, even while the last merge is under way: `links.merge_s` delays a version, but does
not make the next one wait. Whatever is there at the close is merged, so arrivals at one time share
a merge.

A round is a merge for `window` and `barrier`, and for `count` and `each` as many merged updates as
clients take part at a time. No window waits for a client that is gone: a window that waited only
for such clients closes with what has arrived, or, if nothing has, is paced by those who are left.
Rounds done stay done when clients go.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from fedgmr_hpc.config.axes import AdmissionConfig


def pacing_clients(
    kind: str, shares: Sequence[float], active: Collection[int] | None = None
) -> frozenset[int]:
    """Return clients whose arrivals close a window; never empty.

    Args:
        shares: [C] bandwidth shares, by client id.
        active: the clients that are left, at least one; None for all.
    """
    left = range(len(shares)) if active is None else active
    fastest = max(shares[client] for client in left)
    return frozenset(client for client in left if kind != "window" or shares[client] == fastest)


def closing_slack_s(kind: str, slack_s: float) -> float:
    """Return time between the last pacing arrival and the close."""
    return slack_s if kind == "window" else 0.0


class Admission:
    """The open window, the clients it can wait for, and the rounds done.

    Attributes:
        active: clients that are left.
        taking: those that take part, see the module.
        awaited: the pacing clients of the open window that have not gone since it opened.
        round: rounds done.
    """

    def __init__(
        self, config: AdmissionConfig, shares: Sequence[float], sampled: int | None = None
    ) -> None:
        """
        Args:
            shares: [C] bandwidth shares.
            sampled: how many clients take part at a time at most; None for all.
        """
        self.config, self.shares = config, tuple(shares)
        self.quota = {"count": config.count, "each": 1}.get(config.kind)
        self.active = set(range(len(shares)))
        self.taking = set(self.active)
        self.sampled = len(shares) if sampled is None else sampled
        self.round = 0
        self._num_updates = 0  # merged since the round began, where updates make rounds
        self.open()

    def open(self, taking: Collection[int] | None = None) -> None:
        """Open the next window, for the same clients or those that are `taking` part now."""
        self.taking = self.taking if taking is None else set(taking)
        self.is_closing = False
        self.awaited = set(self._pacing())

    def _pacing(self) -> frozenset[int]:
        if not self.taking:
            return frozenset()
        return pacing_clients(self.config.kind, self.shares, self.taking)

    def close_s(self, now_s: float, arrived: AbstractSet[int]) -> float | None:
        """Return when the window closes; None while it has to wait, and after it has been
        returned once.

        Args:
            arrived: clients whose updates wait for the next merge.
        """
        if self.is_closing or not self._is_complete(arrived):
            return None
        self.is_closing = True
        return now_s + closing_slack_s(self.config.kind, self.config.slack_s)

    def _is_complete(self, arrived: AbstractSet[int]) -> bool:
        if self.quota is not None:
            return 0 < len(arrived) >= min(self.quota, len(self.taking))
        return bool(arrived) and self.awaited <= arrived

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
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.active, self.taking = set(state["active"]), set(state["taking"])
        self.awaited, self.is_closing = set(state["awaited"]), state["is_closing"]
        self.round, self._num_updates = state["round"], state["num_updates"]

    def merge(self, num_updates: int) -> None:
        """Close the window: count its updates into rounds and open the next one."""
        passed = 1
        if self.quota is not None:
            in_round = min(self.sampled, len(self.active))
            passed, self._num_updates = divmod(self._num_updates + num_updates, in_round)
        self.round += passed
        self.open()
