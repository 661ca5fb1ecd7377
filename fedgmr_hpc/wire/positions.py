"""Which entries of the position space a frame carries, as few bytes as the choice of codec allows.

Positions are ascending int32 [K] in 0..n-1 (K kept entries, n prunable entries). Every codec writes
them so that they come back strictly ascending by construction; their range and count are checked.

    code  codec      bytes
       0  NONE       nothing: the receiver knows the positions
       1  BITMAP     one bit an entry, entry i is bit i % 8 of byte i // 8, unused bits zero
       2  ZBITMAP    the bitmap through zlib, level 1
       3  DELTAS     one varint an entry: how many entries were skipped since the entry before
       4  RANGES     two varints a run: entries skipped since the run before, the run's length - 1

A varint holds 7 bits a byte, low bits first; the top bit says that another byte follows (LEB128).
"""

from __future__ import annotations

import zlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.errors import WireError
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.records import Ints

MAX_ENTRIES = 2**31 - 1  # positions are int32
_MAX_VARINT_BYTES = 5  # enough for 2^31 - 1
_MAX_DEFLATE_RATIO = 1032  # zlib's own bound: no input shrinks more


class Codec(IntEnum):
    """How positions are written; of equally small ones the first wins."""

    NONE = 0
    BITMAP = 1
    ZBITMAP = 2
    DELTAS = 3
    RANGES = 4


CodedPositions = tuple[Codec, bytes | NDArray[np.uint8]]


