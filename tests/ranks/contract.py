"""The contract of every transport, as functions that all ranks call at once.

Run for threads of one process by test_transports.py, and under a real launcher as
`contract.py BINDING [CHECK ...]`: rank 0 prints `ok CHECK` for every check that all ranks passed.
Where ranks have to wait for one another in silence, they do so by files in $CONTRACT_FOLDER.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedgmr_hpc.config.errors import TransportError, TransportTimeout
from fedgmr_hpc.transport.contract import Message, Shared, Tag, Transport

Found = TypeVar("Found")
WAIT_S = 60.0
LARGE_BYTES = 64 << 20
FOLDER = "CONTRACT_FOLDER"
ABORT_CODE = 3


class Peer:
    """A transport whose `recv` can wait for one tag, keeping the others for later."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.rank, self.size = transport.rank, transport.size
        self.others = [rank for rank in range(self.size) if rank != self.rank]
        self._kept: deque[Message] = deque()

    def send(self, dest: int, *parts: object, tag: Tag = Tag.FRAME) -> None:
        self.transport.send(dest, tag, *parts)

    def recv(self, tag: Tag = Tag.FRAME) -> Message:
        for message in self._kept:
            if message.tag == tag:
                self._kept.remove(message)
                return message
        while (message := self.transport.recv(WAIT_S)).tag != tag:
            self._kept.append(message)
        return message

    def meet(self) -> None:
        """Return when every rank has come here."""
        if self.rank == 0:
            for _ in self.others:
                self.recv(Tag.HELLO)
            for rank in self.others:
                self.send(rank, tag=Tag.RESULT)
        else:
            self.send(0, tag=Tag.HELLO)
            self.recv(Tag.RESULT)

    def say_aside(self, word: str) -> None:
        """Tell the others something without a message."""
        _aside(word, self.rank).touch()

    def hear_aside(self, word: str, *ranks: int) -> None:
        """Return when all of `ranks` have said it; takes and gives no message meanwhile."""
        until_s = time.monotonic() + WAIT_S
        while not all(_aside(word, rank).exists() for rank in ranks):
            assert time.monotonic() < until_s, f"not every rank of {ranks} said {word!r}"
            time.sleep(0.005)

    def meet_aside(self, word: str) -> None:
        """Return when every rank has come here, without a message."""
        self.say_aside(word)
        self.hear_aside(word, *range(self.size))


def _aside(word: str, rank: int) -> Path:
    return Path(os.environ[FOLDER], f"{word} {rank}")


def make_payload(num_bytes: int, seed: int) -> np.ndarray:
    """Read-only uint8 [num_bytes] that depends on `seed`."""
    payload = np.random.default_rng(seed).integers(0, 256, num_bytes, np.uint8)
    payload.flags.writeable = False
    return payload


def check_same(message: Message, expected: np.ndarray) -> None:
    assert np.array_equal(np.frombuffer(message.payload, np.uint8), expected), "other bytes"


def check_order_and_any_source(peer: Peer) -> None:
    """Messages of each pair arrive in order, whoever is heard first."""
    for number in range(50):
        for dest in range(peer.size):
            peer.send(dest, bytes([peer.rank, number]))
    heard: dict[int, list[int]] = {rank: [] for rank in range(peer.size)}
    for _ in range(50 * peer.size):
        message = peer.recv()
        assert message.payload[0] == message.source
        heard[message.source].append(message.payload[1])
    assert all(numbers == list(range(50)) for numbers in heard.values()), heard


def check_tiny_and_parts(peer: Peer) -> None:
    """No part, empty parts, one byte, arrays; parts arrive as their concatenation."""
    dest = (peer.rank + 1) % peer.size
    floats = np.array([[1, 2], [3, 4]], np.float32)
    large = make_payload(1 << 20, 1)
    for parts in ((), (b"",), (b"x",), (b"ab", b"", bytearray(b"c")), (floats,), (b"head", large)):
        peer.send(dest, *parts, tag=Tag.UPDATE)
    got = [peer.recv(Tag.UPDATE) for _ in range(6)]
    assert [bytes(message.payload) for message in got[:4]] == [b"", b"", b"x", b"abc"]
    assert bytes(got[4].payload) == floats.tobytes()
    assert bytes(got[5].payload) == b"head" + large.tobytes()
    assert all(message.payload.format == "B" for message in got)


