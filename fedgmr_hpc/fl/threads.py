"""The threads that share the server's work on large arrays.

numpy, torch and xxhash let other threads run while they are at a large array, so pieces of a model
can be worked on side by side. What is done to a piece never depends on the thread or on the other
pieces, so results have the same bits with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Piece = TypeVar("_Piece")
_Found = TypeVar("_Found")
_RUNS_PER_THREAD = 4  # so that a thread that is held up does not hold up the others


class Threads:
    """As many threads as are asked for; one does everything where it is called.

    Args:
        num: of threads, 1 or more.
    """

    def __init__(self, num: int = 1) -> None:
        self.num = num
        self._pool: ThreadPoolExecutor | None = None
        if num > 1:  # each of torch's calls stays in its thread
            self._pool = ThreadPoolExecutor(num, "server", torch.set_num_threads, (1,))

    def map(self, call: Callable[[_Piece], _Found], pieces: Sequence[_Piece]) -> list[_Found]:
        """Return what `call` makes of each piece, in order. Pieces are called in any order.

        Raises:
            Exception: what the first piece raises that raises anything.
        """
        if self._pool is None or len(pieces) < 2:
            return [call(piece) for piece in pieces]
        step = -(-len(pieces) // (_RUNS_PER_THREAD * self.num))
        runs = [pieces[at : at + step] for at in range(0, len(pieces), step)]
        done = self._pool.map(lambda run: [call(piece) for piece in run], runs)
        return [found for run in done for found in run]

    def start(self, call: Callable[[_Piece], _Found], piece: _Piece) -> Callable[[], _Found]:
        """Begin a call; return what waits for its end and returns, or raises, what it does."""
        if self._pool is None:
            return lambda: call(piece)
        return self._pool.submit(call, piece).result
