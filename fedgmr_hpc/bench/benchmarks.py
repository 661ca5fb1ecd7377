"""Benchmarks with their ceilings: `python -m fedgmr_hpc bench WHAT [--quick] [--ranks N]`.

Each warms up, checks its answer, repeats, states the ceiling it is measured against in the same
run, prints a table and ends in one JSON line. Absolute times depend on the machine; the ratios are
what to compare.

    codec    encode + decode per density and dtype     against a copy of the dense model
    merge    one buffered mask-aware merge             against a copy of as many bytes
    mask     one refresh: rank all entries, cut masks  against one sort of as many keys
    round    FedGMR rounds over real ranks             against the same local steps alone
    links    real transfers, ten links at once         against the rates asked for
    server   small updates a second, all that a run does against a bare request and reply
    memory   rank 0 over many rounds                   against a flat line
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.bench.clients import run_clients
from fedgmr_hpc.fl.aggregation import BufferEntry, Merging, merge
from fedgmr_hpc.fl.submodels import MaskSet, PrunableLayer, cut_masks, rank_entries
from fedgmr_hpc.models import initial_weights, make_layout
from fedgmr_hpc.reporting.tables import as_text
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.transport.launchers import run_ranks
from fedgmr_hpc.wire.frames import Dtype, Frame, Kind, decode_frame, encode_frame

DENSITIES = (0.05, 0.1, 0.2, 0.5, 1.0)
HIGH = (1.0, 0.5, 0.2, 0.1) + (0.05,) * 6
# The most that a value is off, as a share of the largest: half a step of the type.
ROUNDING: dict[Dtype, float] = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "int8": 0.5 / 127}


def run_bench(what: str, *, quick: bool, ranks: int) -> int:
    """Runs one benchmark; returns the exit code: 1 where a row is outside what it is allowed."""
    if ranks < 2:
        raise ValueError(f"--ranks: got {ranks}, allowed: at least 2, one of them the server")
    repeats = 3 if quick else 15
    if what in ("codec", "merge", "mask"):
        rows, summary = {"codec": _codec, "merge": _merge, "mask": _mask}[what](repeats)
    elif what in ("round", "links", "server"):
        rows, summary = _on_ranks(f"fedgmr_hpc.bench.benchmarks.{what}", quick, ranks)
    elif what == "clients":
        rows, summary = run_clients(quick, ranks)
    else:
        rows, summary = _memory(200 if quick else 2000, ranks)
    columns = list(rows[0])
    print(as_text(columns, [[_cell(row[column]) for column in columns] for row in rows]))
    num_outside = sum(not row.get("within", True) for row in rows)
    print(json.dumps({"bench": what, "quick": quick, "outside": num_outside, **summary}))
    return 1 if num_outside else 0


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _seconds(repeats: int, call: Callable[[], Any]) -> float:
    """Median time of a call after a warm-up."""
    call()
    times = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def _copy_gb_per_s(num_bytes: int, repeats: int) -> float:
    """Bytes read plus written by a plain copy whose source and target make up `num_bytes`."""
    source = np.ones(num_bytes // 8, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / _seconds(repeats, lambda: np.copyto(target, source)) / 1e9


def _conv2() -> tuple[np.ndarray[Any, Any], list[PrunableLayer]]:
    layout = make_layout("conv2")
    weights = initial_weights("conv2", 0)[: layout.num_prunable]
    entries = [entry for entry in layout.entries if entry.prunable]
    return weights, [PrunableLayer(e.name, e.offset, e.offset + e.size, e.cost) for e in entries]


def _masks() -> tuple[np.ndarray[Any, Any], MaskSet]:
    weights, layers = _conv2()
    keys = rank_entries(weights.copy(), np.abs(weights), layers, floor_frac=0.02)
    return weights, cut_masks(keys, DENSITIES, mask_id=1)


def _codec(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    weights, masks = _masks()
    ceiling = _copy_gb_per_s(2 * weights.nbytes, repeats)
    rows = []
    cases: list[tuple[float, int, Dtype]]
    cases = [(*level, "fp32") for level in zip(masks.densities, masks.counts, strict=True)]
    cases += [(1.0, masks.size, dtype) for dtype in ("fp16", "bf16", "int8")]
    for density, count, dtype in cases:
        positions = np.arange(masks.size, dtype=np.int32)[:count]
        if masks.perm is not None:
            positions = np.sort(masks.perm[:count])
        for is_known in (False, True):
            frame = Frame(
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
            data = encode_frame(frame)
            assert encode_frame(decode_frame(data)) == data
            assert dtype != "fp32" or decode_frame(data) == frame
            allowed = ROUNDING[dtype] * float(np.abs(frame.values).max())
            np.testing.assert_allclose(
                decode_frame(data).values, frame.values, rtol=0, atol=allowed
            )
            encode_s = _seconds(repeats, partial(encode_frame, frame))
            decode_s = _seconds(repeats, partial(decode_frame, data))
            rows.append(
                {
                    "density": density,
                    "dtype": dtype,
                    "positions": "known" if is_known else "sent",
                    "frame bytes": len(data),
                    "encode ms": encode_s * 1e3,
                    "decode ms": decode_s * 1e3,
                    "dense GB/s": weights.nbytes / (encode_s + decode_s) / 1e9,
                    "of copy": weights.nbytes / (encode_s + decode_s) / 1e9 / ceiling,
                }
            )
    return rows, {"copy_gb_per_s": ceiling, "rows": rows}


def _merge(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    weights, masks = _masks()
    packed, dense = masks.pack(weights), np.zeros(1, np.float32)
    rows = []
    for name, densities in (("level high", HIGH), ("all full", (1.0,) * 10)):
        entries = [
            BufferEntry(
                client, 0, packed[: masks.counts[masks.level(d)]] + client, None, dense, 100
            )
            for client, d in enumerate(densities)
        ]
        ages = [1.0 / (1 + client % 3) for client in range(len(entries))]

        def call(entries: Any = entries, ages: Any = ages) -> Any:
            return merge(packed, dense, entries, ages, Merging("mask_aware", sum(ages)))

        np.testing.assert_allclose(call()[0], _mean(packed, entries, ages), rtol=1e-5, atol=1e-5)
        # Read the model and every update once, write the new model once.
        moved = sum(entry.values.nbytes for entry in entries) + 2 * packed.nbytes
        merge_s, ceiling = _seconds(repeats, call), _copy_gb_per_s(moved, repeats)
        rate = moved / merge_s / 1e9
        rows.append(
            {
                "buffer": name,
                "moved MB": moved / 1e6,
                "merge ms": merge_s * 1e3,
                "GB/s": rate,
                "copy GB/s": ceiling,
                "of copy": rate / ceiling,
            }
        )
    return rows, {"rows": rows}


def _mean(
    packed: np.ndarray[Any, Any], entries: Sequence[BufferEntry], weights: Sequence[float]
) -> np.ndarray[Any, Any]:
    """What a mask-aware merge must give, in float64: each entry's mean over those that hold it."""
    total, weight = np.zeros(len(packed)), np.zeros(len(packed))
    for entry, each in zip(entries, weights, strict=True):
        total[: len(entry.values)] += each * entry.values.astype(np.float64)
        weight[: len(entry.values)] += each
    mean = packed.astype(np.float64)
    np.divide(total, weight, out=mean, where=weight > 0)
    return mean


