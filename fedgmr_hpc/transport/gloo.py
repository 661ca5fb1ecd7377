"""Transport over torch.distributed's gloo, for CPU tensors, started by torchrun (env://).

Each message is a header, int64 [tag, bytes, number among those of its pair], then its bytes if it
has any. One thread waits for the header of any rank, without a deadline because a gloo wait that
times out closes the pair, and feeds the inbox; deadlines apply there. A thread for each rank that
is sent something waits for its sends and lets go of their buffers, so that one that takes nothing
any more keeps nobody else's. gloo moves bytes by itself, so `poll` has nothing to advance.

The end: the ranks meet when each has delivered what it sent. Then every rank tells every other
goodbye, which is the last message of its pair; a receiver stops after all goodbyes, and the ranks
meet once more before any of them hangs up.

`nccl.py` builds on this: it sends long payloads another way and keeps everything else.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from fedgmr_hpc.config.choices.registry import register_transport
from fedgmr_hpc.config.errors import TransportError, TransportTimeout
from fedgmr_hpc.config.messages import must_be, unknown_choice
from fedgmr_hpc.transport.contract import Inbox, Message, Tag, Transport, frozen
from fedgmr_hpc.transport.ranks import Launch

# tensors over read-only bytes are only ever sent here, never written
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

_GOODBYE = 0  # in the header's place for a tag
_HEADER_TAG, _PAYLOAD_TAG = 1, 2  # gloo's own tags
RUN_TIMEOUT = timedelta(days=365)


class _Sending(NamedTuple):
    """One message on its way out, and the tensors gloo still reads."""

    works: list[dist.Work]
    tensors: list[torch.Tensor]


def check_network(env: Mapping[str, str]) -> None:
    """See that this host has the interfaces and knows the address that `env` names for gloo.

    Raises:
        ValueError: it does not; names the variable.
    """
    host, known = socket.gethostname(), [name for _, name in socket.if_nameindex()]
    for name in filter(None, env.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if name not in known:
            raise ValueError(unknown_choice(f"GLOO_SOCKET_IFNAME on {host}", name, known))
    address = env.get("MASTER_ADDR", "")
    try:
        socket.getaddrinfo(address or None, env.get("MASTER_PORT") or 0)
    except OSError as error:
        need, because = f"an address, or a name that {host} can resolve", str(error.strerror)
        raise ValueError(must_be("MASTER_ADDR", need, address, because=because)) from None


class GlooTransport(Transport):
    """All ranks that torchrun started. Collective, like `close`.

    Args:
        start_timeout_s: deadline for all ranks to find one another.
    """

    name = "gloo"

    def __init__(self, *, start_timeout_s: float = 300.0) -> None:
        check_network(os.environ)
        try:
            dist.init_process_group("gloo", timeout=timedelta(seconds=start_timeout_s))
        except (RuntimeError, ValueError) as error:  # with a stack of C++ below its first line
            raise TransportError(f"gloo: {str(error).splitlines()[0]}") from None
        super().__init__(dist.get_rank(), dist.get_world_size())
        self._group = dist.new_group(timeout=RUN_TIMEOUT, backend="gloo")
        self._inbox = Inbox()
        self._num_sent, self._num_received = Counter[int](), Counter[int]()
        self._sending: dict[int, queue.SimpleQueue[_Sending | None]] = {}  # by dest
        self._num_pending = Counter[int]()  # by dest
        self._released = threading.Condition()
        self._posting = threading.RLock()  # held while a message gets its number and is posted
        self._threads: list[threading.Thread] = []
        self._start(self._receive_all, "receive")

    def poll(self) -> None:
        self._inbox.check()

    def close(self) -> None:
        """Deliver what was sent, wait for the other ranks to have done so too, hang up.

        Raises:
            TransportTimeout: a rank did not come here within `close_timeout_s`.
            TransportError: one has ended.
        """
        if not dist.is_initialized():
            return
        self.poll()  # a rank that has died is told as that, not as one that is late
        self.flush(self.close_timeout_s)
        self._meet()
        for dest in set(range(self.size)) - {self.rank}:
            self._post(dest, _GOODBYE, memoryview(b""))
        self.flush(self.close_timeout_s)
        self._end_threads()
        for thread in self._threads:
            thread.join(self.close_timeout_s)
            if thread.is_alive():
                raise self._not_closed()
        self.poll()
        self._meet()
        dist.destroy_process_group()

    def abort(self, code: int) -> None:
        """End this process; torchrun ends the others, which gloo leaves waiting, as soon as one has
        failed. Where all others are silent, this is the only one that can: it does.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(TransportError):  # where a rank has died, torchrun has seen it
            self.poll()
            code = code or int(len(self.gone) == self.size - 1)
        os._exit(code)

    def _send(self, dest: int, tag: Tag, views: list[memoryview]) -> None:
        self.poll()
        if dest == self.rank:
            self._inbox.put(Message(dest, tag, frozen(views)))
        else:
            self._post(dest, tag, views[0] if len(views) == 1 else frozen(views))

    def _recv(self, deadline_s: float) -> Message | None:
        return self._inbox.pop(deadline_s)

    def _flush(self, deadline_s: float) -> list[int]:
        with self._released:
            while self._num_pending.total() and (left_s := deadline_s - time.monotonic()) > 0:
                self.poll()
                self._released.wait(left_s)
            return sorted(+self._num_pending)

    def _meet(self) -> None:
        """Return when every rank has come here."""
        deadline_s = time.monotonic() + self.close_timeout_s
        try:
            dist.monitored_barrier(timeout=timedelta(seconds=self.close_timeout_s))
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            if time.monotonic() < deadline_s:
                hint = "" if self.rank == 0 else ", rank 0 may say why"
                message = f"another rank has ended without this one{hint}: {why}"
                raise TransportError(message, rank=self.rank) from error
            raise self._not_closed(f": {why}") from error

    def _not_closed(self, why: str = "") -> TransportTimeout:
        message = f"not every rank closed within {self.close_timeout_s:g} s{why}"
        return TransportTimeout(message, rank=self.rank)

    def _post(self, dest: int, tag: int, view: memoryview, num_bytes: int | None = None) -> None:
        """Send a header and `view`; `num_bytes` announces a payload that travels another way."""
        payload = torch.from_numpy(np.frombuffer(view, np.uint8))
        with self._posting:
            announced = len(view) if num_bytes is None else num_bytes
            header = torch.tensor([tag, announced, self._num_sent[dest]])
            self._num_sent[dest] += 1
            works = [self._begin_sending(header, dest, _HEADER_TAG)]
            if len(view):
                works.append(self._begin_sending(payload, dest, _PAYLOAD_TAG))
            self._count_pending(dest, 1)
            sending = _Sending([work for work in works if work], [header, payload])
            self._queue_to(dest).put(sending)

    def _begin_sending(self, tensor: torch.Tensor, dest: int, tag: int) -> dist.Work | None:
        try:
            return dist.isend(tensor, dest, group=self._group, tag=tag)
        except RuntimeError as error:  # that rank has ended
            text = f"{self.name}: {error}"
            raise TransportError(text, rank=self.rank, stage="send") from None

    def _queue_to(self, dest: int) -> queue.SimpleQueue[_Sending | None]:
        """Return what a thread lets go of in order; begin with it at the first message."""
        if dest not in self._sending:
            self._sending[dest] = queue.SimpleQueue()
            self._start(partial(self._release_all, dest), f"release {dest}")
        return self._sending[dest]

    def _count_pending(self, dest: int, change: int) -> None:
        """Note a message to `dest` that is under way (1) or has left (-1)."""
        with self._released:
            self._num_pending[dest] += change
            self._released.notify_all()

    def _start(self, loop: Callable[[], None], name: str) -> None:
        """Run `loop` in a thread of its own until `_end_threads`."""
        thread = threading.Thread(target=self._guard, args=(loop,), daemon=True, name=name)
        self._threads.append(thread)
        thread.start()

    def _end_threads(self) -> None:
        """Tell the threads that nothing more is sent; the receiver ends with the goodbyes."""
        for sending in self._sending.values():
            sending.put(None)

    def _guard(self, loop: Callable[[], None]) -> None:
        """Run a thread's loop; what ends it early ends every later `recv`, `send` and `flush`."""
        try:
            loop()
        except Exception as error:
            self._inbox.fail(TransportError(f"{self.name}: {error}", rank=self.rank))
            with self._released:
                self._released.notify_all()

    def _receive_all(self) -> None:
        """Take every message until each other rank has said goodbye."""
        num_open = self.size - 1
        while num_open:
            header = torch.empty(3, dtype=torch.int64)
            source = dist.recv(header, group=self._group, tag=_HEADER_TAG)
            tag, num_bytes, number = header.tolist()
            if number != self._num_received[source]:
                got = f"message {number} of rank {source}"
                raise TransportError(f"{got}, expected {self._num_received[source]}")
            self._num_received[source] += 1
            if tag == _GOODBYE:
                num_open -= 1
            else:
                self._take(source, tag, num_bytes)

    def _take(self, source: int, tag: int, num_bytes: int) -> None:
        """Put the message whose header has just come into the inbox."""
        self._inbox.put(Message(source, Tag(tag), self._receive(source, num_bytes)))

    def _receive(self, source: int, num_bytes: int) -> memoryview:
        """Return the payload that follows its header."""
        payload = np.empty(num_bytes, np.uint8)
        if num_bytes:
            into = torch.from_numpy(payload)
            dist.recv(into, source, group=self._group, tag=_PAYLOAD_TAG)
        return payload.data

    def _release_all(self, dest: int) -> None:
        """Wait for a rank's sends in the order posted: it takes everything as it comes."""
        while (sending := self._sending[dest].get()) is not None:
            for work in sending.works:
                work.wait()
            self._count_pending(dest, -1)


@register_transport("gloo")
def join(launch: Launch, device: str) -> Transport:
    """Return the transport of this process among those that torchrun started."""
    return GlooTransport()
