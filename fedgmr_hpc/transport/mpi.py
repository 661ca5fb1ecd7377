"""Transport over MPI: matched probes, retained sends, no waiting inside MPI, no spinning.

A message of one part up to `chunk_bytes` is one MPI message whose MPI tag is the message's tag.
Anything else is announced by a head (total bytes, tag, number of pieces) and follows in pieces,
which no other message of the same rank can come between: MPI keeps the order of a pair of ranks.
Every receive goes straight into the message's own block; see blocks.py.

What many ranks are sent (`send_shared`) crosses to a node once; see relay.py.

Large messages move only while both ends look after them: call `poll` during long computations.

MPI takes short messages for a rank that does not look, into memory that all ranks of a host share
(MPICH: 64 cells a sender). One rank that has stopped would fill it, and keep the sender from all
others. So every `_WINDOW`-th message to a rank is a synchronous one, and what follows waits here
until that has been taken.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import mpi4py
import numpy as np

mpi4py.rc.thread_level = "serialized"  # one thread at a time; any more makes every call lock
from mpi4py import MPI  # noqa: E402  (importing it initialises MPI with the settings above)

from fedgmr_hpc.config.choices.registry import register_transport  # noqa: E402
from fedgmr_hpc.config.errors import TransportTimeout  # noqa: E402
from fedgmr_hpc.transport.blocks import Blocks  # noqa: E402
from fedgmr_hpc.transport.contract import (  # noqa: E402
    JOIN_BYTES,
    Backoff,
    Inbox,
    Message,
    Shared,
    Tag,
    Transport,
    frozen,
)
from fedgmr_hpc.transport.node_copies import NodeCopy, can_read, make_sample  # noqa: E402
from fedgmr_hpc.transport.ranks import Launch, check_world  # noqa: E402
from fedgmr_hpc.transport.relay import Note, Relay, pretended_node_size, unpack_use  # noqa: E402

_Found = TypeVar("_Found")

_HEAD = struct.Struct("<qqqq")  # total bytes, tag, number of pieces, key of a copy or 0
_HEAD_TAG, _PIECE_TAG = 100, 101  # MPI tags; messages in one piece use theirs
_MAX_TURNS = 64  # then a loop over arrivals ends, however fast they come
_SHORT_BYTES = 4000  # comes whole with its envelope, with every MPI
_WINDOW = 16  # MPI messages to a rank of which it has taken none


class _Sending(NamedTuple):
    """One MPI message on its way out, and the bytes MPI still reads."""

    request: MPI.Request
    view: memoryview
    is_last: bool  # of a window: nothing follows until it has been taken


class _Outgoing:
    """What has been sent to one rank and not left yet, oldest first."""

    def __init__(self) -> None:
        self.under_way: deque[_Sending] = deque()
        self.waiting: deque[tuple[int, memoryview]] = deque()  # MPI tag and bytes; only while held

    @property
    def is_held(self) -> bool:
        """Whether the rank has to take something first."""
        return bool(self.under_way) and self.under_way[-1].is_last


class _Arriving:
    """One message on its way in: its buffer fills piece by piece."""

    def __init__(self, tag: Tag, num_pieces: int, buffer: memoryview, key: int = 0) -> None:
        self.tag, self.buffer, self.key = tag, buffer, key
        self._num_missing, self._filled_bytes = num_pieces, 0
        self._requests: deque[MPI.Request] = deque()

    def accept(self, matched: MPI.Message, num_bytes: int) -> None:
        """Receive the next piece into its place."""
        place = self.buffer[self._filled_bytes : self._filled_bytes + num_bytes]
        self._requests.append(matched.Irecv([place, MPI.BYTE]))
        self._filled_bytes += num_bytes
        self._num_missing -= 1

    def is_complete(self) -> bool:
        while self._requests and self._requests[0].Test():
            self._requests.popleft()
        return not self._requests and not self._num_missing


class _Borrowed:
    """One message whose bytes are in a copy of this node: complete once they can be mapped."""

    def __init__(self, relay: Relay, content: memoryview) -> None:
        self.tag, self._key, self._holder = unpack_use(content)
        self.buffer, self.key, self._relay = memoryview(b""), 0, relay

    def is_complete(self) -> bool:
        found = self._relay.open(self._holder, self._key)
        self.buffer = self.buffer if found is None else found
        return found is not None


class MpiTransport(Transport):
    """All ranks of a communicator, by default of COMM_WORLD. Collective, like `close`.

    Args:
        comm: duplicated, so that no other traffic can mix with this.
        chunk_bytes: longest single MPI message; MPI counts are 32-bit in many builds.
    """

    name = "mpi"

    def __init__(
        self,
        comm: MPI.Intracomm | None = None,
        *,
        chunk_bytes: int = 1 << 30,
    ) -> None:
        self._comm = (comm or MPI.COMM_WORLD).Dup()
        super().__init__(self._comm.Get_rank(), self._comm.Get_size())
        self._chunk_bytes = chunk_bytes
        self._outgoing: dict[int, _Outgoing] = {}  # by dest, while there is any
        self._num_posted = [0] * self.size
        self._arriving: dict[int, deque[_Arriving | _Borrowed]] = {}  # by source, oldest first
        self._inbox = Inbox()
        self._blocks = Blocks()
        self._status = MPI.Status()
        self._relay = Relay(self.rank, find_nodes(self._comm), self._post)

    @property
    def library(self) -> str:
        """Long description of the MPI library in use; `ranks.check_world` and the store want it."""
        return MPI.Get_library_version()

    def poll(self) -> None:
        """Look until nothing moves: MPI often shows one message or piece a look."""
        for _ in range(_MAX_TURNS):
            if not self._advance():
                return

    def close(self) -> None:
        """Deliver what was sent, wait for the other ranks to come here too, free the communicator.

        Raises:
            TransportTimeout: a rank did not come within `close_timeout_s`.
        """
        if self._comm == MPI.COMM_NULL:
            return
        self.flush(self.close_timeout_s)
        barrier = self._comm.Ibarrier()
        if not self._wait(barrier.Test, time.monotonic() + self.close_timeout_s):
            message = f"not every rank closed within {self.close_timeout_s:g} s"
            raise TransportTimeout(message, rank=self.rank)
        self._comm.Free()

    def abort(self, code: int) -> None:
        """Let MPI end every process of the job at once; what was printed comes out before."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._comm.Abort(code)

    def _send(self, dest: int, tag: Tag, views: list[memoryview]) -> None:
        if dest == self.rank:
            self._inbox.put(Message(dest, tag, frozen(views)))
        elif len(views) == 1 and len(views[0]) <= self._chunk_bytes:
            self._post(dest, tag, views[0])
        else:
            self._send_pieces(dest, tag, views)
        if self._outgoing:
            self._advance()

    def send_shared(self, dest: int, tag: Tag, shared: Shared) -> None:
        self._check_rank(dest)
        self._relay.drop_unused()
        if shared.num_bytes <= JOIN_BYTES or not self._relay.serves(dest):
            self.send(dest, tag, *shared.parts)
            return
        self.sent_bytes_to[dest] += shared.num_bytes
        if key := self._relay.key_for_holder(dest, shared):
            self._send_pieces(dest, tag, shared.parts, key)
        elif self._relay.use(dest, tag, shared):
            self.relayed_bytes += shared.num_bytes
        self._advance()

    def _send_pieces(
        self, dest: int, tag: Tag, views: Sequence[memoryview], copy_key: int = 0
    ) -> None:
        step = self._chunk_bytes
        pieces = [view[at : at + step] for view in views for at in range(0, len(view), step)]
        head = _HEAD.pack(sum(len(piece) for piece in pieces), tag, len(pieces), copy_key)
        self._post(dest, _HEAD_TAG, memoryview(head))
        for piece in pieces:
            self._post(dest, _PIECE_TAG, piece)

    def _post(self, dest: int, mpi_tag: int, view: memoryview) -> None:
        outgoing = self._outgoing.get(dest)
        if outgoing is not None and outgoing.is_held:
            outgoing.waiting.append((mpi_tag, view))
        else:
            self._start(dest, mpi_tag, view)

    def _start(self, dest: int, mpi_tag: int, view: memoryview) -> None:
        self._num_posted[dest] += 1
        is_last = self._num_posted[dest] % _WINDOW == 0
        send = self._comm.Issend if is_last else self._comm.Isend
        request = send([view, MPI.BYTE], dest, mpi_tag)
        if not request.Test():  # a short message has left already
            under_way = self._outgoing.setdefault(dest, _Outgoing()).under_way
            under_way.append(_Sending(request, view, is_last))

    def _recv(self, deadline_s: float) -> Message | None:
        return self._inbox.pop() or self._wait(self._inbox.pop, deadline_s)

    def _flush(self, deadline_s: float) -> list[int]:
        self._wait(lambda: not self._outgoing, deadline_s)
        return sorted(self._outgoing)

    def _wait(self, look: Callable[[], _Found], deadline_s: float) -> _Found:
        """Return what `look` finds, or its last falsy answer at the deadline. Sleeps if nothing
        moves.
        """
        backoff = Backoff()
        while True:
            moved = self._advance()
            if (found := look()) or time.monotonic() >= deadline_s:
                return found
            if moved:
                backoff.reset()
            else:
                backoff.wait()

    def _advance(self) -> bool:
        """Return one look at everything under way; whether anything moved."""
        accepted = self._accept_arrivals()
        delivered = bool(self._arriving) and self._deliver_complete()
        released = bool(self._outgoing) and self._release_sent()
        return accepted or delivered or released

    def _accept_arrivals(self) -> bool:
        """Match what has arrived and start receiving it, whoever sent it."""
        for count in range(_MAX_TURNS):
            matched = self._comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, self._status)
            if matched is None:
                return count > 0
            self._accept(matched, self._status.source, self._status.tag)
        return True

    def _accept(self, matched: MPI.Message, source: int, mpi_tag: int) -> None:
        num_bytes = self._status.Get_count(MPI.BYTE)
        if mpi_tag == _HEAD_TAG or mpi_tag >= Note.USE:
            content = bytearray(num_bytes)
            matched.Recv([content, MPI.BYTE])  # so short that it came whole with its envelope
            self._take_word(source, mpi_tag, memoryview(content))
            return
        if num_bytes <= _SHORT_BYTES and source not in self._arriving and mpi_tag != _PIECE_TAG:
            short = self._blocks.take(num_bytes)
            matched.Recv([short, MPI.BYTE])
            self._inbox.put(Message(source, Tag(mpi_tag), short))
            return
        if mpi_tag != _PIECE_TAG:
            whole = _Arriving(Tag(mpi_tag), 1, self._blocks.take(num_bytes))
            self._arriving.setdefault(source, deque()).append(whole)
        arriving = self._arriving[source][-1]
        assert isinstance(arriving, _Arriving)
        arriving.accept(matched, num_bytes)

    def _take_word(self, source: int, mpi_tag: int, content: memoryview) -> None:
        """Take the head of a message in pieces, or what concerns copies."""
        if mpi_tag == _HEAD_TAG:
            total_bytes, tag, num_pieces, key = _HEAD.unpack(content)
            place = self._relay.hold(key, total_bytes) if key else self._blocks.take(total_bytes)
            arriving = _Arriving(Tag(tag), num_pieces, place, key)
            self._arriving.setdefault(source, deque()).append(arriving)
        elif mpi_tag == Note.USE:
            borrowed = _Borrowed(self._relay, content)
            self._arriving.setdefault(source, deque()).append(borrowed)
        else:
            self._relay.take(source, mpi_tag, content)

    def _deliver_complete(self) -> bool:
        """Hand over what is complete, in each source's order."""
        moved = False
        for source, queue in list(self._arriving.items()):
            while queue and queue[0].is_complete():
                arrived = queue.popleft()
                payload = arrived.buffer
                if arrived.key:
                    self._relay.publish(arrived.key)
                    payload = payload.toreadonly()
                self._inbox.put(Message(source, arrived.tag, payload))
                moved = True
            if not queue:
                del self._arriving[source]
        return moved

    def _release_sent(self) -> bool:
        """Let go of the buffers that MPI no longer reads, and of what waits where it may."""
        moved = False
        for dest, outgoing in list(self._outgoing.items()):
            while outgoing.under_way and outgoing.under_way[0].request.Test():
                outgoing.under_way.popleft()
                moved = True
            while outgoing.waiting and not outgoing.is_held:
                self._start(dest, *outgoing.waiting.popleft())
            if not outgoing.under_way:
                del self._outgoing[dest]
        return moved


