"""Charged bytes by hand: 6 prunable entries, 2 dense ones, masks of 3 and of 6 entries.

A frame is a header of 120 bytes, 4 bytes a value, 4 a dense entry (they travel with level 0). A
level's positions are a bitmap of 6 bits, 1 byte. So level 0 takes 120 + 4 (3 + 2) = 140 bytes and
level 1 takes 120 + 4 x 3 = 132, each one more with positions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.fl.events import Dispatch
from fedgmr_hpc.fl.submodels import cut_masks, full_masks
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.runtime import ledger
from fedgmr_hpc.runtime.ledger import Ledger
from fedgmr_hpc.wire.frames import Frame, Kind, encode_frame


def make_masks(mask_id=1, densities=(0.5, 1.0)):
    return cut_masks(np.array([0, 3, 4, 1, 5, 2], np.uint32), densities, mask_id=mask_id)


def make_ledger(clients=2, **sections) -> Ledger:
    return ledger.make_ledger(make_config({"method": "fedgmr", **sections}), clients, 2)


def make_dispatch(levels: dict[int, int], masks=None, version=0) -> Dispatch:
    """`levels` of the receiving clients."""
    masks = masks or make_masks()
    assignments = tuple(
        Assignment(
            client=client,
            base_version=version,
            mask_id=masks.mask_id,
            level=level,
            density=masks.densities[level],
            num_kept=masks.counts[level],
            first_step=0,
            learning_rate=0.1,
            measure=False,
        )
        for client, level in levels.items()
    )
    packed, dense = np.zeros(masks.size, np.float32), np.zeros(2, np.float32)
    return Dispatch(version, masks, packed, dense, assignments, 0.0)


def parts(broadcast) -> dict[int, tuple[int, int, int]]:
    return {x.client: (x.begin, x.end, x.own_bytes) for x in broadcast.listeners}


# --- increments


def test_a_broadcast_leaves_the_server_once_and_is_charged_to_each_listener():
    ledger = make_ledger(3)
    broadcast = ledger.charge_dispatch(make_dispatch({0: 1, 1: 0, 2: 0}))
    assert broadcast.size == ledger.server_up_bytes == 141 + 133
    assert ledger.down_bytes.tolist() == ledger.last_down_bytes == [274, 141, 141]
    assert parts(broadcast) == {0: (0, 274, 274), 1: (0, 141, 141), 2: (0, 141, 141)}


def test_a_level_that_nobody_needs_is_not_sent():
    assert make_ledger().charge_dispatch(make_dispatch({1: 0})).size == 141


def test_positions_are_sent_once_a_mask_set():
    ledger = make_ledger()
    ledger.charge_dispatch(make_dispatch({0: 1, 1: 0}))
    broadcast = ledger.charge_dispatch(make_dispatch({0: 1, 1: 0}, version=1))
    assert broadcast.size == 140 + 132
    assert parts(broadcast) == {0: (0, 272, 272), 1: (0, 140, 140)}
    broadcast = ledger.charge_dispatch(make_dispatch({0: 1, 1: 0}, make_masks(2), version=2))
    assert broadcast.size == 141 + 133
    assert ledger.server_up_bytes == 274 + 272 + 274
    assert ledger.down_bytes.tolist() == [274 + 272 + 274, 141 + 140 + 141]


def test_positions_are_charged_only_to_clients_that_lack_them():
    ledger = make_ledger(3)
    ledger.charge_dispatch(make_dispatch({0: 1, 1: 0}))
    broadcast = ledger.charge_dispatch(make_dispatch({0: 1, 1: 1, 2: 1}, version=1))
    # the stream holds both levels' positions; client 0 knows both, client 1 knows level 0's
    assert broadcast.size == 274
    assert parts(broadcast) == {0: (0, 274, 272), 1: (0, 274, 273), 2: (0, 274, 274)}


def test_full_models_travel_with_one_small_run_of_positions():
    ledger = make_ledger(method="fedavg")
    masks = full_masks(6)
    first = ledger.charge_dispatch(make_dispatch({0: 0, 1: 0}, masks))
    again = ledger.charge_dispatch(make_dispatch({0: 0, 1: 0}, masks, version=1))
    assert (first.size, again.size) == (120 + 4 * 8 + 1, 120 + 4 * 8)


@pytest.mark.parametrize(("dtype", "item"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_charged_bytes_are_the_lengths_of_real_frames(dtype, item):
    ledger, masks = make_ledger(1, wire={"dtype": dtype}), make_masks()
    frames = [
        Frame(
            kind=Kind.INCREMENT,
            run=1,
            client=-1,
            base_version=0,
            mask_id=1,
            level=level,
            density=masks.densities[level],
            num_prunable=6,
            values=np.zeros(3, np.float32),
            positions=masks.positions(level),
            dense=np.zeros(0 if level else 2, np.float32),
            dtype=dtype,
        )
        for level in (0, 1)
    ]
    lengths = [len(encode_frame(frame)) for frame in frames]
    assert lengths == [121 + 5 * item, 121 + 3 * item]
    assert ledger.charge_dispatch(make_dispatch({0: 1})).size == sum(lengths)


# --- whole sub-models


def test_whole_sub_models_of_each_size_are_sent_one_after_the_other():
    ledger = make_ledger(3, transmission="whole")
    broadcast = ledger.charge_dispatch(make_dispatch({0: 1, 1: 0, 2: 0}))
    assert parts(broadcast) == {1: (0, 141, 141), 2: (0, 141, 141), 0: (141, 415, 274)}
    assert broadcast.size == ledger.server_up_bytes == 141 + 274
    assert ledger.down_bytes.tolist() == [274, 141, 141]


# --- nominal sizes


def test_nominal_sizes_are_s_times_density():
    ledger = make_ledger(3, links={"size": "nominal", "nominal_mb": 25.9811})
    broadcast = ledger.charge_dispatch(make_dispatch({0: 1, 1: 0, 2: 0}))
    assert broadcast.size == ledger.server_up_bytes == 25_981_100
    assert ledger.down_bytes.tolist() == [25_981_100, 12_990_550, 12_990_550]
    assert broadcast.upload_bytes == {0: 25_981_100, 1: 12_990_550, 2: 12_990_550}


def test_nominal_whole_sizes_add_up():
    ledger = make_ledger(2, transmission="whole", links={"size": "nominal", "nominal_mb": 6.0})
    broadcast = ledger.charge_dispatch(make_dispatch({0: 1, 1: 0}))
    assert broadcast.size == 9_000_000
    assert parts(broadcast)[0] == (3_000_000, 9_000_000, 6_000_000)


def test_nominal_sizes_are_those_of_the_densities_and_not_of_what_a_width_keeps():
    ledger = make_ledger(3, links={"size": "nominal", "nominal_mb": 6.0})
    masks = replace(make_masks(), densities=(0.05, 1.0))  # level 0 keeps half
    broadcast = ledger.charge_dispatch(make_dispatch({0: 1, 1: 0, 2: 0}, masks))
    assert broadcast.size == 6_000_000
    assert ledger.down_bytes.tolist() == [6_000_000, 300_000, 300_000]
    assert broadcast.upload_bytes == {0: 6_000_000, 1: 300_000, 2: 300_000}


# --- uploads


def test_uploads_are_values_and_the_dense_part():
    ledger = make_ledger()
    dispatch = make_dispatch({0: 1, 1: 0})
    broadcast = ledger.charge_dispatch(dispatch)
    assert broadcast.upload_bytes == {0: 120 + 4 * 8, 1: 120 + 4 * 5}
    assert ledger.up_bytes.tolist() == [0, 0]  # charged when they arrive
    assert [ledger.charge_upload(a) for a in dispatch.assignments] == [152, 140]
    ledger.charge_upload(dispatch.assignments[1])
    assert ledger.up_bytes.tolist() == [152, 280]
    assert ledger.server_down_bytes == 432


def test_squared_gradients_are_charged_in_full_precision():
    for dtype, item in (("fp32", 4), ("fp16", 2)):
        ledger = make_ledger(submodel={"score": "g"}, wire={"dtype": dtype})
        broadcast = ledger.charge_dispatch(make_dispatch({0: 1, 1: 0}))
        assert broadcast.upload_bytes == {0: 120 + item * 8 + 4 * 6, 1: 120 + item * 5 + 4 * 3}
