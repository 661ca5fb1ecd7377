"""What the server side does with records: pool placement, rows, frames, without real ranks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from fedgmr_hpc.fl.events import Dispatch, Lost
from fedgmr_hpc.fl.submodels import cut_masks
from fedgmr_hpc.runtime.dispatch_frames import DispatchFrames
from fedgmr_hpc.runtime.ledger import PositionCodes
from fedgmr_hpc.runtime.server import Server
from fedgmr_hpc.training.chunks import Evaluation, Part
from fedgmr_hpc.wire.frames import Frame, Kind, decode_frame
from fedgmr_hpc.wire.parcels import Parcel
from fedgmr_hpc.wire.received_model import ReceivedModel

KEYS = np.array([1, 3, 5, 2, 4, 0], np.uint32)  # 5 0 3 1 4 2, most important first
PACKED = np.array([10, 11, 12, 13, 14, 15], np.float32)
DENSE = np.array([7, 8], np.float32)


def outgoing(version: int = 4, mask_id: int = 3) -> DispatchFrames:
    masks = cut_masks(KEYS.copy(), [0.34, 0.67, 1.0], mask_id=mask_id)
    dispatch = Dispatch(version, masks, PACKED, DENSE, (), 0.0)
    return DispatchFrames(dispatch, "fp32", 99, PositionCodes())


def sent(parcel: Parcel) -> Frame:
    return decode_frame(b"".join(parcel.shared.parts))


def test_increments_carry_their_slice_and_the_first_the_dense_part() -> None:
    frames = [sent(outgoing().parcel(level, with_positions=True)) for level in range(3)]
    assert [frame.values.tolist() for frame in frames] == [[10, 11], [12, 13], [14, 15]]
    assert [frame.positions.tolist() for frame in frames] == [[0, 5], [1, 3], [2, 4]]
    assert [frame.dense.tolist() for frame in frames] == [[7, 8], [], []]
    assert {(f.kind, f.run, f.base_version, f.mask_id) for f in frames} == {
        (Kind.INCREMENT, 99, 4, 3)
    }


def test_a_rank_puts_increments_together_and_keeps_positions_between_versions() -> None:
    received, first, second = ReceivedModel(6), outgoing(4), outgoing(5)
    for level in range(2):
        received.accept(sent(first.parcel(level, with_positions=True)))
    values, dense, positions = received.sub_model(4)
    assert values.tolist() == [10, 11, 12, 13] and dense.tolist() == [7, 8]
    assert positions is not None and positions.tolist() == [0, 5, 1, 3]
    received.accept(sent(second.parcel(0, with_positions=False)))
    assert received.version == 5 and received.sub_model(2)[2].tolist() == [0, 5]


def test_a_new_refresh_leaves_the_positions_in_use_alone() -> None:
    received = ReceivedModel(6)
    received.accept(sent(outgoing().parcel(0, with_positions=True)))
    in_use = received.sub_model(2)[2]
    masks = cut_masks(5 - KEYS, [0.34, 1.0], mask_id=4)
    newer = DispatchFrames(Dispatch(5, masks, PACKED, DENSE, (), 0.0), "fp32", 99, PositionCodes())
    received.accept(sent(newer.parcel(0, with_positions=True)))
    assert in_use.tolist() == [0, 5]
    assert received.sub_model(2)[2].tolist() == [2, 4]


def test_changes_are_of_what_is_trained_and_statistics_stay_values() -> None:
    received = ReceivedModel(4)
    received.packed[:], received.dense = [1, 2, 3, 4], np.array([10, 20], np.float32)
    received.positions[:], received.ends = [3, 0, 1, 2], [3]
    values, dense = np.full(3, 5, np.float32), np.array([11, 22], np.float32)
    received.subtract(values, dense, (3, 1))  # the fourth and the second are statistics
    assert values.tolist() == [5, 3, 2] and dense.tolist() == [1, 22]
    received.ends, values = [4], np.full(4, 5, np.float32)
    received.subtract(values, dense, (3, 2))
    assert values.tolist() == [4, 3, 2, 5] and dense.tolist() == [-9, 2]


def test_evaluation_sums_in_chunk_order_whatever_came_first() -> None:
    whole = Part("validation")
    evaluation = Evaluation(1, None, {whole: dict.fromkeys((0, 2, 4)), Part("test"): {}})
    parts = {4: (1, 0.1), 0: (2, 1e16), 2: (1, 1.0)}
    for start, part in parts.items():
        assert not evaluation.is_done(whole)
        evaluation.chunks[whole][start] = part
    assert evaluation.is_done(whole)
    assert evaluation.sums(whole) == (4, 1e16 + 1.0 + 0.1)


def test_a_client_in_quarantine_is_not_lost_as_well() -> None:
    happened = [Lost(5.0, (3,), "silent"), Lost(5.0, (4,), "silent")]
    server = Server.__new__(Server)
    server.clock = SimpleNamespace(next=lambda: happened.pop(0))
    server.coordinator = SimpleNamespace(quarantined={3})
    assert server._next_event() is None
    assert server._next_event() == Lost(5.0, (4,), "silent")