def find_nodes(comm: MPI.Intracomm) -> list[int]:
    """Return the node of each rank, named by its first rank; -1 where one of its ranks cannot map
    another's memory. Collective.
    """
    node_size = pretended_node_size(os.environ)
    if node_size is None:
        node = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
    else:
        node = comm.Split(comm.rank // node_size, comm.rank)
    sample = make_sample() if node.rank == 0 else None
    copy, token = sample or (NodeCopy(0, 0, 0), b"")
    where = np.array([*copy, *np.frombuffer(token.ljust(16), np.int64), comm.rank], np.int64)
    node.Bcast(where)
    reads = can_read(NodeCopy(*where[:3].tolist()), where[3:5].tobytes())
    is_shared = np.array([reads], np.int64)
    node.Allreduce(MPI.IN_PLACE, is_shared, MPI.MIN)
    if sample is not None:
        copy.close()
    node.Free()
    nodes = np.empty(comm.size, np.int64)
    comm.Allgather(np.where(is_shared, where[5:], -1), nodes)
    found: list[int] = nodes.tolist()
    return found


@register_transport("mpi")
def join(launch: Launch, device: str) -> Transport:
    """Return the transport of this process among those that an MPI launcher started.

    Raises:
        ValueError: the launcher and the library do not fit.
    """
    transport = MpiTransport()
    check_world(launch, transport.size, transport.library)
    return transport
