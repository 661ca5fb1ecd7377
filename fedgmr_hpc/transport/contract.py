"""The contract every transport keeps, what the bindings share, and the in-process binding.

A message is a tag and bytes. Between two ranks messages arrive in the order sent; among ranks that
have something waiting the receiver takes turns. No call waits without a deadline. Bytes are counted
as payload: what a binding adds to carry them (headers, pieces) is no part of any count.

One thread of a rank uses its transport at a time; bindings may have threads of their own.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from enum import IntEnum
from typing import Any, NamedTuple

from fedgmr_hpc.config.errors import TransportError, TransportTimeout
from fedgmr_hpc.config.messages import must_be

NOTHING = memoryview(b"")
JOIN_BYTES = 1 << 16  # up to here copying a message costs less than a second one


class Tag(IntEnum):
    """What a message is for."""

    HELLO = 1
    FRAME = 2
    TASK = 3
    UPDATE = 4
    EVALUATE = 5
    RESULT = 6
    FAILURE = 7
    STOP = 8
    OFFER = 9  # this and what follows: see pieces.py
    GRANT = 10
    PIECE = 11
    GOT = 12
    RETRY = 13
    CLOCK = 14  # what time is it there?
    TRACE = 15
    MEMORIES = 16  # what clients keep between dispatches: asked for or, with content, handed over
    MASKS = 17  # of the levels to which a version is cut for evaluation


class Message(NamedTuple):
    """One received message."""

    source: int
    tag: Tag
    payload: memoryview  # of bytes, contiguous
    handed: object = None  # in place of bytes; see `Transport.hand`
    handed_bytes: int = 0  # what it is counted as

    @property
    def num_bytes(self) -> int:
        """What it is counted as."""
        return len(self.payload) + self.handed_bytes


class Shared:
    """Bytes that several ranks are to get; see `Transport.send_shared`.

    Args:
        parts: bytes-like, contiguous; they never change.
    """

    def __init__(self, *parts: Any) -> None:
        self.parts = tuple(as_bytes(part) for part in parts)
        self.num_bytes = sum(len(part) for part in self.parts)


class Transport(ABC):
    """Bytes between `size` ranks, this one being `rank`.

    Attributes:
        limit_s: how long another rank may leave a message that is under way where it is; matters to
            bindings that cannot leave it to their library.
        close_timeout_s: how long `close` waits for the other ranks.
    """

    name: str
    limit_s = 600.0
    close_timeout_s = 60.0
    shares_memory = False  # whether all ranks are one process, so that objects can be handed over

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent_bytes_to = [0] * size
        self.received_bytes_from = [0] * size
        self.relayed_bytes = 0  # of those sent: what the receiver's node had already
        self.gone: set[int] = set()  # ranks that no longer answer; a collective close would hang

    @property
    def sent_bytes(self) -> int:
        """Payload bytes handed to `send` so far."""
        return sum(self.sent_bytes_to)

    @property
    def received_bytes(self) -> int:
        """Payload bytes returned by `recv` so far."""
        return sum(self.received_bytes_from)

    def allow(self, timeout_s: float) -> None:
        """Give another rank as long as a run does (`run.timeout_s`). At the end that is twice as
        long: a rank that is through first waits for the others' last work, and then for what the
        server writes.
        """
        self.limit_s = timeout_s
        self.close_timeout_s = max(self.close_timeout_s, 2 * timeout_s)

    def send(self, dest: int, tag: Tag, *parts: Any) -> None:
        """Send the concatenation of `parts` to `dest` and return at once.

        Args:
            dest: the receiving rank, this rank included.
            tag: what the message is for.
            parts: bytes-like, contiguous; they may not change until `flush` returns.

        Raises:
            ValueError: no such rank.
            TransportError: the transport has failed.
        """
        self._check_rank(dest)
        views = [as_bytes(part) for part in parts]
        total_bytes = sum(len(view) for view in views)
        if total_bytes <= JOIN_BYTES:
            views = [memoryview(b"".join(views))]
        self.sent_bytes_to[dest] += total_bytes
        self._send(dest, Tag(tag), views)

    def send_shared(self, dest: int, tag: Tag, shared: Shared) -> None:
        """Send what other ranks are sent, too: as `send`, but a binding may move the bytes to each
        node once, for as long as `shared` exists. The payload is read-only there.
        """
        self.send(dest, tag, *shared.parts)

    def hand(self, dest: int, tag: Tag, content: object, num_bytes: int) -> None:
        """Send an object itself, where `shares_memory`: nobody may change it from now on.

        Args:
            num_bytes: what it is counted as, sent and received.
        """
        raise TransportError(f"{self.name} moves bytes alone", rank=self.rank, stage="send")

    def _check_rank(self, dest: int) -> None:
        if not 0 <= dest < self.size:
            raise ValueError(must_be("dest", f"a rank between 0 and {self.size - 1}", dest))

    def recv(self, timeout_s: float) -> Message:
        """Return the next message from any rank.

        Raises:
            TransportTimeout: nothing arrived within `timeout_s`; the transport stays usable.
            TransportError: the transport has failed or another rank aborted.
        """
        message = self._recv(time.monotonic() + timeout_s)
        if message is None:
            raise TransportTimeout(
                f"no message within {timeout_s:g} s", rank=self.rank, stage="receive"
            )
        self.received_bytes_from[message.source] += message.num_bytes
        return message

    def recv_now(self) -> Message | None:
        """Return the next message if one is there already."""
        message = self._recv(0.0)
        if message is not None:
            self.received_bytes_from[message.source] += message.num_bytes
        return message

    def flush(self, timeout_s: float) -> None:
        """Wait until every sent message has left this rank's buffers, receiving meanwhile.

        Raises:
            TransportTimeout: names the ranks that did not take theirs within `timeout_s`.
        """
        late = self._flush(time.monotonic() + timeout_s)
        if late:
            raise TransportTimeout(
                f"ranks {late} did not take their messages within {timeout_s:g} s",
                rank=self.rank,
                stage="send",
            )

    @abstractmethod
    def poll(self) -> None:
        """Advance what is under way in both directions without waiting."""

    @abstractmethod
    def close(self) -> None:
        """End normally, together with all other ranks; what was sent is delivered first."""

    @abstractmethod
    def abort(self, code: int) -> None:
        """End all ranks now; their processes exit with `code` where the binding owns them."""

    @abstractmethod
    def _send(self, dest: int, tag: Tag, views: list[memoryview]) -> None: ...

    @abstractmethod
    def _recv(self, deadline_s: float) -> Message | None: ...

    @abstractmethod
    def _flush(self, deadline_s: float) -> list[int]: ...


class Backoff:
    """How long to wait between two looks: a quarter of the wait so far, from 50 us to 2 ms.

    The first looks only yield the core. In proportion, because sleeps that double overshoot by as
    much as was waited, and two ranks that answer each other would drive one another to the longest
    sleep. An idle rank uses about a hundredth of a core; where ranks share cores, every look of one
    is work that the others wait for.
    """

    YIELD_S = 50e-6
    SHORTEST_S, LONGEST_S = 50e-6, 2e-3

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Look again at once, since something moved."""
        self._since_s = time.perf_counter()

    def wait(self) -> None:
        """Wait, in proportion to how long nothing has moved."""
        waited_s = time.perf_counter() - self._since_s
        if waited_s < self.YIELD_S:
            os.sched_yield()
        else:
            time.sleep(min(max(waited_s / 4, self.SHORTEST_S), self.LONGEST_S))


