"""Transport between CUDA devices: gloo for control and short messages, NCCL for long payloads.

NCCL has no any-source receive and no tags, and a rank that sends to one that does not receive
blocks for ever. So every message still has its header on gloo, and a payload longer than
`inline_bytes` moves only when both sides have committed to it. Rank 0 has one NCCL group with each
client rank, whose communicator is made (warmed up) before the transport is handed out; client ranks
send one another everything over gloo, since they have no bulk to exchange.

Both sides of a pair run its payloads in one order: the order in which rank 0 posts its control
messages about them. Those are its headers and its commits, and gloo keeps their order.

    to a client:  rank 0 posts the header and queues the send; the client queues the receive and
                  answers with a commit, for which rank 0's queue waits before it sends
    to rank 0:    the client posts the header; rank 0 posts a commit and queues the receive;
                  the client queues the send when the commit comes

Commits are answered by the receiver thread, which never waits for a payload, and each pair has a
queue and a thread of its own. So both heads of a pair's two queues are always the same payload,
whatever is pending in either direction, and a slow client holds up no other.

What is shorter goes on gloo and could overtake; messages of a rank that come while one of its
payloads is on its way wait behind it in the pair's queue.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fedgmr_hpc.config.choices.registry import register_transport
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.transport.contract import JOIN_BYTES, Message, Tag, Transport, frozen
from fedgmr_hpc.transport.gloo import GlooTransport
from fedgmr_hpc.transport.ranks import Launch, choose_device

_COMMIT = -1  # in the header's place for a tag
_SERVER = 0
_PAYLOAD_TIMEOUT = timedelta(minutes=10)  # of one piece, both sides being there
_WARM_UP_BYTES = 64


class PayloadChannel(Protocol):
    """Moves payloads between this rank and one other; both call in the same order."""

    def send(self, view: memoryview) -> None:
        """Return when the bytes may change."""

    def recv(self, num_bytes: int) -> memoryview:
        """Return the next payload, in memory of its own."""


class Staging:
    """A host buffer, pinned beside a CUDA device, and its twin on the device.

    Copies run on a stream of their own, so they wait for no training step.

    Args:
        device: where the twin lies.
        piece_bytes: length of both buffers.
    """

    def __init__(self, device: torch.device, piece_bytes: int) -> None:
        is_cuda = device.type == "cuda"
        self.piece_bytes = piece_bytes
        self.stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._host = torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=is_cuda)
        self._twin = torch.empty(piece_bytes, dtype=torch.uint8, device=device)

    def twin(self, num_bytes: int) -> Tensor:
        """Return the first bytes of the device's buffer."""
        return self._twin[:num_bytes]

    def load(self, piece: Tensor) -> Tensor:
        """Copy host bytes [n] to the device; the twin is ready in the stream's order."""
        host = self._host[: len(piece)]
        host.copy_(piece)
        return self.twin(len(piece)).copy_(host, non_blocking=True)

    def unload(self, into: Tensor) -> None:
        """Copy the twin's first bytes into host bytes [n]; they are there on return."""
        host = self._host[: len(into)]
        host.copy_(self.twin(len(into)), non_blocking=True)
        self.wait()
        into.copy_(host)

    def wait(self) -> None:
        """Return when everything in the stream is done."""
        if self.stream is not None:
            self.stream.synchronize()


class StagedChannel:
    """Payloads over one pair's process group, piece by piece through a `Staging`.

    Args:
        group: of this rank and `peer`; NCCL with a staging on a CUDA device, gloo on the CPU.
        peer: the other rank.
        staging: this side's buffers; `piece_bytes` must be that of the other side.
    """

    def __init__(self, group: dist.ProcessGroup, peer: int, staging: Staging) -> None:
        self._group, self._peer, self._staging = group, peer, staging

    def send(self, view: memoryview) -> None:
        with torch.cuda.stream(self._staging.stream):
            for piece in self._pieces(torch.from_numpy(np.frombuffer(view, np.uint8))):
                dist.send(self._staging.load(piece), self._peer, group=self._group)
                self._staging.wait()

    def recv(self, num_bytes: int) -> memoryview:
        payload = np.empty(num_bytes, np.uint8)
        with torch.cuda.stream(self._staging.stream):
            for piece in self._pieces(torch.from_numpy(payload)):
                dist.recv(self._staging.twin(len(piece)), self._peer, group=self._group)
                self._staging.unload(piece)
        return payload.data

    def _pieces(self, payload: Tensor) -> Iterator[Tensor]:
        step = self._staging.piece_bytes
        return (payload[at : at + step] for at in range(0, len(payload), step))


