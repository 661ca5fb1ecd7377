"""Who gets which work on the wall clock, where clients stay on their ranks."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from fedgmr_hpc.config.errors import RunError, TransportTimeout
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.runtime.wall.pool import LivePool
from fedgmr_hpc.runtime.wall.transfers import Cycle
from fedgmr_hpc.training.chunks import Evaluation, Part
from fedgmr_hpc.transport.contract import Tag


class Sent:
    """A transport of three ranks that keeps to whom what is sent."""

    size, shares_memory = 3, False

    def __init__(self) -> None:
        self.messages: list[tuple[int, Tag]] = []

    def send(self, dest: int, tag: Tag, *parts: bytes) -> None:
        self.messages.append((dest, tag))

    def poll(self) -> None:
        pass


def make_pool() -> LivePool:
    """A pool of two ranks with a client each."""
    sent: Any = Sent()
    unused: Any = SimpleNamespace()
    return LivePool(
        load_config("digits", ["clock=wall", "run.timeout_s=7"]),
        sent,
        1,
        unused,
        lambda: None,
        clock=unused,
        rank_of={0: 1, 1: 2},
        upload_bytes=lambda task: 0,
        record=lambda row: None,
    )


def test_test_chunks_go_to_a_rank_at_leisure_while_clients_of_another_train() -> None:
    pool = make_pool()
    sent: Any = pool.transport
    task = Assignment(0, 0, 0, 0, 1.0, 10, 0, 0.1, False)
    pool.transfers.cycles[0] = cycle = Cycle(task, 1, None, 0.0)  # it has all of its dispatch
    assert cycle.is_training
    frame: Any = SimpleNamespace(
        frame=SimpleNamespace(base_version=0), shared=SimpleNamespace(parts=())
    )
    pool.evaluate(Evaluation(0, frame, {Part("test"): {0: None, 64: None}}), [Part("test")])
    assert sent.messages == [(2, Tag.FRAME), (2, Tag.EVALUATE)]
    del pool.transfers.cycles[0]
    pool._feed()
    assert sent.messages[2:] == [(1, Tag.FRAME), (1, Tag.EVALUATE)]


def test_time_begins_when_every_rank_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, asked = make_pool(), list[int]()
    monkeypatch.setattr(pool, "_ask_time", asked.append)
    pool.clock.start = lambda: asked.append(0)  # type: ignore[method-assign]
    pool.start()
    assert asked == [1, 2, 0]


def test_a_rank_that_never_answers_is_told() -> None:
    pool: Any = make_pool()

    def recv(timeout_s: float) -> None:
        raise TransportTimeout("nothing came")

    pool.transport.recv = recv
    with pytest.raises(RunError, match="rank 1 has been silent for 7 s since the start"):
        pool.start()


def test_the_server_is_asked_for_other_duties_while_nothing_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool: Any = make_pool()
    monkeypatch.setattr("fedgmr_hpc.runtime.wall.pool.TURN_S", 0.02)
    monkeypatch.setattr(pool, "pump", lambda awaited: time.sleep(0.005))
    assert pool.next() is None
    pool.happened.append("an arrival")
    assert pool.next() == "an arrival"
