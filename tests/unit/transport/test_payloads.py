"""Payloads of two ranks, here threads, through staging buffers, over gloo.

Over NCCL, which needs two CUDA devices, tests/ranks/test_transports.py moves them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fedgmr_hpc.config.errors import TransportError
from fedgmr_hpc.transport.nccl import DeviceTransport, _Pair
from fedgmr_hpc.transport.payloads import StagedChannel

PIECE_BYTES = 8
CPU = torch.device("cpu")


def on_both(work: Callable[[StagedChannel], object]) -> list[object]:
    """What `work` returns on ranks 0 and 3, which are a group of two."""
    store, found = dist.HashStore(), [None, None]

    def join(number: int) -> None:
        group = dist.ProcessGroupGloo(store, number, 2, timedelta(seconds=60))
        channel = StagedChannel(group, (0, 3)[number], (3, 0)[number], CPU, PIECE_BYTES)
        found[number] = work(channel)

    threads = [threading.Thread(target=join, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank did not end"
    return found


def payload(num_bytes: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(num_bytes)


@pytest.mark.parametrize("num_bytes", [0, 1, 8, 9, 16, 17, 24, 25, 1000])
def test_bytes_survive_however_many_pieces_they_make(num_bytes: int) -> None:
    """Both directions one after the other, twice, so that buffers are used again."""
    sent = [payload(num_bytes, seed) for seed in range(4)]

    def swap(channel: StagedChannel) -> list[bytes]:
        got = []
        for number, view in enumerate(sent):
            if (channel._rank == 0) == (number % 2 == 0):
                channel.send(memoryview(view), 30.0)
            else:
                got.append(bytes(channel.recv(num_bytes, 30.0)))
        return got

    assert on_both(swap) == [[sent[1], sent[3]], [sent[0], sent[2]]]


def test_a_piece_is_copied_while_the_one_before_it_is_on_its_way() -> None:
    """The second piece is handed over though the first has not been taken, and no third one."""
    handed_over: list[int] = []
    is_looking = threading.Event()

    class Watched:
        """A group that notes what it is given."""

        def __init__(self, group: dist.ProcessGroup) -> None:
            self.group = group

        def send(self, tensors: list[torch.Tensor], other: int, tag: int) -> dist.Work:
            handed_over.append(len(tensors[0]))
            work = self.group.send(tensors, other, tag)
            if len(handed_over) == 2:
                is_looking.set()
            return Held(work)

    class Held:
        """A work that nobody waits for before the other side takes it."""

        def __init__(self, work: dist.Work) -> None:
            self.work = work

        def wait(self, limit: timedelta) -> None:
            assert is_looking.is_set()
            self.work.wait(limit)

    def move(channel: StagedChannel) -> bytes | None:
        if channel._rank == 0:
            channel._group = Watched(channel._group)
            return channel.send(memoryview(bytes(range(20))), 30.0)
        assert is_looking.wait(30.0)
        return bytes(channel.recv(20, 30.0))

    assert on_both(move) == [None, bytes(range(20))]
    assert handed_over == [8, 8, 4]


class Mirror:
    """A group whose other rank sends back what it gets."""

    def __init__(self) -> None:
        self.pieces: deque[torch.Tensor] = deque()

    def send(self, tensors: list[torch.Tensor], other: int, tag: int) -> Mirror:
        self.pieces.append(tensors[0].clone())
        return self

    def recv(self, tensors: list[torch.Tensor], other: int, tag: int) -> Mirror:
        tensors[0].copy_(self.pieces.popleft())
        return self

    def is_completed(self) -> bool:
        return True

    def wait(self, limit: timedelta) -> None:
        assert limit > timedelta(0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("num_bytes", [5, 8, 100])
def test_bytes_survive_the_way_over_a_device(device: str, num_bytes: int) -> None:
    channel = StagedChannel(Mirror(), 0, 1, torch.device(device), PIECE_BYTES)
    for seed in range(3):
        sent = payload(num_bytes, seed)
        channel.send(memoryview(sent), 30.0)
        assert bytes(channel.recv(num_bytes, 30.0)) == sent


@pytest.mark.parametrize(("waiting", "stage"), [(0, "receive"), (3, "receive"), (0, "send")])
def test_a_rank_that_stops_halfway_is_named_at_the_limit(waiting: int, stage: str) -> None:
    other_may_go = threading.Event()

    def half(channel: StagedChannel) -> str | None:
        if channel._rank != waiting:  # sends or takes one piece of three
            if stage == "receive":
                channel.send(memoryview(bytes(PIECE_BYTES)), 30.0)
            else:
                channel.recv(PIECE_BYTES, 30.0)
            assert other_may_go.wait(30.0)
            return None
        began_s = time.monotonic()
        with pytest.raises(TransportError) as caught:
            if stage == "receive":
                channel.recv(3 * PIECE_BYTES, 0.3)
            else:
                channel.send(memoryview(bytes(1 << 24)), 0.3)
        assert 0.2 < time.monotonic() - began_s < 20
        other_may_go.set()
        return str(caught.value)

    error = next(filter(None, on_both(half)))
    other = 3 - waiting
    assert f"rank {waiting}, stage {stage}: no payload of rank {other} moves: " in error


def test_a_rank_that_hangs_up_is_named_at_once() -> None:
    def leave(channel: StagedChannel) -> str | None:
        if channel._rank == 0:
            channel.send(memoryview(bytes(PIECE_BYTES)), 30.0)
            channel._group = None  # the end of the last reference closes the connection
            return None
        with pytest.raises(TransportError) as caught:
            channel.recv(3 * PIECE_BYTES, 30.0)
        return str(caught.value)

    began_s = time.monotonic()
    (error,) = filter(None, on_both(leave))
    assert "rank 3, stage receive: no payload of rank 0 moves: " in error
    assert time.monotonic() - began_s < 20


def test_a_pair_whose_rank_the_run_does_without_ends_alone() -> None:
    """On the wall clock a run goes on without a rank that has long been silent."""
    transport = DeviceTransport.__new__(DeviceTransport)
    transport.gone, transport._pairs = set(), {3: _Pair(StagedChannel(Mirror(), 0, 3, CPU, 8))}

    def stuck() -> None:
        raise TransportError("no payload of rank 3 moves")

    transport._pairs[3].jobs.put(stuck)
    with pytest.raises(TransportError, match="rank 3"):
        transport._serve_pair(3)
    transport.gone.add(3)
    transport._pairs[3].jobs.put(stuck)
    transport._serve_pair(3)


def test_a_send_to_a_rank_that_never_commits_ends_with_its_name() -> None:
    transport = DeviceTransport.__new__(DeviceTransport)
    transport.rank, transport.limit_s = 0, 0.05
    began_s = time.monotonic()
    with pytest.raises(TransportError, match=r"rank 3 has not committed .*for 0\.1 s"):
        transport._send_next(_Pair(StagedChannel(Mirror(), 0, 3, CPU, 8)), 3)
    assert 0.1 <= time.monotonic() - began_s < 20
