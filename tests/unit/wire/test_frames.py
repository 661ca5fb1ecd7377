"""The wire format: literal headers, round trips, every damage detected, the smallest codec."""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.errors import WireError
from fedgmr_hpc.wire import frames
from fedgmr_hpc.wire.frames import Frame, Kind, decode_frame, encode_frame, frame_bytes
from fedgmr_hpc.wire.positions import Codec, decode_positions, encode_positions

NO_FLOATS = np.empty(0, np.float32)


def make_frame(num_values=3, num_dense=2, **changed) -> Frame:
    fields = dict(
        kind=Kind.UPDATE,
        run=7,
        client=5,
        base_version=11,
        mask_id=3,
        level=2,
        density=0.25,
        num_prunable=1000,
        values=np.arange(num_values, dtype=np.float32),
        dense=-np.arange(num_dense, dtype=np.float32),
        train_loss=1.5,
        score=float("nan"),
        num_samples=64,
    )
    return Frame(**{**fields, **changed})


def reseal(wire: bytes) -> bytes:
    """The same bytes with the checksum they should have, to reach the checks behind it."""
    wire = bytearray(wire)
    wire[112:120] = bytes(8)
    wire[112:120] = struct.pack("<Q", frames._checksum(memoryview(wire)))
    return bytes(wire)


# --- layout


def test_header_layout():
    wire = bytes(encode_frame(make_frame(positions=np.array([1, 2, 3], np.int32))))
    assert wire[:8] == b"FGMR\x01\x02\x04\x00"
    assert struct.unpack("<Q", wire[8:16]) == (7,)
    assert struct.unpack("<iiiI", wire[16:32]) == (5, 3, 2, 3)
    assert struct.unpack("<q", wire[32:40]) == (11,)
    assert struct.unpack("<d", wire[40:48]) == (0.25,)
    assert struct.unpack("<Q", wire[48:56]) == (1000,)
    assert struct.unpack("<d", wire[56:64]) == (1.5,)
    assert wire[64:72] == struct.pack("<d", float("nan"))
    assert struct.unpack("<Q", wire[72:80]) == (64,)
    assert struct.unpack("<4Q", wire[80:112]) == (0, 12, 8, 2)
    assert wire[120:] == struct.pack("<5f", 0, 1, 2, -0.0, -1) + bytes([1, 2])


def test_checksum_is_xxh3_of_the_frame_with_the_field_zero():
    wire = bytes(encode_frame(make_frame()))
    assert xxhash.xxh3_64_intdigest(wire[:112] + bytes(8) + wire[120:]) == int.from_bytes(
        wire[112:120], "little"
    )


def test_frame_bytes_is_exact():
    positions = np.array([0, 4, 900], np.int32)
    for dtype, item in (("fp32", 4), ("fp16", 2), ("bf16", 2)):
        known = make_frame(dtype=dtype)
        assert len(encode_frame(known)) == frame_bytes(3, 2, dtype=dtype) == 120 + 5 * item
    frame = make_frame(positions=positions, extra=np.ones(3, np.float32))
    _, packed = encode_positions(positions, 1000)
    size = frame_bytes(3, 2, num_extra=3, positions_bytes=len(packed))
    assert len(encode_frame(frame)) == size == 120 + 4 * 8 + 4


def test_fp32_is_not_copied():
    wire = encode_frame(make_frame())
    decoded = decode_frame(wire)
    assert np.shares_memory(decoded.values, np.frombuffer(wire, np.uint8))
    assert decoded.values.flags.aligned and not decoded.values.flags.writeable


def test_no_pickle_on_the_data_path():
    for source in Path(frames.__file__).parent.glob("*.py"):
        assert "pickle" not in source.read_text(), source.name


# --- round trips

densities = st.floats(0, 1)
sizes = st.sampled_from([0, 1, 2, 7, 8, 9, 127, 128, 129, 1000, 20_000])