def encode_positions(positions: Ints, n: int) -> CodedPositions:
    """Return the smallest encoding of `positions` [K], chosen by exact size.

    Args:
        positions: int32 [K], strictly ascending, each in 0..n-1.
        n: number of prunable entries, at most 2^31 - 1.

    Returns:
        The codec and its bytes.

    Raises:
        ValueError: the positions are not int32 and strictly ascending within 0..n-1.
    """
    gaps = _gaps(positions, n)
    sizes = {Codec.BITMAP: (n + 7) // 8, Codec.DELTAS: _varint_bytes(gaps)}
    runs = _runs(gaps) if 2 * _num_runs(gaps) < min(sizes.values()) else None
    if runs is not None:
        sizes[Codec.RANGES] = _varint_bytes(runs)
    # only compressing tells how small this one is; it is spared where it can't be the smallest
    if min(sizes.values()) > sizes[Codec.BITMAP] // _MAX_DEFLATE_RATIO:
        squeezed = zlib.compress(_encode_bitmap(positions, n).data, 1)
        sizes[Codec.ZBITMAP] = len(squeezed)
    codec = min(sizes, key=lambda code: (sizes[code], code))
    if codec is Codec.ZBITMAP:
        return codec, squeezed
    if codec is Codec.BITMAP:
        return codec, _encode_bitmap(positions, n)
    return codec, _encode_varints(gaps if runs is None or codec is Codec.DELTAS else runs)


def decode_positions(codec: Codec, data: bytes | memoryview, n: int, count: int) -> Ints:
    """Return the positions [count] that `encode_positions` wrote.

    Raises:
        WireError: damaged bytes, a position past n - 1, or not `count` positions.
    """
    if codec is Codec.DELTAS:
        positions = _positions_of_gaps(_decode_varints(data), n)
    elif codec is Codec.RANGES:
        positions = _positions_of_runs(_decode_varints(data), n, count)
    else:
        packed = _inflate(data, (n + 7) // 8) if codec is Codec.ZBITMAP else data
        positions = _decode_bitmap(packed, n)
    if len(positions) != count:
        raise _damaged(f"{codec.name} holds {len(positions)} positions, the header says {count}")
    return positions


def _damaged(message: str) -> WireError:
    return WireError(message, stage="decode")


def _gaps(positions: Ints, n: int) -> Ints:
    """Return entries skipped before each position [K]; refuses any not ascending strictly in
    0..n-1.
    """
    if positions.dtype != np.int32 or positions.ndim != 1 or not 0 <= n <= MAX_ENTRIES:
        got = f"{positions.dtype} {positions.shape} of n = {n}"
        raise ValueError(must_be("positions", f"int32 [K] of n <= {MAX_ENTRIES}", found=got))
    gaps = np.empty_like(positions)
    if len(positions):
        gaps[0] = positions[0]
        np.subtract(positions[1:], positions[:-1], out=gaps[1:])
        gaps[1:] -= 1
        # the smallest position first: differences of non-negative int32 cannot wrap
        if positions.min() < 0 or gaps.min() < 0 or positions[-1] >= n:
            raise ValueError(f"positions: not strictly ascending within 0..{n - 1}")
    return gaps


def _num_runs(gaps: Ints) -> int:
    """Return runs of neighbouring positions; the first position opens one whatever its gap."""
    return int(np.count_nonzero(gaps[1:])) + min(1, len(gaps))


def _runs(gaps: Ints) -> Ints:
    """Return gap and length - 1 of every run of neighbours, interleaved [2 R]."""
    opens = gaps > 0
    opens[:1] = True
    first = np.flatnonzero(opens).astype(np.int32)
    runs = np.empty(2 * len(first), np.int32)
    runs[0::2] = gaps[first]
    runs[1::2] = np.diff(first, append=np.int32(len(gaps))) - 1
    return runs


def _positions_of_gaps(gaps: NDArray[np.int64], n: int) -> Ints:
    if len(gaps) and int(gaps.max()) >= n:
        raise _damaged(f"a position lies past {n - 1}")
    gaps += 1
    positions = np.cumsum(gaps, out=gaps)
    if len(positions) and int(positions[-1]) > n:
        raise _damaged(f"position {int(positions[-1]) - 1} lies past {n - 1}")
    positions -= 1
    return positions.astype(np.int32)


def _positions_of_runs(runs: NDArray[np.int64], n: int, count: int) -> Ints:
    if len(runs) % 2 or (len(runs) and int(runs.max()) >= n):
        raise _damaged(f"the ranges are cut short or reach past {n - 1}")
    gaps, lengths = runs[0::2], runs[1::2] + 1
    ends = np.cumsum(gaps + lengths)
    covered = np.cumsum(lengths)
    num_covered = int(covered[-1]) if len(runs) else 0
    if num_covered != count or (len(runs) and int(ends[-1]) > n):
        raise _damaged(f"the ranges hold {num_covered} positions of {n}, the header says {count}")
    shift = (ends - covered).astype(np.int32)  # what each run's positions lie above their index
    positions = np.repeat(shift, lengths)
    positions += np.arange(count, dtype=np.int32)
    return positions


def _encode_bitmap(positions: Ints, n: int) -> NDArray[np.uint8]:
    bits = np.zeros(n, np.uint8)
    bits[positions] = 1
    return np.packbits(bits, bitorder="little")


def _decode_bitmap(data: bytes | memoryview, n: int) -> Ints:
    if len(data) != (n + 7) // 8:
        raise _damaged(f"a bitmap of {n} entries has {(n + 7) // 8} bytes, got {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[n:].any():
        raise _damaged(f"the bitmap marks a position past {n - 1}")
    return np.flatnonzero(bits[:n].view(np.bool_)).astype(np.int32)


def _inflate(data: bytes | memoryview, num_bytes: int) -> bytes:
    """Decompress at most one byte more than expected: damaged data can't fill the memory."""
    inflater = zlib.decompressobj()
    try:
        packed = inflater.decompress(data, num_bytes + 1)
    except zlib.error as error:
        raise _damaged(f"the compressed bitmap is damaged: {error}") from None
    if not inflater.eof or inflater.unused_data:
        raise _damaged("the compressed bitmap has another length than its entries need")
    return packed


def _varint_bytes(numbers: Ints) -> int:
    """Return exact size of `_encode_varints(numbers)`: a byte, and one more from each power of
    128 on.
    """
    total, bits = len(numbers), 7
    while bits < 31 and (num_longer := int(np.count_nonzero(numbers >= 1 << bits))):
        total += num_longer
        bits += 7
    return total


def _encode_varints(numbers: Ints) -> NDArray[np.uint8]:
    """Return byte k of every number that has one, for k = 0..4: a loop over bytes, never over
    numbers.
    """
    sizes = np.ones(len(numbers), np.int64)
    for bits in range(7, 31, 7):
        sizes += numbers >= 1 << bits
    starts = np.cumsum(sizes) - sizes
    out = np.empty(int(sizes.sum()), np.uint8)
    for k in range(int(sizes.max(initial=0))):
        more = sizes > k + 1
        out[starts + k] = (numbers >> 7 * k) & 0x7F | more << 7
        numbers, sizes, starts = numbers[more], sizes[more], starts[more]
    return out


def _decode_varints(data: bytes | memoryview) -> NDArray[np.int64]:
    raw = np.frombuffer(data, np.uint8)
    last = raw < 0x80  # the bytes that end a number
    if len(raw) and not last[-1]:
        raise _damaged("the last number is cut short")
    if last.all():
        return raw.astype(np.int64)
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if int(sizes.max()) > _MAX_VARINT_BYTES:
        raise _damaged(f"a number of more than {_MAX_VARINT_BYTES} bytes")
    numbers = (raw[starts] & 0x7F).astype(np.int64)
    for k in range(1, int(sizes.max())):
        longer = np.flatnonzero(sizes > k)
        numbers[longer] |= (raw[starts[longer] + k] & 0x7F).astype(np.int64) << 7 * k
    return numbers