def check_large_both_ways(peer: Peer) -> None:
    """Every rank sends 64 MiB to the next before any receives: no deadlock, all bytes right."""
    dest, source = (peer.rank + 1) % peer.size, (peer.rank - 1) % peer.size
    peer.send(dest, make_payload(LARGE_BYTES, peer.rank))
    if peer.size == 2:
        peer.send(dest, b"after")
    check_same(peer.recv(), make_payload(LARGE_BYTES, source))
    if peer.size == 2:
        assert bytes(peer.recv().payload) == b"after"
    peer.transport.flush(WAIT_S)


def check_interleaved_sources(peer: Peer) -> None:
    """Messages of several sources, long and short, never mix."""
    sizes = (300_000, 1, 0, 70_001, 1_000_000)
    for number, num_bytes in enumerate(sizes):
        for dest in peer.others:
            peer.send(dest, make_payload(num_bytes, 100 * peer.rank + number))
    heard: Counter[int] = Counter()
    for _ in range(len(sizes) * len(peer.others)):
        message = peer.recv()
        number = heard[message.source]
        check_same(message, make_payload(sizes[number], 100 * message.source + number))
        heard[message.source] += 1
    peer.transport.flush(WAIT_S)


def check_timeout(peer: Peer) -> None:
    """A deadline passes at its time, names this rank, and leaves the transport usable."""
    start_s = time.monotonic()
    try:
        peer.transport.recv(0.2)
    except TransportTimeout as error:
        assert error.rank == peer.rank and "0.2 s" in str(error), error
    else:
        raise AssertionError("a message from nowhere")
    assert 0.19 < time.monotonic() - start_s < 20
    peer.meet_aside("own deadline has passed")
    peer.meet()
    peer.send((peer.rank + 1) % peer.size, b"still here")
    assert bytes(peer.recv().payload) == b"still here"


def check_flush_names_the_deaf(peer: Peer) -> None:
    """Where a large message needs its receiver, `flush` names the one that looks away."""
    deaf = peer.size - 1
    if peer.rank == 0 and deaf and peer.transport.name == "mpi":
        peer.send(deaf, make_payload(LARGE_BYTES, 0))
        try:
            peer.transport.flush(0.3)
        except TransportTimeout as error:
            assert f"ranks [{deaf}]" in str(error), error
        else:
            raise AssertionError(f"rank {deaf} took a message without looking")
        peer.say_aside("the deaf was named")
    elif peer.rank == deaf and deaf and peer.transport.name == "mpi":
        peer.hear_aside("the deaf was named", 0)
        check_same(peer.recv(), make_payload(LARGE_BYTES, 0))
    peer.transport.flush(WAIT_S)


def check_a_deaf_rank_is_in_nobodys_way(peer: Peer) -> None:
    """However many messages wait for a rank that looks away, the others get theirs."""
    deaf = peer.size - 1
    if peer.size < 3:
        return
    if peer.rank == 0:
        for number in range(300):
            peer.send(deaf, number.to_bytes(2, "little"))
        peer.send(1, b"are you there?")
        assert bytes(peer.recv().payload) == b"yes"  # while the deaf one does not look
        peer.say_aside("answered")
    elif peer.rank == 1:
        assert bytes(peer.recv().payload) == b"are you there?"
        peer.send(0, b"yes")
    elif peer.rank == deaf:
        peer.hear_aside("answered", 0)
        for number in range(300):
            assert int.from_bytes(peer.recv().payload, "little") == number
    peer.transport.flush(WAIT_S)


def check_poll_moves_messages(peer: Peer) -> None:
    """Ranks that only look in, as between training steps, take and give large messages."""
    if peer.rank > 1 or peer.size == 1:
        return
    if peer.rank == 0:
        peer.send(1, make_payload(LARGE_BYTES, 5))
        look_in(peer, lambda: has_left(peer))
    else:
        message = look_in(peer, peer.transport.recv_now)
        check_same(message, make_payload(LARGE_BYTES, 5))


def look_in(peer: Peer, look: Callable[[], Found]) -> Found:
    """What `look` finds at last, of a rank that is busy with something else most of the time."""
    until_s = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < until_s, "nothing moved"
        time.sleep(0.002)
        peer.transport.poll()
    return found


def has_left(peer: Peer) -> bool:
    try:
        peer.transport.flush(0.0)
    except TransportTimeout:
        return False
    return True