def _mask(repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = []
    weights, layers = _conv2()
    big = np.resize(weights, 10_000_000)
    cases = [("conv2", weights, layers), ("10 M", big, [PrunableLayer("all", 0, len(big), 1.0)])]
    for name, values, parts in cases:

        def call(values: Any = values, parts: Any = parts) -> MaskSet:
            keys = rank_entries(values.copy(), np.abs(values), parts, floor_frac=0.02)
            return cut_masks(keys, DENSITIES, mask_id=1)

        masks = call()
        assert masks.perm is not None and (np.bincount(masks.perm) == 1).all()
        if len(parts) == 1:  # with one layer nothing but |W| ranks
            ranked = np.abs(values)[masks.perm]
            assert all(ranked[:k].min() >= ranked[k:].max(initial=0.0) for k in masks.counts)
        keys = np.random.default_rng(0).integers(0, 2**63, len(values), dtype=np.uint64)
        mask_s, sort_s = _seconds(repeats, call), _seconds(repeats, partial(np.sort, keys))
        rows.append(
            {
                "entries": name,
                "refresh ms": mask_s * 1e3,
                "one sort ms": sort_s * 1e3,
                "sorts": mask_s / sort_s,
            }
        )
    return rows, {"rows": rows}


def _on_ranks(module: str, quick: bool, ranks: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs a benchmark's module on every rank; the first leaves the rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        flags = ["--quick"] if quick else []
        run_ranks(ranks, module, str(out), *flags)
        rows = json.loads(out.read_text())
    return rows, {"ranks": ranks, "rows": rows}


def _memory(rounds: int, ranks: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.h5"
        run_ranks(
            ranks,
            "fedgmr_hpc.launch",
            f"run.max_rounds={rounds}",
            "progress=quiet",
            f"results.path={path}",
        )
        merges = read_result(path).merges
    settled = merges["round"] > rounds // 4
    slope = np.polyfit(merges["round"][settled], merges["wall_rss_bytes"][settled], 1)[0]
    mb_per_1000 = float(slope) * 1000 / 1e6
    rows = [
        {
            "rounds": rounds,
            "RSS MB at 1/4": float(merges["wall_rss_bytes"][settled][0]) / 1e6,
            "RSS MB at the end": float(merges["wall_rss_bytes"][-1]) / 1e6,
            "MB per 1000 rounds": mb_per_1000,
        }
    ]
    return rows, {"mb_per_1000_rounds": mb_per_1000, "ranks": ranks}
