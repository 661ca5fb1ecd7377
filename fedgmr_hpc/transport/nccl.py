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

A rank that dies or stops halfway through a payload is named by whoever waits for it, when that wait
has lasted for `limit_s`. The pair's thread waits twice as long and then ends the transport, unless
the run has gone on without that rank (`gone`). NCCL's watchdog would end the process; it is told to
abort the group and no more.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist

from fedgmr_hpc.config.choices.registry import register_transport
from fedgmr_hpc.config.errors import TransportError
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.transport.contract import JOIN_BYTES, Message, Tag, Transport, frozen
from fedgmr_hpc.transport.gloo import RUN_TIMEOUT, GlooTransport
from fedgmr_hpc.transport.payloads import PayloadChannel, StagedChannel
from fedgmr_hpc.transport.ranks import Launch, choose_device

_COMMIT = -1  # in the header's place for a tag
_SERVER = 0
_GRACE = 2  # times the limit: who waits for a rank has named it by then
_WARM_UP_BYTES = 64
_ABORT_THE_GROUP = "2"  # what the watchdog does after an error; by default it ends the process


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
    """

    name = "device"
    backend = "gloo"

    def __init__(
        self,
        *,
        inline_bytes: int = JOIN_BYTES,
        piece_bytes: int = 2 << 20,
        start_timeout_s: float = 300.0,
    ) -> None:
        super().__init__(start_timeout_s=start_timeout_s)
        self._inline_bytes, self._piece_bytes = inline_bytes, piece_bytes
        self._start_timeout_s = start_timeout_s
        self._pairs = {peer: _Pair(channel) for peer, channel in self._open_channels().items()}
        for peer in self._pairs:
            self._start(partial(self._serve_pair, peer), f"payloads of rank {peer}")
        dist.barrier()  # no rank sends before every rank can receive

    def _open_channels(self) -> dict[int, PayloadChannel]:
        """Return this rank's warm channels by peer: rank 0 has one with each other rank.

        Every rank names every group, which gives it its name, in microseconds; only the two ranks
        of a group connect.
        """
        channels: dict[int, PayloadChannel] = {}
        for client in range(1, self.size):
            group = dist.new_group([_SERVER, client], timeout=RUN_TIMEOUT, backend=self.backend)
            if self.rank in (_SERVER, client):
                peer = client if self.rank == _SERVER else _SERVER
                device = self._staging_device(peer)
                channels[peer] = StagedChannel(group, self.rank, peer, device, self._piece_bytes)
                self._warm_up(channels[peer])
        return channels

    def _serve_pair(self, peer: int) -> None:
        """Do a pair's jobs until the end, or until the run has gone on without the other rank."""
        try:
            self._pairs[peer].run()
        except TransportError:
            if peer not in self.gone:
                raise

    def _staging_device(self, peer: int) -> torch.device:
        """Return the device of this rank that payloads of `peer` go through."""
        return torch.device("cpu")

    def _warm_up(self, channel: PayloadChannel) -> None:
        """Make the pair's connection, which takes seconds, by one payload in each direction."""
        if self.rank == _SERVER:
            channel.send(memoryview(bytes(_WARM_UP_BYTES)), self._start_timeout_s)
            channel.recv(_WARM_UP_BYTES, self._start_timeout_s)
        else:
            channel.send(channel.recv(_WARM_UP_BYTES, self._start_timeout_s), self._start_timeout_s)

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
        limit_s = _GRACE * self.limit_s
        if not pair.commits.acquire(timeout=limit_s):
            reason = f"rank {dest} has not committed to a payload for {limit_s:g} s"
            raise TransportError(reason, rank=self.rank, stage="send")
        pair.channel.send(pair.outgoing.get(), limit_s)
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
                self._queue(pair, source, tag, partial(self._receive_next, pair, num_bytes))
        elif pair.num_queued != pair.num_delivered:  # it must not overtake them
            payload = self._receive(source, num_bytes)
            self._queue(pair, source, tag, lambda: payload)
        else:
            super()._take(source, tag, num_bytes)

    def _receive_next(self, pair: _Pair, num_bytes: int) -> memoryview:
        return pair.channel.recv(num_bytes, _GRACE * self.limit_s)

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
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", _ABORT_THE_GROUP)
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