def check_fairness(peer: Peer) -> None:
    """Senders of a crowd are served in turn, whoever came first."""
    if peer.rank:
        time.sleep(0.1 * peer.rank)  # served as it comes, the first rank's would all be first
        for number in range(300):
            peer.send(0, number.to_bytes(2, "little"))
        peer.transport.flush(WAIT_S)
        return
    look_in(peer, lambda: min(num_waiting(peer), default=300) >= 300)
    served = Counter({rank: 0 for rank in peer.others})
    for _ in range(300 * len(peer.others)):
        message = peer.recv()
        assert int.from_bytes(message.payload, "little") == served[message.source]
        served[message.source] += 1
        assert max(served.values()) - min(served.values()) <= 2, served  # 300 if in order


def num_waiting(peer: Peer) -> list[int]:
    """How many messages of each other rank have arrived and were not taken."""
    transport = peer.transport
    inbox = transport._inboxes[peer.rank] if transport.name == "inproc" else transport._inbox
    return [len(inbox._waiting.get(rank, ())) for rank in peer.others]


def check_counters(peer: Peer) -> None:
    """Bytes are counted per rank, as payload."""
    sent, received = list(peer.transport.sent_bytes_to), list(peer.transport.received_bytes_from)
    for message in peer._kept:  # of ranks that left the meeting earlier, for this check
        received[message.source] -= len(message.payload)
    for dest in range(peer.size):
        peer.send(dest, bytes(10 + dest), b"!")
        peer.send(dest, make_payload(200_000, 0))
    for _ in range(2 * peer.size):
        peer.recv()
    for rank in range(peer.size):
        assert peer.transport.sent_bytes_to[rank] - sent[rank] == 200_011 + rank
        assert peer.transport.received_bytes_from[rank] - received[rank] == 200_011 + peer.rank
    assert peer.transport.sent_bytes == sum(peer.transport.sent_bytes_to)
    assert peer.transport.received_bytes == sum(peer.transport.received_bytes_from)


def check_shared(peer: Peer) -> None:
    """What many ranks are sent comes whole and in its place, and counts as if sent to each."""
    payloads = [make_payload(num_bytes, 40 + num_bytes) for num_bytes in (300_000, 900, 1_000_001)]
    if peer.rank == 0:
        sent = list(peer.transport.sent_bytes_to)
        for number, payload in enumerate(payloads):
            shared = Shared(payload[:100], payload[100:])
            for dest in (*peer.others, *peer.others):
                peer.transport.send_shared(dest, Tag.FRAME, shared)
                peer.send(dest, bytes([number]))
        total_bytes = 2 * sum(1 + len(payload) for payload in payloads)
        assert all(
            peer.transport.sent_bytes_to[rank] - sent[rank] == total_bytes for rank in peer.others
        )
        return
    for number, payload in enumerate(payloads):
        for _ in range(2):
            check_same(peer.recv(), payload)
            assert bytes(peer.recv().payload) == bytes([number])


def check_shared_waits_for_nobody_who_has_it(peer: Peer) -> None:
    """A rank that looks away keeps a neighbour from nothing that it has received before."""
    if peer.size < 3 or peer.transport.name != "mpi":
        return
    deaf, last = peer.size - 2, peer.size - 1
    if peer.rank == 0:
        shared = Shared(make_payload(500_000, 77))
        peer.transport.send_shared(deaf, Tag.FRAME, shared)
        peer.recv(Tag.RESULT)
        peer.transport.send_shared(last, Tag.FRAME, shared)
        peer.recv(Tag.RESULT)
        peer.say_aside("the last one has it")
    elif peer.rank >= deaf:
        check_same(peer.recv(), make_payload(500_000, 77))
        peer.send(0, tag=Tag.RESULT)
        peer.transport.flush(WAIT_S)
        if peer.rank == deaf:
            peer.hear_aside("the last one has it", 0)


def check_idle(peer: Peer) -> None:
    """Waiting 1 s for nothing costs less than a tenth of a core."""
    start_s = time.process_time()
    try:
        peer.transport.recv(1.0)
    except TransportTimeout:
        pass
    share = (time.process_time() - start_s) / (peer.size if peer.transport.name == "inproc" else 1)
    assert share < 0.1, f"{share:.3f} of a core"
    peer.meet_aside("has been idle")


