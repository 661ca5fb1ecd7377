"""Faults on purpose: what a plan does to the transfers of a wall-clock run.

Every attempt at a transfer draws once from each fault that concerns it, keyed by (seed, client,
transfer, attempt), so the same plan hits the same transfers. All of it happens at the server's end
of the line, whose both directions pass there:

    delay      nothing passes until `delay_s` after the transfer began
    cut        nothing passes while now is in [at_s, at_s + for_s)
    drop       the first piece is lost
    corrupt    a bit of the last piece is flipped
    duplicate  every piece comes twice
"""

from __future__ import annotations

from collections.abc import Sequence

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.sections import FaultConfig
from fedgmr_hpc.network.link_traces import Direction

_TRANSFER_BITS = 48  # more than a run has transfers, so that no two attempts share a draw


class FaultPlan:
    """Which faults hit a transfer."""

    def __init__(self, faults: Sequence[FaultConfig], seed: int) -> None:
        self.faults, self.seed = tuple(faults), seed

    def hits(
        self, client: int, direction: Direction, number: int, attempt: int, now_s: float
    ) -> frozenset[int]:
        """Return indices of the faults that hit an attempt which begins now."""
        if not self.faults:
            return frozenset()
        step = (attempt << _TRANSFER_BITS) + 2 * number + (direction == "up")
        draws = make_rng(self.seed, "fault", client, step).random(len(self.faults))
        return frozenset(
            index
            for index, (fault, draw) in enumerate(zip(self.faults, draws, strict=True))
            if fault.client in (None, client)
            and fault.direction in ("both", direction)
            and draw < fault.probability
            and (fault.kind == "cut" or fault.at_s <= now_s < fault.at_s + fault.for_s)
        )

    def has(self, hits: frozenset[int], kind: str) -> bool:
        """Return whether a fault of this kind is among those that hit."""
        return bool(hits) and any(self.faults[index].kind == kind for index in hits)

    def is_held(self, hits: frozenset[int], began_s: float, now_s: float) -> bool:
        """Return whether nothing passes now."""
        for fault in (self.faults[index] for index in hits):
            if fault.kind == "delay" and now_s < began_s + fault.delay_s:
                return True
            if fault.kind == "cut" and fault.at_s <= now_s < fault.at_s + fault.for_s:
                return True
        return False


def flip_bit(piece: bytes | bytearray | memoryview) -> bytearray:
    """Return the bytes with one bit of the last one turned over."""
    damaged = bytearray(piece)
    damaged[-1] ^= 1
    return damaged
