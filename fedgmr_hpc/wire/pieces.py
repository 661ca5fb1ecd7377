"""Pieces of throttled transfers: how a long payload is cut, sent and put together again.

A transfer carries one client's payload (the frames of a dispatch, or the frame of an update). It is
cut wherever its link lets go of bytes, so every piece says where it belongs. All control messages
of a transfer are one `Mark`:

    OFFER   client rank to server   a trained update of `end` bytes waits for its link; `begin` is 1
                                    if its training overran; a short one follows in the message
    GRANT   server to client rank   the update may be sent up to `end`
    PIECE   either way              the bytes of the payload from `begin` to `end` follow
    GOT     client rank to server   a dispatch is complete
    RETRY   either way              what came was damaged or incomplete: once more, please

Grants, pieces and requests to send again belong to an attempt at their transfer. What comes of an
attempt that was given up is ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedgmr_hpc.config.errors import WireError
from fedgmr_hpc.transport.contract import as_bytes

_MARK = struct.Struct("<qqqqq")
SIZE = _MARK.size


class Mark(NamedTuple):
    """Which client's transfer, the number of the assignment it belongs to, a span of bytes, and how
    often the transfer was sent before.
    """

    client: int
    number: int
    begin: int
    end: int
    attempt: int = 0

    def pack(self) -> bytes:
        """Return the mark on the wire."""
        return _MARK.pack(*self)


def read_mark(payload: memoryview) -> Mark:
    """Return the mark at the head of a message.

    Raises:
        WireError: the message is too short.
    """
    if len(payload) < SIZE:
        raise WireError(f"{len(payload)} bytes are shorter than a mark of {SIZE}", stage="receive")
    return Mark(*_MARK.unpack_from(payload))


class Outgoing:
    """A payload on its way out: runs of bytes, of which each is read once, in order."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = [as_bytes(part) for part in parts]
        self.size = sum(len(part) for part in self._parts)
        self.sent = 0

    def take(self, upto: int) -> list[memoryview]:
        """Return the bytes from where the last call ended up to `upto`."""
        taken, begin = [], 0
        for part in self._parts:
            first, last = max(self.sent - begin, 0), min(upto - begin, len(part))
            if first < last:
                taken.append(part[first:last])
            begin += len(part)
        self.sent = max(self.sent, upto)
        return taken

    def rewind(self) -> None:
        """Begin anew, for a transfer that did not get through."""
        self.sent = 0


class Incoming:
    """A payload being put together. Pieces come in order; one that came before is ignored."""

    def __init__(self, size: int) -> None:
        self.size, self.filled = size, 0
        self.buffer = np.empty(size, np.uint8)

    @property
    def is_complete(self) -> bool:
        """Whether every byte is there."""
        return self.filled == self.size

    def put(self, mark: Mark, piece: memoryview) -> None:
        """Take the bytes of one piece.

        Raises:
            WireError: bytes between the last piece and this one are missing, or the piece does not
                have the length its mark says, or is no part of the payload.
        """
        is_part = 0 <= mark.begin and mark.end <= self.size
        if len(piece) != mark.end - mark.begin or not is_part:
            raise WireError(f"a piece of {len(piece)} bytes is marked {mark}", stage="receive")
        if mark.begin > self.filled:
            raise WireError(
                f"bytes {self.filled} to {mark.begin} of the transfer are missing", stage="receive"
            )
        if mark.end > self.filled:
            self.buffer[mark.begin : mark.end] = np.frombuffer(piece, np.uint8)
            self.filled = mark.end
