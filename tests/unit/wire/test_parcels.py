"""Frames that are handed over as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedgmr_hpc.config.sections import WireConfig
from fedgmr_hpc.transport.contract import Tag, make_inproc
from fedgmr_hpc.wire.frames import Frame, Kind, decode_frame
from fedgmr_hpc.wire.parcels import Parcel, hands_over, open_parcel
from fedgmr_hpc.wire.positions import encode_positions


def make_parcel() -> Parcel:
    positions = np.array([1, 4, 5], np.int32)
    frame = Frame(
        kind=Kind.INCREMENT,
        run=7,
        client=-1,
        base_version=2,
        mask_id=1,
        level=0,
        density=0.5,
        num_prunable=6,
        values=np.arange(3, dtype=np.float32),
        positions=positions,
        dense=np.ones(2, np.float32),
    )
    return Parcel(frame, encode_positions(positions, 6))


def test_what_is_handed_over_is_counted_as_its_bytes_and_cannot_be_written_to() -> None:
    one, two = make_inproc(2)
    parcel = make_parcel()
    parcel.hand(one, 1, Tag.FRAME)
    handed = open_parcel(two.recv(1.0))
    one.send(1, Tag.FRAME, *parcel.shared.parts)
    message = two.recv(1.0)
    assert handed == open_parcel(message) == decode_frame(b"".join(parcel.shared.parts))
    assert one.sent_bytes == two.received_bytes == 2 * len(message.payload)
    assert parcel.num_bytes == parcel.shared.num_bytes
    for array in (handed.values, handed.positions, handed.dense, handed.extra):
        assert array is not None and not array.flags.writeable


def test_only_fp32_frames_between_ranks_of_one_process_are_handed_over() -> None:
    one, _ = make_inproc(2)
    assert hands_over(WireConfig(), one)
    assert not hands_over(WireConfig(verify=True), one)
    assert not hands_over(WireConfig(dtype="fp16"), one)


def test_a_frame_that_could_not_be_encoded_is_not_handed_over() -> None:
    one, _ = make_inproc(2)
    wrong = Parcel(replace(make_parcel().frame, values=np.zeros(3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values must be float32"):
        wrong.hand(one, 1, Tag.FRAME)
