"""Long payloads of one pair of ranks: from host memory through a device into a process group.

A payload goes in pieces through two staging buffers in turn, so that one piece is copied while the
one before it is on its way. Each buffer lies in host memory (pinned beside a CUDA device) and has a
twin on the device, which is what the group moves. On the CPU both are ordinary memory: the same
code over gloo is what machines without a CUDA device test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import cycle
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fedgmr_hpc.config.errors import Stage, TransportError
from fedgmr_hpc.transport.contract import Backoff

_TAG = 0  # pieces come in order
_SHORTEST = timedelta(milliseconds=1)  # torch takes 0 for no limit


class PayloadChannel(Protocol):
    """Moves payloads between this rank and one other; both call in the same order."""

    def send(self, view: memoryview, limit_s: float) -> None:
        """Return when the bytes may change.

        Raises:
            TransportError: a piece did not move within `limit_s`, or the other rank is gone.
        """

    def recv(self, num_bytes: int, limit_s: float) -> memoryview:
        """Return the next payload, in memory of its own.

        Raises:
            TransportError: as for `send`.
        """


class Staging:
    """A host buffer, pinned beside a CUDA device, its twin on the device, and what moves it.

    Args:
        device: where the twin lies.
        piece_bytes: length of both.
    """

    def __init__(self, device: torch.device, piece_bytes: int) -> None:
        is_cuda = device.type == "cuda"
        self._host = torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=is_cuda)
        self._twin = torch.empty(piece_bytes, dtype=torch.uint8, device=device)
        self._work: dist.Work | None = None  # of the piece that is on its way
        self._into: Tensor | None = None  # host bytes that wait for it

    def send(self, piece: Tensor, group: dist.ProcessGroup, other: int) -> None:
        """Begin to send host bytes [n], which may change at once."""
        host, twin = self._host[: len(piece)], self._twin[: len(piece)]
        host.copy_(piece)
        twin.copy_(host, non_blocking=True)
        self._work = group.send([twin], other, _TAG)

    def recv(self, into: Tensor, group: dist.ProcessGroup, other: int) -> None:
        """Begin to receive host bytes [n], which are there when `finish` returns."""
        self._into = into
        self._work = group.recv([self._twin[: len(into)]], other, _TAG)

    def finish(self, limit_s: float) -> None:
        """Return when the buffers are free.

        Raises:
            RuntimeError: the piece that is on its way does not arrive within `limit_s`.
        """
        work, self._work = self._work, None
        if work is None:
            return
        deadline_s = time.monotonic() + limit_s
        if self._twin.is_cuda:  # whose own wait looks no more often than once a millisecond
            _await(work, deadline_s)
        work.wait(max(timedelta(seconds=deadline_s - time.monotonic()), _SHORTEST))
        if self._into is not None:
            self._unload(self._into)
            self._into = None

    def _unload(self, into: Tensor) -> None:
        host = self._host[: len(into)]
        host.copy_(self._twin[: len(into)], non_blocking=True)
        if self._twin.is_cuda:
            torch.cuda.current_stream(self._twin.device).synchronize()
        into.copy_(host)


def _await(work: dist.Work, deadline_s: float) -> None:
    """Return when a work is over or the deadline is."""
    backoff = Backoff()
    while not work.is_completed() and time.monotonic() < deadline_s:
        backoff.wait()


_Begin = Callable[[Staging, Tensor, dist.ProcessGroup, int], None]  # a piece's way out or in


class StagedChannel:
    """Payloads over one pair's process group, piece by piece through two `Staging`.

    On a CUDA device the copies run on a stream of their own, so they wait for no training step.

    Args:
        group: of two ranks, in their order; NCCL with a CUDA device, gloo with the CPU.
        rank: this rank, as errors call it.
        peer: the other one.
        device: where the twins lie.
        piece_bytes: length of a buffer, the same on the other side.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        rank: int,
        peer: int,
        device: torch.device,
        piece_bytes: int,
    ) -> None:
        self._group, self._rank, self._peer = group, rank, peer
        self._other = int(peer > rank)  # as the group calls it
        self._piece_bytes = piece_bytes
        self._buffers = [Staging(device, piece_bytes) for _ in range(2)]
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]

    def send(self, view: memoryview, limit_s: float) -> None:
        self._move(torch.from_numpy(np.frombuffer(view, np.uint8)), Staging.send, limit_s)

    def recv(self, num_bytes: int, limit_s: float) -> memoryview:
        payload = np.empty(num_bytes, np.uint8)
        self._move(torch.from_numpy(payload), Staging.recv, limit_s)
        return payload.data

    def _move(self, payload: Tensor, begin: _Begin, limit_s: float) -> None:
        """Begin a piece as soon as the last but one is through; return when all are."""
        stage: Stage = "send" if begin is Staging.send else "receive"
        buffers = cycle(self._buffers)
        try:
            with torch.cuda.stream(self._stream):
                for piece, buffer in zip(self._pieces(payload), buffers, strict=False):
                    buffer.finish(limit_s)
                    begin(buffer, piece, self._group, self._other)
                for _ in self._buffers:  # the last but one first
                    next(buffers).finish(limit_s)
        except RuntimeError as error:  # with a stack of C++ below its first line
            reason = f"no payload of rank {self._peer} moves: {str(error).splitlines()[0]}"
            raise TransportError(reason, rank=self._rank, stage=stage) from None

    def _pieces(self, payload: Tensor) -> Iterator[Tensor]:
        step = self._piece_bytes
        return (payload[at : at + step] for at in range(0, len(payload), step))
