"""Int8 in blocks of 256: literal bytes, half a step of error, the same bytes once rounded."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.wire.int8 import BLOCK, decode_values, encode_values, round_values, section_bytes

LARGEST = float(np.finfo(np.float32).max)
LEAST = 2.0**-149  # the smallest subnormal number


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def steps(values: np.ndarray) -> np.ndarray:
    """[K] the scale of each value's block, as float64, read off the section."""
    section = encode_values(values)
    scales = section[: 4 * -(-len(values) // BLOCK)].view(np.float32)
    return np.repeat(scales.astype(np.float64), BLOCK)[: len(values)]


def draw_values(seed: int, count: int, exponent: int, spread: int) -> np.ndarray:
    """[count] of magnitudes from 2^(exponent - spread) to 2^exponent, a tenth of them zero."""
    rng = np.random.default_rng(seed)
    powers = exponent - spread * rng.random(count)
    signs = rng.choice([-1.0, 0.0, 1.0], count, p=[0.45, 0.1, 0.45])
    return (signs * np.exp2(powers)).astype(np.float32)


cases = st.builds(
    draw_values,
    st.integers(0, 2**32),
    st.sampled_from([0, 1, 2, 255, 256, 257, 511, 512, 1000]),
    st.integers(-148, 127),
    st.sampled_from([0, 1, 8, 30]),
)


# --- literals


def test_a_section_is_scales_codes_and_zeros():
    section = encode_values(floats(127, -64, 0.4, 0, 1))  # the scale is 127 / 127
    assert bytes(section) == struct.pack("<f", 1) + bytes([127, 256 - 64, 0, 0, 1, 0, 0, 0])


def test_every_block_has_its_own_scale():
    values = np.zeros(2 * BLOCK + 1, np.float32)
    values[[0, BLOCK, 2 * BLOCK]] = 127, -0.5 * 127, 254
    section = encode_values(values)
    assert section[:12].view(np.float32).tolist() == [1, 0.5, 2]
    codes = section[12 : 12 + len(values)].view(np.int8)
    assert codes[[0, BLOCK, 2 * BLOCK]].tolist() == [127, -127, 127]
    assert np.count_nonzero(codes) == 3


def test_ties_round_to_even():
    values = floats(127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5)
    assert round_values(values).tolist() == [127, 0, 2, 2, 0, -2, -2]


def test_a_scale_is_cut_to_17_bits_so_that_products_are_exact():
    (scale,) = encode_values(floats(1.0))[:4].view(np.float32).tolist()
    # 1 / 127 = 2^-7 * 1.00787..., and 2^16 * 1.00787... = 66052.03
    assert scale == 66052 / 2**23
    assert float(round_values(floats(1.0))[0]) == 127 * 66052 / 2**23


@pytest.mark.parametrize(
    ("count", "size"),
    [(0, 0), (1, 8), (4, 8), (5, 12), (256, 260), (257, 8 + 260), (1000, 16 + 1000)],
)
def test_length_follows_from_the_count_alone(count, size):
    assert section_bytes(count) == size == len(encode_values(np.ones(count, np.float32)))


# --- properties


@settings(max_examples=200, deadline=None)
@given(cases)
def test_the_error_is_at_most_half_a_step_of_the_block(values):
    error = np.abs(round_values(values).astype(np.float64) - values)
    assert (error <= 0.5 * (1 + 2**-16) * steps(values)).all()  # the quotient is rounded, too


@settings(max_examples=200, deadline=None)
@given(cases)
def test_a_step_is_a_127th_of_the_largest_magnitude(values):
    for start in range(0, len(values), BLOCK):
        largest = float(np.abs(values[start : start + BLOCK]).max())
        step = steps(values)[start]
        assert step == 2.0**-126 or largest * (1 - 2**-15) <= 127 * step <= largest * (1 + 2**-22)


@settings(max_examples=200, deadline=None)
@given(cases)
def test_what_was_read_is_written_as_the_same_bytes(values):
    section = encode_values(values)
    once = decode_values(section, len(values))
    assert bytes(encode_values(once)) == bytes(section)
    assert once.dtype == np.float32


@settings(max_examples=100, deadline=None)
@given(cases)
def test_zeros_stay_zero(values):
    assert (round_values(values)[values == 0] == 0).all()


@settings(max_examples=100, deadline=None)
@given(cases, st.sampled_from([np.nan, np.inf, -np.inf]), st.integers(0, 2**16))
def test_what_is_not_finite_stays_so_and_spoils_its_block_alone(values, wrong, at):
    values = np.append(values, np.float32(1)).astype(np.float32)
    at %= len(values)
    broken = values.copy()
    broken[at] = wrong
    begin = at // BLOCK * BLOCK
    expected = round_values(values)
    expected[begin : begin + BLOCK] = np.nan
    assert np.array_equal(round_values(broken), expected, equal_nan=True)
    assert bytes(encode_values(expected)) == bytes(encode_values(broken))


# --- the ends of the range


def test_a_block_of_zeros_is_a_block_of_zeros():
    assert not round_values(np.zeros(300, np.float32)).any()
    assert not round_values(floats(-0.0, 0.0)).view(np.uint32).any()  # without a sign


def test_the_largest_numbers_stay_finite():
    rounded = round_values(floats(LARGEST, -LARGEST, 1))
    np.testing.assert_allclose(rounded, [LARGEST, -LARGEST, 0], rtol=2**-16)


def test_below_127_times_the_smallest_normal_number_steps_get_no_shorter():
    least_step = 2.0**-126
    values = floats(3 * least_step, 0.5 * least_step, 0.75 * least_step, LEAST)
    assert round_values(values).tolist() == [3 * least_step, 0, least_step, 0]


def test_a_nan_with_any_payload_stays_nan():
    bits = np.array([0x7F800001, 0xFF80007F, 0x7FC00000], np.uint32)
    for value in bits.view(np.float32):
        assert np.isnan(round_values(np.array([1, value], np.float32))).all()


def test_blocks_do_not_depend_on_how_much_is_encoded_at_once():
    values = draw_values(0, 2**18 + 2**17 + 77, 0, 8)
    parts = [round_values(values[i : i + BLOCK]) for i in range(0, len(values), BLOCK)]
    assert np.array_equal(round_values(values), np.concatenate(parts))


def test_strided_values_are_encoded_in_their_order():
    values = draw_values(1, 1200, 0, 4)
    assert np.array_equal(round_values(values[::2]), round_values(values[::2].copy()))
