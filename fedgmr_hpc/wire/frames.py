"""The wire format: one frame, one contiguous run of bytes, `len(frame)` is what a link is charged.

All numbers are little endian. K values, D entries of the dense part, n prunable entries (the
position space).

    offset  bytes  type  field
         0      4  4s    magic "FGMR"
         4      1  u8    format version, 1
         5      1  u8    kind: 1 increment, 2 update, 3 model
         6      1  u8    position codec, see positions.py
         7      1  u8    dtype of values and dense: 0 fp32, 1 fp16, 2 bf16, 3 int8
         8      8  u64   run
        16      4  i32   client, -1 = all
        20      4  i32   mask id
        24      4  i32   level, index into the mask set's densities
        28      4  u32   K
        32      8  i64   base version
        40      8  f64   density
        48      8  u64   n
        56      8  f64   train loss, updates only
        64      8  f64   score, updates only
        72      8  u64   number of samples, updates only
        80      8  u64   bytes of extra: 4 K or 0
        88      8  u64   bytes of values: 4 K, 2 K for fp16 and bf16, see int8.py for int8
        96      8  u64   bytes of dense: 4 D, 2 D for fp16 and bf16
       104      8  u64   bytes of positions
       112      8  u64   xxh3_64 of the whole frame with this field zero
       120               extra (float32), values, dense, positions

The widest numbers come first and the byte-wise positions last, so every section is aligned without
padding. fp16 and bf16 round to the nearest, ties to even; too large becomes infinite, NaN stays
NaN. With int8 the dense part, which is small and sensitive, stays in fp32.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedgmr_hpc.config.errors import WireError
from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.records import Floats, Ints, shared_fields
from fedgmr_hpc.fl.updates import UpdateHeader
from fedgmr_hpc.transport.contract import as_bytes
from fedgmr_hpc.wire import int8
from fedgmr_hpc.wire.positions import (
    MAX_ENTRIES,
    Codec,
    CodedPositions,
    decode_positions,
    encode_positions,
)

MAGIC = b"FGMR"
FORMAT_VERSION = 1
HEADER = struct.Struct("<4s4BQ3iIqdQ2dQ5Q")
_CHECKSUM = struct.Struct("<Q")  # the header's last field
_CHECKSUM_AT = HEADER.size - _CHECKSUM.size

Dtype = Literal["fp32", "fp16", "bf16", "int8"]
_DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "bf16", "int8")
_ITEM_BYTES: dict[Dtype, int] = {"fp32": 4, "fp16": 2, "bf16": 2}  # of types without blocks


class Kind(IntEnum):
    """What a frame is for."""

    INCREMENT = 1  # server to client: one slice of the packed order
    UPDATE = 2  # client to server: a trained sub-model
    MODEL = 3  # a whole model, for evaluation


_KINDS, _CODECS = tuple(Kind), tuple(Codec)


def _no_floats() -> Floats:
    return np.empty(0, np.float32)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Frame(UpdateHeader):
    """One message about a model. Two are equal when every field is, bit for bit (so NaN is NaN)."""

    kind: Kind
    run: int
    num_prunable: int  # n, the size of the position space
    values: Floats  # [K] in ascending order of position
    positions: Ints | None = None  # [K] strictly ascending in 0..n-1; None: the receiver knows them
    dense: Floats = field(default_factory=_no_floats)  # [D]
    extra: Floats = field(default_factory=_no_floats)  # [K] summed squared gradients, or [0]
    dtype: Dtype = "fp32"  # of values and dense on the wire

    def __eq__(self, other: object) -> bool:
        names = (each.name for each in fields(self))
        return isinstance(other, Frame) and all(
            _same_bits(getattr(self, name), getattr(other, name)) for name in names
        )


class _Header(NamedTuple):
    """The fixed header, in wire order."""

    magic: bytes
    version: int
    kind: int
    codec: int
    dtype: int
    run: int
    client: int
    mask_id: int
    level: int
    num_values: int
    base_version: int
    density: float
    num_prunable: int
    train_loss: float
    score: float
    num_samples: int
    extra_bytes: int
    values_bytes: int
    dense_bytes: int
    positions_bytes: int
    checksum: int

    @property
    def frame_bytes(self) -> int:
        sections = self.extra_bytes + self.values_bytes + self.dense_bytes + self.positions_bytes
        return HEADER.size + sections


def frame_bytes(
    num_values: int,
    num_dense: int = 0,
    *,
    num_extra: int = 0,
    dtype: Dtype = "fp32",
    positions_bytes: int | None = None,
) -> int:
    """Return exact length of a frame without its contents; `positions_bytes` None: the receiver
    knows.
    """
    dense_bytes = _section_bytes(num_dense, _dense_dtype(dtype))
    body = 4 * num_extra + _section_bytes(num_values, dtype) + dense_bytes
    return HEADER.size + body + (positions_bytes or 0)


def _section_bytes(count: int, dtype: Dtype) -> int:
    return int8.section_bytes(count) if dtype == "int8" else _ITEM_BYTES[dtype] * count


def _dense_dtype(dtype: Dtype) -> Dtype:
    return "fp32" if dtype == "int8" else dtype


def encode_parts(frame: Frame, coded: CodedPositions | None = None) -> tuple[memoryview, ...]:
    """Return the frame as read-only runs of bytes, to be sent one after the other.

    fp32 sections are the frame's own arrays, which must stay as they are until they are sent.

    Args:
        frame: what to encode.
        coded: what `encode_positions` makes of the frame's positions, where that is known.

    Raises:
        ValueError: arrays of another type or length than `Frame` allows, or positions out of order.
    """
    check_arrays(frame)
    codec, packed = coded or (Codec.NONE, b"")
    if coded is None and frame.positions is not None:
        codec, packed = encode_positions(frame.positions, frame.num_prunable)
    sections = (
        _as_wire(frame.extra, "fp32"),
        _as_wire(frame.values, frame.dtype),
        _as_wire(frame.dense, _dense_dtype(frame.dtype)),
        as_bytes(packed),
    )
    header = bytearray(HEADER.pack(*_make_header(frame, codec, len(packed))))
    _CHECKSUM.pack_into(header, _CHECKSUM_AT, _checksum(memoryview(header), *sections))
    return (memoryview(header).toreadonly(), *(part for part in sections if len(part)))


def encode_frame(frame: Frame, coded: CodedPositions | None = None) -> memoryview:
    """Return `encode_parts` as one run of bytes."""
    return memoryview(b"".join(encode_parts(frame, coded)))


def decode_frame(buffer: bytes | bytearray | memoryview) -> Frame:
    """Return the frame in `buffer`; fp32 sections are views into it, so it must outlive them
    unchanged.

    Raises:
        WireError: foreign, cut, extended or damaged bytes, or sections that contradict one another.
    """
    view = memoryview(buffer).cast("B")
    header = _read_header(view)
    kind, codec, dtype = Kind(header.kind), Codec(header.codec), _DTYPES[header.dtype]
    extra, values, dense, positions = _split(np.frombuffer(view, np.uint8), header)
    known = codec is Codec.NONE
    n, count = header.num_prunable, header.num_values
    return Frame(
        **shared_fields(header, UpdateHeader),
        kind=kind,
        run=header.run,
        num_prunable=n,
        values=_read_floats(values, dtype, count),
        positions=None if known else decode_positions(codec, positions.data, n, count),
        dense=_read_floats(dense, _dense_dtype(dtype)),
        extra=extra.view(np.float32),
        dtype=dtype,
    )


def _make_header(frame: Frame, codec: Codec, positions_bytes: int) -> _Header:
    """Return the header of `frame` with the checksum still zero."""
    num_values, num_dense = len(frame.values), len(frame.dense)
    return _Header(
        **shared_fields(frame, UpdateHeader),
        magic=MAGIC,
        version=FORMAT_VERSION,
        kind=frame.kind,
        codec=codec,
        dtype=_DTYPES.index(frame.dtype),
        run=frame.run,
        num_values=num_values,
        num_prunable=frame.num_prunable,
        extra_bytes=4 * len(frame.extra),
        values_bytes=_section_bytes(num_values, frame.dtype),
        dense_bytes=_section_bytes(num_dense, _dense_dtype(frame.dtype)),
        positions_bytes=positions_bytes,
        checksum=0,
    )


def _read_header(view: memoryview) -> _Header:
    """Return the header of `view` after every check that needs no section's content."""
    if len(view) < HEADER.size:
        raise _damaged(f"{len(view)} bytes are shorter than the header of {HEADER.size}")
    header = _Header._make(HEADER.unpack_from(view))
    if header.magic != MAGIC:
        raise _damaged(must_be("magic", repr(MAGIC), found=repr(header.magic)))
    _check_code("format version", header.version, (FORMAT_VERSION,))
    _check_code("kind", header.kind, _KINDS)
    _check_code("codec", header.codec, _CODECS)
    _check_code("dtype", header.dtype, range(len(_DTYPES)))
    _check_lengths(header, len(view))
    if header.checksum != _checksum(view):
        raise _damaged(f"checksum: the bytes differ from those sent ({len(view)} bytes)")
    return header


