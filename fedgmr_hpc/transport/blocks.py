"""Memory of large messages, used again once nothing refers to it.

A server holds an update until its client's next one, then lets go of it. Fresh memory for every
update would have the kernel clear as many pages as the update has, which costs a pass over its
bytes; a block that has served is there already.
"""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

SMALLEST_BYTES = 1 << 20  # below it the C library keeps what is freed
SLACK = 1.25  # the most that a block may exceed its message by
PATIENCE = 64  # large messages after which a block that served none of them is given back

_Block = NDArray[np.uint8]


class Blocks:
    """Makes memory for messages."""

    def __init__(self) -> None:
        self._idle: list[tuple[int, _Block]] = []  # since which message, longest first
        self._num_taken = 0

    def take(self, num_bytes: int) -> memoryview:
        """Return memory for a message; it is used again when no view of it is left."""
        if num_bytes < SMALLEST_BYTES:
            return np.empty(num_bytes, np.uint8).data
        self._num_taken += 1
        block = self._find(num_bytes)
        view = np.frombuffer(block.data, np.uint8, num_bytes)
        weakref.finalize(view, self._let_go, block).atexit = False
        return view.data

    def _find(self, num_bytes: int) -> _Block:
        """Return the smallest idle block that fits, else a new one; give old ones back."""
        self._idle = [(at, b) for at, b in self._idle if self._num_taken - at <= PATIENCE]
        fitting = [
            index
            for index, (_, block) in enumerate(self._idle)
            if num_bytes <= len(block) <= SLACK * num_bytes
        ]
        if not fitting:
            return np.empty(num_bytes, np.uint8)
        return self._idle.pop(min(fitting, key=lambda index: len(self._idle[index][1])))[1]

    def _let_go(self, block: _Block) -> None:
        self._idle.append((self._num_taken, block))