class _Pair:
    """What this rank shares with one other, and the queue of the thread that alone uses it."""

    def __init__(self, channel: PayloadChannel) -> None:
        self.channel = channel
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.outgoing: queue.SimpleQueue[memoryview] = queue.SimpleQueue()  # announced, in order
        self.commits = threading.Semaphore(0)  # to the outgoing ones
        self.num_queued = 0  # deliveries; counted by the receiver thread
        self.num_delivered = 0  # of them; counted by the pair's thread

    def run(self) -> None:
        """Do the jobs one after the other until None comes."""
        while (job := self.jobs.get()) is not None:
            job()


class DeviceTransport(GlooTransport):
    """All ranks that torchrun started, with a payload channel per pair. Collective, like `close`.

    This class stages in host memory and moves payloads over gloo groups, so that the protocol runs
    on machines without a CUDA device; `NcclTransport` is the one for devices.

    Args:
        inline_bytes: longest message that goes over the control channel, the same on all ranks.
        piece_bytes: length of the staging buffers of a pair, the same on all ranks.
        start_timeout_s: deadline for all ranks to find one another.
        close_timeout_s: deadline for `close`.
    """

    name = "device"
    backend = "gloo"

    def __init__(
        self,
        *,
        inline_bytes: int = JOIN_BYTES,
        piece_bytes: int = 8 << 20,
        start_timeout_s: float = 300.0,
        close_timeout_s: float = 60.0,
    ) -> None:
        super().__init__(start_timeout_s=start_timeout_s, close_timeout_s=close_timeout_s)
        self._inline_bytes, self._piece_bytes = inline_bytes, piece_bytes
        self._pairs = {peer: _Pair(channel) for peer, channel in self._open_channels().items()}
        for peer, pair in self._pairs.items():
            self._start(pair.run, f"payloads of rank {peer}")
        dist.barrier()  # no rank sends before every rank can receive

    def _open_channels(self) -> dict[int, PayloadChannel]:
        """Return this rank's warm channels by peer; every rank takes part in making every group."""
        groups = {
            peer: dist.new_group([_SERVER, peer], timeout=_PAYLOAD_TIMEOUT, backend=self.backend)
            for peer in range(1, self.size)
        }
        peers = range(1, self.size) if self.rank == _SERVER else [_SERVER]
        channels: dict[int, PayloadChannel] = {}
        for peer in peers:
            staging = Staging(self._staging_device(peer), self._piece_bytes)
            channels[peer] = StagedChannel(groups[peer or self.rank], peer, staging)
            self._warm_up(channels[peer])
        return channels

    def _staging_device(self, peer: int) -> torch.device:
        """Return the device of this rank that payloads of `peer` go through."""
        return torch.device("cpu")

    def _warm_up(self, channel: PayloadChannel) -> None:
        """Make the pair's connection, which takes seconds, by one payload in each direction."""
        if self.rank == _SERVER:
            channel.send(memoryview(bytes(_WARM_UP_BYTES)))
            channel.recv(_WARM_UP_BYTES)
        else:
            channel.send(channel.recv(_WARM_UP_BYTES))

    def _send(self, dest: int, tag: Tag, views: list[memoryview]) -> None:
        pair = self._pairs.get(dest)
        num_bytes = sum(len(view) for view in views)
        if pair is None or num_bytes <= self._inline_bytes:
            super()._send(dest, tag, views)
            return
        self.poll()
        view = views[0] if len(views) == 1 else frozen(views)
        with self._posting:
            self._count_pending(dest, 1)
            pair.outgoing.put(view)
            self._post(dest, tag, memoryview(b""), num_bytes)
            if self.rank == _SERVER:
                pair.jobs.put(partial(self._send_next, pair, dest))

    def _send_next(self, pair: _Pair, dest: int) -> None:
        pair.commits.acquire()
        pair.channel.send(pair.outgoing.get())
        self._count_pending(dest, -1)

    def _take(self, source: int, tag: int, num_bytes: int) -> None:
        pair = self._pairs.get(source)
        if pair is None:
            super()._take(source, tag, num_bytes)
        elif tag == _COMMIT:
            pair.commits.release()
            if self.rank != _SERVER:
                pair.jobs.put(partial(self._send_next, pair, source))
        elif num_bytes > self._inline_bytes:
            with self._posting:
                self._post(source, _COMMIT, memoryview(b""))
                self._queue(pair, source, tag, partial(pair.channel.recv, num_bytes))
        elif pair.num_queued != pair.num_delivered:  # it must not overtake them
            payload = self._receive(source, num_bytes)
            self._queue(pair, source, tag, lambda: payload)
        else:
            super()._take(source, tag, num_bytes)

    def _queue(self, pair: _Pair, source: int, tag: int, take: Callable[[], memoryview]) -> None:
        """Deliver, when the pair's thread comes to it, a message whose payload `take` gives."""
        pair.num_queued += 1

        def deliver() -> None:
            self._inbox.put(Message(source, Tag(tag), take()))
            pair.num_delivered += 1

        pair.jobs.put(deliver)

    def _end_threads(self) -> None:
        super()._end_threads()
        for pair in self._pairs.values():
            pair.jobs.put(None)