def _check_code(name: str, got: int, codes: tuple[int, ...] | range) -> None:
    if got not in codes:
        raise _damaged(must_be(name, f"one of {[int(code) for code in codes]}", got))


def _check_lengths(header: _Header, num_bytes: int) -> None:
    if num_bytes != header.frame_bytes:
        raise _damaged(f"got {num_bytes} bytes, the header says {header.frame_bytes}")
    dtype = _DTYPES[header.dtype]
    fits = (
        header.values_bytes == _section_bytes(header.num_values, dtype)
        and header.dense_bytes % _ITEM_BYTES[_dense_dtype(dtype)] == 0
        and header.extra_bytes in (0, 4 * header.num_values)
        and (header.positions_bytes == 0 or header.codec != Codec.NONE)
        and (header.num_prunable <= MAX_ENTRIES or header.codec == Codec.NONE)
    )
    if not fits:
        raise _damaged(f"sections that contradict one another: {header}")


def check_arrays(frame: Frame) -> None:
    """Check that a frame's arrays can be encoded.

    Raises:
        ValueError: one is of another type or length than `Frame` allows.
    """
    arrays = {"values": frame.values, "dense": frame.dense, "extra": frame.extra}
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.ndim != 1:
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(must_be(name, "float32 [length]", found=found))
    num_values = len(frame.values)
    if len(frame.extra) not in (0, num_values):
        raise ValueError(must("extra", f"have 0 or {num_values} entries", len(frame.extra)))
    if frame.positions is not None and len(frame.positions) != num_values:
        raise ValueError(must("positions", f"have {num_values} entries", len(frame.positions)))


