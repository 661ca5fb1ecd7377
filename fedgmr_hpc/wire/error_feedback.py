"""Error feedback: what int8 took from an upload is added to the client's next one.

With values v_t [K] to be uploaded, remainder r_t and Q the rounding of comm/int8.py, a client sends
q_t = Q(v_t + r_t) and keeps r_{t+1} = v_t + r_t - q_t (Seide et al. 2014; Karimireddy et al. 2019),
so the sums of what was sent and of what was meant stay within one rounding of each other. The
remainder belongs to entries, not to places in a frame: when the mask changes, an entry on both
masks keeps its own, an entry that is new begins with none, and that of an entry cut off is dropped.

A client's remainders follow from its own uploads alone, so runs stay independent of the ranks as
long as the same rank serves all of them.

Shapes: P prunable entries, K kept entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.records import Floats, Ints, fields_of
from fedgmr_hpc.wire.int8 import round_values

Positions = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Remainder:
    """What a client's last upload did not say: 8 bytes per kept entry."""

    mask_id: int
    positions: Ints | None  # [K] natural, None for all P entries
    lost: Floats  # [K]


def move(
    last: Remainder, mask_id: int, positions: Positions | None, num_prunable: int
) -> Remainder:
    """Return the remainder on another mask of P entries: 0 at those that were not on the last
    one.
    """
    natural = np.zeros(num_prunable, np.float32)
    natural[slice(None) if last.positions is None else last.positions] = last.lost
    if positions is None:
        return Remainder(mask_id, None, natural)
    return Remainder(mask_id, positions.astype(np.int32), natural[positions])


_NOTHING = Remainder(-1, np.empty(0, np.int32), np.empty(0, np.float32))


class ErrorFeedback:
    """The remainders of the clients that one rank serves."""

    def __init__(self, num_prunable: int) -> None:
        self.num_prunable = num_prunable
        self._remainders: dict[int, Remainder] = {}  # by client

    def state(self) -> list[dict[str, Any]]:
        """Return what `restore` takes back: one entry a client, with the arrays themselves."""
        return [{"client": c, **fields_of(each)} for c, each in self._remainders.items()]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Take saved remainders in place of its own."""
        self._remainders = {
            each["client"]: Remainder(each["mask_id"], each["positions"], each["lost"])
            for each in state
        }

    def round(
        self,
        client: int,
        values: Floats,
        mask_id: int,
        positions: Positions | None,
    ) -> Floats:
        """Return what a client sends in place of `values`; its remainder changes accordingly.

        Args:
            values: [K] to be uploaded.
            mask_id: of the mask; equal ids and K mean equal positions.
            positions: [K] natural positions of `values`, None for all P entries in natural order.

        Returns:
            Float32 [K] that int8 carries without a further error; NaN in blocks that are not
            finite, of which nothing is kept.
        """
        last = self._remainders.get(client, _NOTHING)
        if (last.mask_id, len(last.lost)) != (mask_id, len(values)):
            last = move(last, mask_id, positions, self.num_prunable)
        meant = values + last.lost
        sent = round_values(meant)
        lost = np.subtract(meant, sent, out=meant)
        lost[~np.isfinite(lost)] = 0.0
        self._remainders[client] = replace(last, lost=lost)
        return sent