class Inbox:
    """Messages that have arrived: in order per source, sources in turn. Safe across threads."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Message]] = {}  # only sources that have some, next one first
        self._error: TransportError | None = None
        self._changed = threading.Condition()

    def put(self, message: Message) -> None:
        with self._changed:
            self._waiting.setdefault(message.source, deque()).append(message)
            self._changed.notify()

    def fail(self, error: TransportError) -> None:
        """Make every later `pop` raise `error`, but for what a rank says of its own failure."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error that ended this inbox, if one did."""
        if self._error is not None:
            raise self._error

    def pop(self, deadline_s: float = 0.0) -> Message | None:
        """Return the next message in turn, or None if none has come by `deadline_s` (monotonic
        clock).
        """
        with self._changed:
            while not self._waiting and self._error is None:
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0:
                    return None
                self._changed.wait(remaining_s)
            if self._error is not None:
                return self._pop_failure()
            source, queue = next(iter(self._waiting.items()))
            message = queue.popleft()
            del self._waiting[source]
            if queue:
                self._waiting[source] = queue  # to the end of the line
            return message

    def _pop_failure(self) -> Message | None:
        """Return a failure that waits: it says why the error came."""
        for queue in self._waiting.values():
            for message in queue:
                if message.tag == Tag.FAILURE:
                    queue.clear()
                    return message
        self.check()
        return None


class InprocTransport(Transport):
    """Ranks are threads of one process, each with an inbox the others put into.

    A single read-only part is delivered as it is, so its owner must leave it as it is; everything
    else is copied once, when sent.
    """

    name = "inproc"
    shares_memory = True

    def __init__(self, rank: int, inboxes: list[Inbox]) -> None:
        super().__init__(rank, len(inboxes))
        self._inboxes = inboxes

    def poll(self) -> None:
        self._inboxes[self.rank].check()

    def close(self) -> None:
        """Do nothing: a message is delivered when it is sent."""

    def abort(self, code: int) -> None:
        for inbox in self._inboxes:
            inbox.fail(TransportError(f"rank {self.rank} aborted with code {code}"))

    def _send(self, dest: int, tag: Tag, views: list[memoryview]) -> None:
        self.poll()
        self._inboxes[dest].put(Message(self.rank, tag, frozen(views)))

    def hand(self, dest: int, tag: Tag, content: object, num_bytes: int) -> None:
        self._check_rank(dest)
        self.poll()
        self.sent_bytes_to[dest] += num_bytes
        self._inboxes[dest].put(Message(self.rank, tag, NOTHING, content, num_bytes))

    def _recv(self, deadline_s: float) -> Message | None:
        return self._inboxes[self.rank].pop(deadline_s)

    def _flush(self, deadline_s: float) -> list[int]:
        return []


def make_inproc(size: int) -> list[InprocTransport]:
    """Return the `size` endpoints of one in-process world, for one thread each."""
    inboxes = [Inbox() for _ in range(size)]
    return [InprocTransport(rank, inboxes) for rank in range(size)]


def as_bytes(part: Any) -> memoryview:
    """Return `part` as a flat view of its bytes, without a copy; an array without entries has
    none.
    """
    view = memoryview(part)
    return view.cast("B") if view.nbytes else memoryview(b"")


def frozen(views: list[memoryview]) -> memoryview:
    """Return the concatenation, which no one will change: a single read-only view itself, else a
    copy.
    """
    if len(views) == 1 and views[0].readonly:
        return views[0]
    return memoryview(b"".join(views))