def _split(body: NDArray[np.uint8], header: _Header) -> list[NDArray[np.uint8]]:
    """Return the four sections as views of the frame's bytes."""
    lengths = (header.extra_bytes, header.values_bytes, header.dense_bytes, header.positions_bytes)
    ends = list(accumulate(lengths, initial=HEADER.size))
    return [body[begin:end] for begin, end in pairwise(ends)]


def _checksum(header: memoryview, *sections: memoryview) -> int:
    """Return xxh3_64 of a frame as if the checksum field were zero; `header` may go on into the
    body.
    """
    digest = xxhash.xxh3_64(header[:_CHECKSUM_AT])
    digest.update(bytes(_CHECKSUM.size))
    for part in (header[HEADER.size :], *sections):
        digest.update(part)
    return int(digest.intdigest())


def _as_wire(values: Floats, dtype: Dtype) -> memoryview:
    """Return the values as they are on the wire; fp32 without a copy."""
    if dtype == "int8":
        return as_bytes(int8.encode_values(values)).toreadonly()
    on_wire: NDArray[np.generic] = np.ascontiguousarray(values)
    if dtype == "bf16":
        on_wire = _to_bf16(values)
    elif dtype == "fp16":
        with np.errstate(over="ignore"):  # too large is infinite, as IEEE 754 rounds
            on_wire = values.astype(np.float16)
    return as_bytes(on_wire).toreadonly()


def _read_floats(section: NDArray[np.uint8], dtype: Dtype, count: int = 0) -> Floats:
    """Return the floats of a section; `count` of them, which only int8 does not show."""
    if dtype == "int8":
        return int8.decode_values(section, count)
    if dtype == "fp32":
        return section.view(np.float32)
    if dtype == "fp16":
        return section.view(np.float16).astype(np.float32)
    return (section.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _to_bf16(values: Floats) -> NDArray[np.uint16]:
    """Return the upper half of each float32, rounded to nearest with ties to even; NaN stays
    NaN.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    upper = bits >> 16
    rounded = upper & 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    nan = np.isnan(values)
    rounded[nan] = upper[nan] | 0x40  # rounding could carry a NaN's payload into the exponent
    return rounded.astype(np.uint16)


def _same_bits(one: object, other: object) -> bool:
    if one is None or other is None:
        return one is other
    first, second = np.asarray(one), np.asarray(other)
    return (first.dtype, first.shape) == (second.dtype, second.shape) and (
        first.tobytes() == second.tobytes()
    )


def _damaged(message: str) -> WireError:
    return WireError(message, stage="decode")
