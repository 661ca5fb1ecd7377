"""Error feedback by hand, and int8 in the worker, the ledger and the pool."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.fl.client_memory import Memories
from fedgmr_hpc.fl.events import Dispatch
from fedgmr_hpc.fl.submodels import full_masks
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.runtime.ledger import PositionCodes, make_ledger
from fedgmr_hpc.runtime.rank_pool import RankPool
from fedgmr_hpc.runtime.worker import ReceivedModel, Worker
from fedgmr_hpc.transport.contract import Tag, Transport, make_inproc
from fedgmr_hpc.wire.error_feedback import round_with_feedback
from fedgmr_hpc.wire.frames import Frame, Kind, decode_frame, encode_frame
from fedgmr_hpc.wire.int8 import round_values

# A first value of 127 makes the block's scale 1, so all others are rounded to whole numbers.


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def at(*positions: int) -> np.ndarray:
    return np.array(positions, np.int64)


class ErrorFeedback:
    """Uploads of clients of one rank."""

    def __init__(self, num_prunable: int) -> None:
        self.memories = Memories(num_prunable)

    def round(self, client: int, values: np.ndarray, mask_id: int, positions) -> np.ndarray:
        return round_with_feedback(self.memories.open(client, mask_id, positions), values)


def test_three_uploads_by_hand():
    feedback, values = ErrorFeedback(3), floats(127, 0.375, -1.25)
    sent = [feedback.round(0, values, 0, None).tolist() for _ in range(3)]
    # 0.375 -> 0 keeps 0.375; 0.75 -> 1 keeps -0.25; 0.125 -> 0
    # -1.25 -> -1 keeps -0.25; -1.5 -> -2 keeps 0.5; -0.75 -> -1
    assert sent == [[127, 0, -1], [127, 1, -2], [127, 0, -1]]


def test_what_is_uploaded_stays_as_it_is():
    feedback, values = ErrorFeedback(2), floats(127, 0.375)
    for _ in range(2):
        feedback.round(0, values, 0, None)
    assert values.tolist() == [127, 0.375]


def test_the_mean_of_uploads_converges_with_feedback_and_not_without():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    feedback = ErrorFeedback(1000)
    means = {}
    total = np.zeros(1000)
    for upload in range(1, 257):
        total += feedback.round(0, values, 0, None)
        means[upload] = np.abs(total / upload - values).max()
    bias = np.abs(round_values(values) - values).max()
    assert bias > 0.01  # half a step of about 3 / 127
    assert means[16] < bias * 1.5 / 16 and means[256] < bias * 1.5 / 256


def test_every_client_has_its_own_remainder():
    feedback, values = ErrorFeedback(2), floats(127, 0.375)
    assert feedback.round(0, values, 0, None).tolist() == [127, 0]
    assert feedback.round(1, values, 0, None).tolist() == [127, 0]
    assert feedback.round(0, values, 0, None).tolist() == [127, 1]
    assert feedback.round(1, values, 0, None).tolist() == [127, 1]


def test_a_remainder_belongs_to_its_natural_entry():
    feedback = ErrorFeedback(6)
    feedback.round(0, floats(127, 0.375, 0.25), 1, at(5, 2, 0))  # keeps 0, 0.375, 0.25
    sent = feedback.round(0, floats(0.25, 127, 0.25, 0.25), 2, at(0, 5, 3, 2))
    assert sent.tolist() == [0, 127, 0, 1]  # 0.5, 127, 0.25 and 0.625


def test_an_entry_that_was_cut_off_comes_back_without_a_remainder():
    feedback = ErrorFeedback(3)
    feedback.round(0, floats(127, 0.375, 0.375), 1, at(0, 1, 2))
    feedback.round(0, floats(127, 0.375), 2, at(0, 1))  # 0.75 -> 1 keeps -0.25
    sent = feedback.round(0, floats(127, 0.875, 0.375), 3, at(0, 1, 2))
    assert sent.tolist() == [127, 1, 0]  # 0.625 and 0.375


@pytest.mark.parametrize("is_growing", [True, False])
def test_remainders_move_between_a_mask_and_everything(is_growing):
    feedback = ErrorFeedback(3)
    everything, some = (floats(0.375, 127, 0.375), 2, None), (floats(127, 0.375), 1, at(1, 2))
    first, second = (some, everything) if is_growing else (everything, some)
    feedback.round(0, *first)
    assert feedback.round(0, *second).tolist() == ([0, 127, 1] if is_growing else [127, 1])


def test_a_longer_part_of_the_same_order_keeps_its_beginning():
    feedback, order = ErrorFeedback(4), at(3, 1, 0, 2)
    feedback.round(0, floats(127, 0.375), 1, order[:2])
    sent = feedback.round(0, floats(127, 0.375, 0.375), 1, order[:3])
    assert sent.tolist() == [127, 1, 0]


def test_positions_may_change_after_the_upload():
    feedback, positions = ErrorFeedback(3), at(0, 1)
    feedback.round(0, floats(127, 0.375), 1, positions)
    positions[:] = 2, 0
    assert feedback.round(0, floats(127, 0.375), 2, at(0, 1)).tolist() == [127, 1]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_sent_so_and_not_kept(wrong):
    feedback = ErrorFeedback(2)
    feedback.round(0, floats(127, 0.375), 0, None)
    assert np.isnan(feedback.round(0, floats(127, wrong), 0, None)).all()
    assert feedback.round(0, floats(127, 0.375), 0, None).tolist() == [127, 0]


def test_what_is_sent_is_carried_without_a_further_error():
    rng, feedback = np.random.default_rng(0), ErrorFeedback(700)
    for _ in range(4):
        sent = feedback.round(0, rng.normal(size=700).astype(np.float32), 0, None)
        assert np.array_equal(round_values(sent), sent)


# --- in the worker, the ledger and the pool


def make_task(client: int = 0, num_kept: int = 3) -> Assignment:
    return Assignment(
        client=client,
        base_version=0,
        mask_id=0,
        level=0,
        density=1.0,
        num_kept=num_kept,
        first_step=0,
        learning_rate=0.1,
        measure=False,
    )


def make_frame(kind: Kind, num_prunable: int, **changed) -> Frame:
    same = dict(run=1, client=0, base_version=0, mask_id=0, level=0, density=1.0)
    return Frame(kind=kind, num_prunable=num_prunable, **same, **changed)


def make_worker(rule: str, trained: list[float], dense: list[float]) -> SimpleNamespace:
    """All of a worker that makes an update of 4 prunable entries out of what was trained."""
    method = {"mask_aware": "fedgmr", "fedbuff": "fedbuff"}[rule]
    training = SimpleNamespace(entries=lambda: (torch.tensor(trained), torch.tensor(dense)))
    return SimpleNamespace(
        config=make_config({"method": method, "wire": {"dtype": "int8"}}),
        trainings=[training],
        run_id=1,
        num_prunable=4,
        num_changed=(4, 1) if rule == "fedbuff" else None,
        _squares=lambda begun: np.empty(0, np.float32),
    )


def receive(values: np.ndarray, positions: np.ndarray, dense: np.ndarray) -> ReceivedModel:
    received = ReceivedModel(4)
    received.accept(make_frame(Kind.INCREMENT, 4, values=values, positions=positions, dense=dense))
    return received


@pytest.mark.parametrize("rule", ["mask_aware", "fedbuff"])
def test_a_worker_adds_what_its_last_upload_lost(rule):
    model, dense = floats(1, 1, 1), floats(0.5)
    base = 1.0 if rule == "fedbuff" else 0.0
    worker = make_worker(rule, [base + 127, base + 0.375, base - 1.25], [base / 2 + 0.1])
    received = receive(model, np.array([3, 0, 1], np.int32), dense)
    begun = SimpleNamespace(
        task=make_task(),
        received=received,
        training=worker.trainings[0],
        trained=SimpleNamespace(num_samples=1),
        memory=Memories(4).open(0, 0, received.kept(3)),
    )
    uploads = [
        decode_frame(encode_frame(Worker._update(worker, begun, 0.0, 0.0))) for _ in range(3)
    ]
    assert [upload.values.tolist() for upload in uploads] == [
        [127, 0, -1],
        [127, 1, -2],
        [127, 0, -1],
    ]
    np.testing.assert_allclose([upload.dense[0] for upload in uploads], 0.1, rtol=1e-6)


@pytest.mark.parametrize("num_kept", [1, 255, 256, 257])
def test_charged_bytes_are_the_lengths_of_int8_frames(num_kept):
    ledger = make_ledger(make_config({"wire": {"dtype": "int8"}}), 1, num_dense=2)
    values, dense = np.ones(num_kept, np.float32), np.ones(2, np.float32)
    frame = make_frame(Kind.UPDATE, num_kept, values=values, dense=dense, dtype="int8")
    charged = ledger.upload_bytes(make_task(num_kept=num_kept))
    blocks, padded = {1: (1, 4), 255: (1, 256), 256: (1, 256), 257: (2, 260)}[num_kept]
    assert charged == len(encode_frame(frame)) == 120 + 4 * blocks + padded + 4 * 2


def tasks_by_rank(ranks: list[Transport]) -> dict[int, list[int]]:
    """Clients of the tasks that have reached each rank since the last look."""
    found: dict[int, list[int]] = {}
    for rank in ranks:
        while (message := rank.recv_now()) is not None:
            if message.tag == Tag.TASK:
                client = json.loads(bytes(message.payload))["client"]
                found.setdefault(rank.rank, []).append(client)
    return found


def make_pool(dtype: str) -> tuple[RankPool, list[Transport]]:
    server, *ranks = make_inproc(4)
    config = make_config({"wire": {"dtype": dtype}})
    return RankPool(config, server, 1, PositionCodes(), lambda: None), list(ranks)


def submit(pool: RankPool, clients: list[int]) -> None:
    packed, dense = np.zeros(3, np.float32), np.zeros(1, np.float32)
    tasks = tuple(make_task(client) for client in clients)
    pool.submit(Dispatch(0, full_masks(3), packed, dense, tasks, 0.0))


def test_with_int8_a_client_always_has_the_same_rank():
    pool, ranks = make_pool("int8")
    submit(pool, [1, 4, 7, 3])  # three of them belong to rank 2, which holds two tasks at most
    assert tasks_by_rank(ranks) == {1: [3], 2: [1, 4]}
    pool.ranks[2].owes -= 1
    submit(pool, [5])
    assert tasks_by_rank(ranks) == {2: [7], 3: [5]}


def test_without_int8_a_client_has_any_rank():
    pool, ranks = make_pool("fp16")
    submit(pool, [1, 4, 7, 3])
    assert tasks_by_rank(ranks) == {1: [1, 7], 2: [3], 3: [4]}