class NcclTransport(DeviceTransport):
    """`DeviceTransport` whose payloads move between CUDA devices over NCCL. Collective.

    NCCL refuses two ranks of a group on one device, so rank 0 stages the payloads of each client on
    a device other than the client's; several clients may share either.

    Args:
        device: this rank's device, e.g. "cuda:1"; on rank 0 any.
        more: as for `DeviceTransport`.

    Raises:
        ValueError: this rank sees no CUDA device, or rank 0 none but a client's own.
    """

    name = "nccl"
    backend = "nccl"

    def __init__(self, device: str = "cuda:0", **more: float) -> None:
        if not torch.cuda.device_count():
            raise _refusal(f"rank {os.environ.get('RANK', 0)} sees no CUDA device")
        own = torch.device(device)
        self._own = own.index or 0 if own.type == "cuda" else 0
        super().__init__(**more)  # type: ignore[arg-type]

    def _open_channels(self) -> dict[int, PayloadChannel]:
        visible = [
            str(torch.cuda.get_device_properties(index).uuid)
            for index in range(torch.cuda.device_count())
        ]
        gathered: list[tuple[list[str], str]] = [([], "")] * self.size
        dist.all_gather_object(gathered, (visible, visible[self._own]))
        self._server_devices = pair_devices(gathered[_SERVER][0], [own for _, own in gathered])
        return super()._open_channels()

    def _staging_device(self, peer: int) -> torch.device:
        index = self._server_devices[peer] if self.rank == _SERVER else self._own
        return torch.device("cuda", index)


def pair_devices(visible: Sequence[str], own: Sequence[str]) -> list[int]:
    """Return the index of the device on which rank 0 stages the payloads of each rank, in turn.

    Args:
        visible: identities of the devices that rank 0 sees.
        own: identity of each rank's device; that of rank 0 does not matter.

    Raises:
        ValueError: rank 0 sees no device but that of a client.
    """
    indices = [0]
    for rank in range(1, len(own)):
        free = [index for index, name in enumerate(visible) if name != own[rank]]
        if not free:
            raise _refusal(f"ranks 0 and {rank} share the only CUDA device that rank 0 sees")
        indices.append(free[(rank - 1) % len(free)])
    return indices


def _refusal(why: str) -> ValueError:
    return ValueError(must_be("transport", "'auto', 'mpi' or 'gloo'", "nccl", because=why))


@register_transport("nccl")
def join(launch: Launch, device: str) -> Transport:
    """Return the transport of this process among those that torchrun started.

    Raises:
        ValueError: the device is not there.
    """
    chosen = choose_device(launch, torch.cuda.device_count(), device)
    return NcclTransport(chosen if chosen.startswith("cuda") else "cuda:0")