CHECKS: dict[str, Callable[[Peer], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_") and name != "check_same"
}


def run_checks(transport: Transport, names: list[str]) -> None:
    """Every check on every rank, meeting in between so that none disturbs another."""
    peer = Peer(transport)
    for name in names:
        peer.meet()
        CHECKS[name](peer)
        peer.meet()
        if peer.rank == 0:
            print("ok", name, flush=True)


def check_copies_are_given_up(transport: Transport) -> None:
    """No rank holds a copy for its node when all who were to use it have."""
    relay = getattr(transport, "_relay", None)
    if relay is None:
        return
    peer = Peer(transport)
    if peer.rank == 0 and peer.others:
        transport.send_shared(1, Tag.FRAME, Shared(b""))  # drops those before
    elif peer.rank == 1:
        peer.recv()
    for _ in range(2):  # a DROP, then what it answers
        peer.meet()
    assert not relay.held, f"{len(relay.held)} copies left"
    if peer.rank == 0 and max(Counter(relay.node_of[1:]).values(), default=0) > 1:
        assert transport.relayed_bytes, "nothing was relayed"


def check_channels(transport: Transport) -> None:
    """Where pairs have payload channels, long messages took them."""
    for peer, pair in getattr(transport, "_pairs", {}).items():
        assert pair.num_delivered, f"no payload of rank {peer} came over its channel"


def run_abort(transport: Transport) -> None:
    """The last rank aborts while the others wait."""
    if transport.rank == transport.size - 1:
        time.sleep(0.5)
        transport.abort(ABORT_CODE)
    try:
        transport.recv(WAIT_S)
    except TransportTimeout:
        raise
    except TransportError as error:
        print("ended by", error, flush=True)
        os._exit(ABORT_CODE)


def run_huge(transport: Transport) -> None:
    """More than 2 GiB in one message."""
    num_bytes = (2 << 30) + 5
    if transport.rank == 0:
        payload = np.zeros(num_bytes, np.uint8)
        payload[:: 1 << 20] = 7
        payload[-1] = 9
        transport.send(1, Tag.FRAME, payload)
        transport.flush(240)
    else:
        payload = np.frombuffer(transport.recv(240).payload, np.uint8)
        assert len(payload) == num_bytes and payload[-1] == 9
        assert int(payload.sum(dtype=np.int64)) == 7 * 2049 + 9
        print("ok huge", flush=True)


def run_stopped(transport: Transport) -> None:
    """Rank 2 is stopped while rank 0 sends it more than buffers hold, and then to rank 1."""
    payload = make_payload(LARGE_BYTES, 0)
    if transport.rank == 2:
        transport.send(0, Tag.FRAME, str(os.getpid()).encode())
        for _ in range(3):
            assert bytes(transport.recv(60).payload) == payload.tobytes()
    elif transport.rank == 1:
        assert bytes(transport.recv(60).payload) == payload.tobytes()
        transport.send(0, Tag.FRAME, b"heard")
    else:
        pid = int(bytes(transport.recv(60).payload))
        os.kill(pid, signal.SIGSTOP)
        try:
            for dest in (2, 2, 2, 1):
                transport.send(dest, Tag.FRAME, payload)
            assert bytes(transport.recv(60).payload) == b"heard"
            transport.flush(2)
        except TransportTimeout as error:
            assert "ranks [2]" in str(error), error
        else:
            raise AssertionError("a stopped rank took a message")
        finally:
            os.kill(pid, signal.SIGCONT)
        print("ok stopped", flush=True)


def make_transport(binding: str) -> Transport:
    if binding == "gloo":
        from fedgmr_hpc.transport.gloo import GlooTransport

        return GlooTransport()
    if binding.startswith("device"):
        from fedgmr_hpc.transport.nccl import DeviceTransport

        small = {"inline_bytes": 0, "piece_bytes": 50_000}
        return DeviceTransport(**(small if binding == "device-small" else {}))
    if binding == "nccl":
        from fedgmr_hpc.transport.nccl import NcclTransport

        return NcclTransport()
    from fedgmr_hpc.transport.mpi import MpiTransport

    return MpiTransport(chunk_bytes=50_000) if binding == "mpi-chunked" else MpiTransport()


def main(binding: str, names: list[str]) -> None:
    transport = make_transport(binding)
    try:
        if names == ["abort"]:
            run_abort(transport)
        elif names == ["huge"]:
            run_huge(transport)
        elif names == ["stopped"]:
            run_stopped(transport)
        else:
            run_checks(transport, names or list(CHECKS))
            check_channels(transport)
            check_copies_are_given_up(transport)
    except BaseException:
        print(f"rank {transport.rank}: {traceback.format_exc()}", flush=True)
        transport.abort(1)
    transport.close()
    print("closed", transport.rank, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
