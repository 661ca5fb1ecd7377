"""Who gets which work on the wall clock, where clients stay on their ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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


def test_test_chunks_go_to_a_rank_at_leisure_while_clients_of_another_train() -> None:
    sent: Any = Sent()
    unused: Any = SimpleNamespace()
    pool = LivePool(
        load_config("digits", ["clock=wall"]),
        sent,
        1,
        unused,
        lambda: None,
        clock=unused,
        rank_of={0: 1, 1: 2},
        upload_bytes=lambda task: 0,
        record=lambda row: None,
    )
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
