"""Admission: when the server stops waiting and merges (paper section 3; spec section 2.3).

`window` is paced by the active clients with the greatest bandwidth share: it closes `slack_s` after
the last of them has arrived. `barrier` is paced by every active client and closes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def pacing_clients(kind: Literal["window", "barrier"], shares: Sequence[float]) -> frozenset[int]:
    """Clients whose arrivals close a window; never empty.

    Args:
        shares: bandwidth share of every active client, by client id.
    """
    fastest = max(shares)
    return frozenset(
        client for client, share in enumerate(shares) if kind == "barrier" or share == fastest
    )


def closing_slack_s(kind: Literal["window", "barrier"], slack_s: float) -> float:
    """Time between the last pacing arrival and the close."""
    return slack_s if kind == "window" else 0.0
