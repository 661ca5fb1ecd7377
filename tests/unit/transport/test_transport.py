"""What the bindings share (fair inbox, back-off, views of bytes), the in-process binding, and what
of the device binding needs no second rank.
"""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
import torch

from fedgmr_hpc.config.errors import TransportError, TransportTimeout
from fedgmr_hpc.transport.contract import Backoff, Inbox, Message, Tag, as_bytes, make_inproc
from fedgmr_hpc.transport.nccl import NcclTransport, pair_devices


def put_all(inbox: Inbox, *sources: int) -> None:
    for number, source in enumerate(sources):
        inbox.put(Message(source, Tag.FRAME, memoryview(bytes([number]))))


def pop_all(inbox: Inbox) -> list[tuple[int, int]]:
    found = iter(inbox.pop, None)
    return [(message.source, message.payload[0]) for message in found]


def test_inbox_takes_turns_and_keeps_each_order():
    inbox = Inbox()
    put_all(inbox, 1, 1, 1, 1, 2, 2, 3)
    assert pop_all(inbox) == [(1, 0), (2, 4), (3, 6), (1, 1), (2, 5), (1, 2), (1, 3)]


def test_inbox_wakes_a_waiting_thread():
    inbox = Inbox()
    threading.Timer(0.05, put_all, (inbox, 4)).start()
    start_s = time.monotonic()
    message = inbox.pop(start_s + 120)
    assert message is not None and message.source == 4
    assert time.monotonic() - start_s < 60


def test_inbox_keeps_its_first_error():
    inbox = Inbox()
    inbox.fail(TransportError("first"))
    inbox.fail(TransportError("second"))
    with pytest.raises(TransportError, match="first"):
        inbox.pop(time.monotonic() + 10)


def test_what_a_rank_says_of_its_failure_comes_before_the_error_that_it_made():
    inbox = Inbox()
    put_all(inbox, 1)
    inbox.put(Message(2, Tag.FAILURE, memoryview(b"why")))
    inbox.fail(TransportError("connection lost"))
    message = inbox.pop()
    assert message is not None and bytes(message.payload) == b"why"
    with pytest.raises(TransportError, match="connection lost"):
        inbox.pop()


def test_a_rank_that_is_through_waits_twice_as_long_as_a_run_does():
    (transport,) = make_inproc(1)
    assert (transport.limit_s, transport.close_timeout_s) == (600, 60)
    transport.allow(5.0)
    assert (transport.limit_s, transport.close_timeout_s) == (5, 60)
    transport.allow(900.0)
    assert (transport.limit_s, transport.close_timeout_s) == (900, 1800)


def test_backoff_grows_to_its_longest_and_resets(monkeypatch):
    now_s, sleeps = 0.0, []

    def pass_time(duration_s: float) -> None:
        nonlocal now_s
        now_s += duration_s

    def sleep(duration_s: float) -> None:
        sleeps.append(duration_s)
        pass_time(duration_s)

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(os, "sched_yield", lambda: pass_time(1e-6))
    backoff, looks = Backoff(), 0
    while now_s < 0.3:
        backoff.wait()
        looks += 1
    assert looks < 240  # 0.3 s of 2 ms sleeps, after some yields and short ones
    assert sleeps == sorted(sleeps)
    assert (sleeps[0], sleeps[-1]) == (Backoff.SHORTEST_S, Backoff.LONGEST_S)
    backoff.reset()
    num_sleeps = len(sleeps)
    backoff.wait()
    assert len(sleeps) == num_sleeps


@pytest.mark.parametrize(
    ("part", "num_bytes"),
    [(b"", 0), (b"ab", 2), (np.zeros((2, 3), np.float32), 24), (np.zeros((0, 3)), 0)],
)
def test_as_bytes(part, num_bytes):
    view = as_bytes(part)
    assert (view.format, view.ndim, len(view)) == ("B", 1, num_bytes)


def test_a_read_only_part_is_delivered_uncopied():
    one, two = make_inproc(2)
    payload = bytes(100_000)
    one.send(1, Tag.FRAME, payload)
    assert two.recv(1).payload.obj is payload


def test_a_writable_part_may_change_after_sending():
    one, two = make_inproc(2)
    payload = bytearray(100_000)
    one.send(1, Tag.FRAME, payload)
    one.flush(1)
    payload[0] = 1
    assert two.recv(1).payload[0] == 0


def test_no_such_rank():
    with pytest.raises(ValueError, match="dest must be a rank between 0 and 1 .got 2"):
        make_inproc(2)[0].send(2, Tag.STOP)


def test_timeout_names_rank_and_stage():
    with pytest.raises(TransportTimeout, match=r"^rank 1, stage receive: no message within 0.01 s"):
        make_inproc(2)[1].recv(0.01)


def test_abort_ends_every_wait():
    ends = make_inproc(3)
    caught: list[str] = []

    def wait(rank: int) -> None:
        with pytest.raises(TransportError) as error:
            ends[rank].recv(30)
        caught.append(str(error.value))

    threads = [threading.Thread(target=wait, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    ends[2].abort(3)
    for thread in threads:
        thread.join(5)
    assert caught == ["rank 2 aborted with code 3"] * 2
    for act in (lambda: ends[0].send(1, Tag.STOP), ends[1].poll):
        with pytest.raises(TransportError, match="rank 2 aborted"):
            act()


# --- devices


@pytest.mark.parametrize(
    ("visible", "own", "devices"),
    [
        (["a", "b"], ["a", "a"], [0, 1]),
        (["a", "b"], ["a", "b"], [0, 0]),
        (["a", "b", "c"], ["-", "a", "b", "c"], [0, 1, 2, 0]),
        (["a", "b"], ["-", "a", "b", "a", "b"], [0, 1, 0, 1, 0]),  # two clients a device
        (["a"], ["-", "x", "y"], [0, 0, 0]),  # clients on other hosts
        (["a", "b"], ["-", "x", "y", "z"], [0, 0, 1, 0]),
        (["a"], ["a"], [0]),
    ],
)
def test_the_server_stages_on_another_device_than_its_client(visible, own, devices):
    assert pair_devices(visible, own) == devices


def test_one_device_for_both_is_refused():
    message = "ranks 0 and 2 share the only CUDA device that rank 0 sees"
    with pytest.raises(ValueError, match=rf"^transport must be .* \(got 'nccl'\): {message}$"):
        pair_devices(["a"], ["a", "x", "a"])


def test_nccl_without_a_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("RANK", "3")
    message = "rank 3 sees no CUDA device"
    with pytest.raises(ValueError, match=rf"^transport must be .* \(got 'nccl'\): {message}$"):
        NcclTransport()
