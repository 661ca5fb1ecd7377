"""What a client keeps from one dispatch to the next: vectors over its entries, and numbers.

The error feedback of int8 (wire/error_feedback.py) and objectives with a memory
(training/objectives) share one memory a client. What is kept belongs to entries of the model, not
to places in a frame: when the mask changes, an entry on both masks keeps its own, an entry that is
new begins with 0, and that of an entry cut off is dropped. So a memory weighs what the sub-model
weighs: 4 bytes a kept entry for each vector, and 4 for the positions.

A memory follows from its client's own dispatches alone, so runs stay independent of the ranks as
long as the same rank serves all of them.

Shapes: P prunable entries, K kept entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.records import Floats, Ints, fields_of

Positions = NDArray[np.integer[Any]]


@dataclass(eq=False, slots=True)
class Memory:
    """What one client keeps. Arrays are replaced and never written to, as a checkpoint may share
    them.

    Attributes:
        mask_id: of the mask that it is on.
        positions: [K] natural, None for all P entries.
        values: by name, [K] in the order of the positions.
        dense: by name, [D].
        numbers: by name.
    """

    client: int
    mask_id: int
    positions: Ints | None
    values: dict[str, Floats] = field(default_factory=dict)
    dense: dict[str, Floats] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


class Memories:
    """The memories of the clients that one rank serves."""

    def __init__(self, num_prunable: int) -> None:
        self.num_prunable = num_prunable
        self._memories: dict[int, Memory] = {}  # by client

    def open(self, client: int, mask_id: int, positions: Positions | None) -> Memory:
        """Return a client's memory on the mask of its dispatch, to be read and changed.

        Args:
            client: whose; its first memory is empty.
            mask_id: of the mask; equal ids and K mean equal positions.
            positions: [K] natural positions of its entries, None for all P in natural order.
        """
        last = self._memories.get(client)
        if last is None or self._place(last.mask_id, last.positions) != (
            self._place(mask_id, positions)
        ):
            own = None if positions is None else positions.astype(np.int32)
            moved = Memory(client, mask_id, own)
            if last is not None:
                moved.values = {name: self._move(last, name, own) for name in last.values}
                moved.dense, moved.numbers = last.dense, last.numbers
            self._memories[client] = moved
        return self._memories[client]

    def _place(self, mask_id: int, positions: Positions | None) -> tuple[int, int]:
        return mask_id, self.num_prunable if positions is None else len(positions)

    def _move(self, last: Memory, name: str, positions: Ints | None) -> Floats:
        """Return a vector [K] on other positions: 0 at those that were not among the last."""
        natural = np.zeros(self.num_prunable, np.float32)
        natural[slice(None) if last.positions is None else last.positions] = last.values[name]
        return natural if positions is None else natural[positions]

    def state(self) -> list[dict[str, Any]]:
        """Return what `restore` takes back: one entry a client, with the arrays themselves."""
        return [fields_of(memory) for memory in self._memories.values()]

    def restore(self, state: Iterable[dict[str, Any]]) -> None:
        """Take saved memories in place of its own."""
        self._memories = {each["client"]: Memory(**each) for each in state}