def draw_positions(n: int, density: float, seed: int, clustered: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.random(n) if not clustered else np.repeat(rng.random(n // 50 + 1), 50)[:n]
    return np.flatnonzero(noise < density).astype(np.int32)


@settings(max_examples=150, deadline=None)
@given(sizes, densities, st.integers(0, 2**32), st.booleans())
def test_positions_round_trip(n, density, seed, clustered):
    positions = draw_positions(n, density, seed, clustered)
    codec, data = encode_positions(positions, n)
    decoded = decode_positions(codec, bytes(data), n, len(positions))
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, positions)


def draw_integers(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count] that are exact in all types: with int8 every block's scale is 1."""
    values = rng.integers(-127, 128, count).astype(np.float32)
    values[::256] = 127
    return values


@settings(max_examples=150, deadline=None)
@given(sizes, densities, st.integers(0, 2**32), st.sampled_from(["fp32", "fp16", "bf16", "int8"]),
       st.booleans(), st.booleans(), st.sampled_from(list(Kind)))  # fmt: skip
def test_frame_round_trip(n, density, seed, dtype, known, with_extra, kind):
    positions = draw_positions(n, density, seed, False)
    rng = np.random.default_rng(seed)
    count = len(positions)
    frame = make_frame(
        kind=kind,
        num_prunable=n,
        positions=None if known else positions,
        values=draw_integers(rng, count),
        dense=rng.integers(-128, 128, int(rng.integers(0, 9))).astype(np.float32),
        extra=rng.random(count, dtype=np.float32) if with_extra else NO_FLOATS,
        dtype=dtype,
    )
    assert decode_frame(encode_frame(frame)) == frame


def test_frames_differ_when_a_bit_does():
    assert make_frame() == make_frame()
    for changed in (
        dict(client=6),
        dict(values=np.array([0, 1, 3], np.float32)),
        dict(positions=np.array([0, 1, 2], np.int32)),
        dict(dense=np.array([0.0, -1.0], np.float32)),  # -0.0 became 0.0
        dict(score=0.0),
    ):
        assert make_frame() != make_frame(**changed)


def test_strided_values_are_sent():
    values = np.arange(10, dtype=np.float32)[::2]
    for dtype in ("fp32", "fp16", "bf16", "int8"):
        values[-1] = 127  # with int8 a scale of 1
        decoded = decode_frame(encode_frame(make_frame(values=values, dtype=dtype)))
        assert np.array_equal(decoded.values, values)


def test_bf16_rounds_to_nearest_even_and_keeps_nan():
    bits = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x7FFFFFFF, 0xFF800001]
    rounded = frames._to_bf16(np.array(bits, np.uint32).view(np.float32))
    assert [hex(each) for each in rounded] == [
        "0x3f80", "0x3f82", "0x3f81", "0x7f80", "0x7f80", "0x7fff", "0xffc0",
    ]  # fmt: skip


def test_bf16_agrees_with_torch():
    import torch  # the reference for bf16

    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    values = bits.view(np.float32)
    ours = (frames._to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    theirs = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_fp16_overflow_is_infinite():
    frame = make_frame(values=np.array([65504, -1e6, np.nan], np.float32), dtype="fp16")
    assert decode_frame(encode_frame(frame)).values.tolist()[:2] == [65504, -np.inf]


# --- the smallest codec


def varint_bytes(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def exact_sizes(positions: list[int], n: int) -> dict[Codec, int]:
    """Every codec's size, entry by entry as the format says."""
    bitmap = bytearray((n + 7) // 8)
    for position in positions:
        bitmap[position // 8] |= 1 << position % 8
    gaps = [b - a - 1 for a, b in itertools.pairwise([-1, *positions])]
    starts = [i for i, gap in enumerate(gaps) if gap or i == 0]
    lengths = [b - a for a, b in itertools.pairwise([*starts, len(gaps)])] if gaps else []
    ranges = [*(gaps[i] for i in starts), *(length - 1 for length in lengths)]
    return {
        Codec.BITMAP: len(bitmap),
        Codec.ZBITMAP: len(zlib.compress(bitmap, 1)),
        Codec.DELTAS: sum(map(varint_bytes, gaps)),
        Codec.RANGES: sum(map(varint_bytes, ranges)),
    }


@settings(max_examples=150, deadline=None)
@given(sizes, densities, st.integers(0, 2**32), st.booleans())
def test_the_smallest_codec_wins(n, density, seed, clustered):
    positions = draw_positions(n, density, seed, clustered)
    sizes = exact_sizes(positions.tolist(), n)
    codec, data = encode_positions(positions, n)
    assert (len(data), codec) == min((size, code) for code, size in sizes.items())


@pytest.mark.parametrize(
    ("n", "positions", "codec", "data"),
    [
        (0, [], Codec.BITMAP, b""),
        (1, [], Codec.DELTAS, b""),
        (1, [0], Codec.BITMAP, b"\x01"),
        (16, [0, 1, 3, 15], Codec.BITMAP, b"\x0b\x80"),
        (1000, [5, 300], Codec.DELTAS, b"\x05\xa6\x02"),  # 294 = 0b10_0100110
        (1000, [*range(10, 200), 999], Codec.RANGES, b"\x0a\xbd\x01\x9f\x06\x00"),
        (100_000, list(range(100_000)), Codec.RANGES, b"\x00\x9f\x8d\x06"),
    ],
)
def test_codec_literals(n, positions, codec, data):
    got, packed = encode_positions(np.array(positions, np.int32), n)
    assert (got, bytes(packed)) == (codec, data)
    assert decode_positions(codec, data, n, len(positions)).tolist() == positions


def test_the_compressed_bitmap_wins_at_medium_densities():
    positions = draw_positions(100_000, 0.1, 0, False)
    codec, data = encode_positions(positions, 100_000)
    assert codec is Codec.ZBITMAP and len(data) < 12_500
    assert np.array_equal(decode_positions(codec, bytes(data), 100_000, len(positions)), positions)


def test_positions_up_to_the_largest_int32():
    n = 2**31 - 1
    positions = np.array([0, 2**21, n - 1], np.int32)
    codec, data = encode_positions(positions, n)
    assert codec is Codec.DELTAS and len(data) == 1 + 3 + 5
    assert np.array_equal(decode_positions(codec, bytes(data), n, 3), positions)


# --- damage


def test_every_flipped_byte_is_detected():
    positions = draw_positions(4000, 0.5, 0, False)
    frame = make_frame(len(positions), 400, num_prunable=4000, positions=positions)
    wire = bytearray(encode_frame(frame))
    assert 9_500 < len(wire) < 11_000
    for at in range(len(wire)):
        wire[at] ^= 0xFF
        with pytest.raises(WireError):
            decode_frame(wire)
        wire[at] ^= 0xFF
    assert decode_frame(wire) == frame


def test_every_flipped_bit_of_the_header_is_detected():
    wire = bytearray(encode_frame(make_frame()))
    for at, bit in itertools.product(range(120), range(8)):
        wire[at] ^= 1 << bit
        with pytest.raises(WireError):
            decode_frame(wire)
        wire[at] ^= 1 << bit


def test_every_cut_and_every_extension_is_detected():
    wire = bytes(encode_frame(make_frame()))
    for length in range(len(wire)):
        with pytest.raises(WireError):
            decode_frame(wire[:length])
    with pytest.raises(WireError, match="got 141 bytes, the header says 140"):
        decode_frame(wire + b"\0")


def test_int8_layout_with_the_dense_part_in_fp32():
    values = np.array([127, -3, 0.25], np.float32)  # a scale of 1, then three codes and a zero
    dense = np.array([0.1, -1], np.float32)
    frame = make_frame(values=values, dense=dense, positions=np.array([1, 2, 3], np.int32))
    wire = bytes(encode_frame(replace(frame, dtype="int8")))
    assert wire[7] == 3 and struct.unpack("<4Q", wire[80:112]) == (0, 8, 8, 2)
    sections = struct.pack("<f3b1x2f", 1, 127, -3, 0, *dense) + bytes([1, 2])
    assert wire[120:] == sections
    assert len(wire) == frame_bytes(3, 2, dtype="int8", positions_bytes=2) == 138
    decoded = decode_frame(wire)
    assert decoded.values.tolist() == [127, -3, 0]
    assert decoded.dense.tobytes() == dense.tobytes() and decoded.dense.flags.aligned
    assert decoded.dtype == "int8" and encode_frame(decoded) == wire


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
def test_what_is_not_finite_arrives_so(dtype, wrong):
    values = np.array([1, wrong, -1], np.float32)
    decoded = decode_frame(encode_frame(make_frame(values=values, dtype=dtype)))
    assert not np.isfinite(decoded.values[1])


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_a_decoded_frame_is_encoded_as_the_same_bytes(dtype):
    values = np.random.default_rng(0).normal(size=700).astype(np.float32)
    wire = encode_frame(make_frame(values=values, dtype=dtype))
    assert encode_frame(decode_frame(wire)) == wire
    assert len(wire) == frame_bytes(700, 2, dtype=dtype)


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, b"HDF5", "magic must be .* .got b'HDF5'"),
        (4, b"\x02", r"format version must be one of \[1\] \(got 2"),
        (5, b"\x04", r"kind must be one of \[1, 2, 3\] \(got 4"),
        (6, b"\x05", "codec must be .*got 5"),
        (7, b"\x04", "dtype must be .*got 4"),
        (7, b"\x03", "contradict"),  # int8 would need eight bytes
        (7, b"\x01", "contradict"),  # fp16 would need half the bytes
        (28, b"\x04", "contradict"),  # K = 4 of three values
        (80, struct.pack("<2Q", 8, 4), "contradict"),  # extra is neither 0 nor 4 K
        (96, struct.pack("<2Q", 6, 2), "contradict"),  # positions the codec denies
    ],
)
def test_contradictions_behind_a_right_checksum(at, data, message):
    wire = bytearray(encode_frame(make_frame()))
    wire[at : at + len(data)] = data
    with pytest.raises(WireError, match=message) as caught:
        decode_frame(reseal(wire))
    assert caught.value.stage == "decode"


@pytest.mark.parametrize(
    ("codec", "data", "n", "count", "message"),
    [
        (Codec.BITMAP, b"\x01", 9, 1, "has 2 bytes, got 1"),
        (Codec.BITMAP, b"\x00\x02", 9, 1, "past 8"),
        (Codec.BITMAP, b"\x03\x00", 9, 1, "holds 2 positions, the header says 1"),
        (Codec.ZBITMAP, b"\x03\x00", 9, 1, "damaged"),
        (Codec.ZBITMAP, zlib.compress(bytes(10_000)), 9, 1, "another length"),
        (Codec.ZBITMAP, zlib.compress(b"\x01\x00") + b"!", 9, 1, "another length"),
        (Codec.ZBITMAP, zlib.compress(b"\x01\x00")[:-1], 9, 1, "another length"),
        (Codec.DELTAS, b"\x00\x08", 9, 2, "position 9 lies past 8"),
        (Codec.DELTAS, b"\x09", 9, 1, "past 8"),
        (Codec.DELTAS, b"\x00", 9, 2, "holds 1 positions"),
        (Codec.DELTAS, b"\x00\x80", 9, 2, "cut short"),
        (Codec.DELTAS, b"\x80\x80\x80\x80\x80\x00", 9, 1, "more than 5 bytes"),
        (Codec.RANGES, b"\x00", 9, 1, "cut short"),
        (Codec.RANGES, b"\x00\x02", 9, 2, "hold 3 positions of 9, the header says 2"),
        (Codec.RANGES, b"\x08\x01", 9, 2, "hold 2 positions of 9"),
        (Codec.RANGES, b"", 9, 1, "hold 0 positions"),
    ],
)
def test_damaged_positions(codec, data, n, count, message):
    with pytest.raises(WireError, match=message):
        decode_positions(codec, data, n, count)


@pytest.mark.parametrize("positions", [[2, 1], [1, 1], [-1, 3], [0, 9], [2**31 - 1, -(2**31), 5]])
def test_positions_out_of_order_are_refused(positions):
    with pytest.raises(ValueError, match=r"not strictly ascending within 0\.\.8"):
        encode_positions(np.array(positions, np.int32), 9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(values=np.zeros(3)), "values must be float32 .*got float64"),
        (dict(dense=np.zeros((2, 2), np.float32)), "dense must be .*got float32"),
        (dict(extra=np.zeros(2, np.float32)), "extra must have 0 or 3 entries .got 2"),
        (dict(positions=np.array([1], np.int32)), "positions must have 3 entries .got 1"),
        (dict(positions=np.array([1, 2, 3])), "positions must be .*got int64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        encode_frame(make_frame(**changed))
