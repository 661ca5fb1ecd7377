"""`bench codec`: encode and decode frames, against a copy of the dense model."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fedgmr_hpc.bench.case import Benchmark, Row, conv2_masks, copy_gb_per_s, median_s
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.wire.frames import Dtype, Frame, Kind, decode_frame, encode_frame

# The most that a value is off, as a share of the largest: half a step of the type.
ROUNDING: dict[Dtype, float] = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "int8": 0.5 / 127}


def measure_codec(repeats: int) -> Benchmark:
    """Return a row for each density, value type and way of sending positions."""
    weights, masks = conv2_masks()
    ceiling = copy_gb_per_s(2 * weights.nbytes, repeats)
    rows = []
    cases: list[tuple[float, int, Dtype]]
    cases = [(*level, "fp32") for level in zip(masks.densities, masks.counts, strict=True)]
    cases += [(1.0, masks.size, dtype) for dtype in ("fp16", "bf16", "int8")]
    for density, count, dtype in cases:
        positions = np.arange(masks.size, dtype=np.int32)[:count]
        if masks.perm is not None:
            positions = np.sort(masks.perm[:count])
        for is_known in (False, True):
            frame = _make_frame(masks, weights, density, positions, is_known, dtype)
            rows.append(_time_frame(frame, is_known, weights.nbytes, ceiling, repeats))
    return Benchmark(rows, {"copy_gb_per_s": ceiling})


def _make_frame(
    masks: MaskSet,
    weights: np.ndarray[Any, Any],
    density: float,
    positions: np.ndarray[Any, Any],
    is_known: bool,
    dtype: Dtype,
) -> Frame:
    return Frame(
        kind=Kind.INCREMENT,
        run=1,
        client=-1,
        base_version=1,
        mask_id=1,
        level=0,
        density=density,
        num_prunable=masks.size,
        values=weights[positions],
        positions=None if is_known else positions,
        dtype=dtype,
    )


def _time_frame(
    frame: Frame, is_known: bool, dense_bytes: int, ceiling: float, repeats: int
) -> Row:
    """Check what a frame decodes to, then time both directions."""
    data = encode_frame(frame)
    assert encode_frame(decode_frame(data)) == data
    assert frame.dtype != "fp32" or decode_frame(data) == frame
    allowed = ROUNDING[frame.dtype] * float(np.abs(frame.values).max())
    np.testing.assert_allclose(decode_frame(data).values, frame.values, rtol=0, atol=allowed)
    encode_s = median_s(repeats, partial(encode_frame, frame))
    decode_s = median_s(repeats, partial(decode_frame, data))
    rate = dense_bytes / (encode_s + decode_s) / 1e9
    return {
        "density": frame.density,
        "dtype": frame.dtype,
        "positions": "known" if is_known else "sent",
        "frame bytes": len(data),
        "encode ms": encode_s * 1e3,
        "decode ms": decode_s * 1e3,
        "dense GB/s": rate,
        "of copy": rate / ceiling,
    }
