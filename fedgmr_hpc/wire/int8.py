"""Values as int8 on the wire: symmetric, in blocks of 256 with one float32 scale each.

A block's scale s is its largest magnitude over 127, cut to 17 significant bits and at least 2^-126;
a value's code is value / s, rounded to the nearest with ties to even, and it is read as code * s.
With 17 bits that product is exact, so what has been read once is written as the same bytes again.
The error is at most s / 2, and zero stays zero. A block that holds a NaN or an infinity is all NaN.

    bytes          content
    4 ceil(K/256)  scales, float32
    K              codes, int8, -127 to 127
    0 to 3         zeros, so that what follows is aligned

Shapes: K values, N blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.records import Floats

BLOCK = 256  # values
_CHUNK = 1024 * BLOCK  # values; the temporaries of as many stay in the cache
_LARGEST_CODE = np.float32(127)
_LEAST_SCALE = np.float32(2.0**-126)  # the smallest normal number: no scale is 0 or subnormal
_KEPT_BITS = np.uint32(0xFFFFFF80)  # of a float32, 17 significant ones

Section = NDArray[np.uint8]


def section_bytes(num_values: int) -> int:
    """Return exact length of the values' section."""
    return 4 * (_num_blocks(num_values) + -(-num_values // 4))


def encode_values(values: Floats) -> Section:
    """Return the section of float32 values [K]."""
    section = np.zeros(section_bytes(len(values)), np.uint8)
    scales, codes = _split(section, len(values))
    for blocks, entries in _spans(len(values)):
        rows = values[entries].reshape(blocks.stop - blocks.start, -1)
        with np.errstate(invalid="ignore"):  # signalling NaN
            scales[blocks] = _scales(rows)
            codes[entries] = _codes(rows, scales[blocks])
    return section


def decode_values(section: Section, num_values: int) -> Floats:
    """Return the values [K] of a section, float32."""
    scales, codes = _split(section, num_values)
    values = np.empty(num_values, np.float32)
    for blocks, entries in _spans(num_values):
        rows = codes[entries].reshape(blocks.stop - blocks.start, -1)
        np.multiply(rows, scales[blocks, None], out=values[entries].reshape(rows.shape))
    return values


def round_values(values: Floats) -> Floats:
    """Return the values [K] as their receiver reads them."""
    return decode_values(encode_values(values), len(values))


def _num_blocks(num_values: int) -> int:
    return -(-num_values // BLOCK)


def _split(section: Section, num_values: int) -> tuple[Floats, NDArray[np.int8]]:
    """Return (scales [N], codes [K]) as views of the section."""
    end = 4 * _num_blocks(num_values)
    return section[:end].view(np.float32), section[end : end + num_values].view(np.int8)


def _spans(num_values: int) -> Iterator[tuple[slice, slice]]:
    """Yield (blocks, their values) in turn: chunks of whole blocks, then the last, shorter
    block.
    """
    whole = num_values // BLOCK * BLOCK
    for start in range(0, whole, _CHUNK):
        stop = min(start + _CHUNK, whole)
        yield slice(start // BLOCK, stop // BLOCK), slice(start, stop)
    if whole < num_values:
        yield slice(whole // BLOCK, whole // BLOCK + 1), slice(whole, num_values)


def _scales(rows: Floats) -> Floats:
    """Return the scales of the blocks that are the rows; NaN for those that are not finite."""
    scales: Floats = np.abs(rows).max(axis=1) / _LARGEST_CODE
    is_finite = np.isfinite(scales)
    bits = scales.view(np.uint32)
    bits &= _KEPT_BITS
    np.maximum(scales, _LEAST_SCALE, out=scales)
    scales[~is_finite] = np.nan
    return scales


def _codes(rows: Floats, scales: Floats) -> NDArray[np.int8]:
    """Return the codes of the blocks that are the rows, one after the other; 0 where the scale is
    NaN.
    """
    quotients = rows / scales[:, None]
    np.rint(quotients, out=quotients)
    quotients[np.isnan(scales)] = 0.0
    return quotients.astype(np.int8).reshape(-1)
