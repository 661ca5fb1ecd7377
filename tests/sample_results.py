"""A small result file: three clients, two merges."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fedgmr_hpc.storage.rows import EvaluationRow, EventRow, MergeRow, TransferRow, UpdateRow
from fedgmr_hpc.storage.schema import RankRow
from fedgmr_hpc.storage.writer import ResultWriter

SIZES = {"num_clients": 3, "num_weights": 4, "num_ranks": 2, "layout_json": '{"names": ["w"]}'}
TEXTS = {"config_yaml": "seed: 7\ndata: {name: digits}\n", "provenance": {"hostname": "näme"}}
WEIGHTS = np.arange(4, dtype=np.float32)


def merge_row(version: int, **changes: Any) -> MergeRow:
    row = MergeRow(
        version=version,
        round=version,
        now_s=1.5 * version,
        num_merged=2,
        server_up_bytes=100 * version,
        server_down_bytes=200 * version,
        staleness=np.array([1, 0, 3]),
        density=np.array([0.25, 0.5, 1.0]),
        weight=np.array([0.5, 0.0, 0.5]),
        up_bytes=np.array([10, 20, 70]) * version,
        down_bytes=np.array([20, 40, 140]) * version,
        wall_s=0.1 * version,
        wall_rss_bytes=1 << 30,
    )
    return dataclasses.replace(row, **changes)


EVALUATION = EvaluationRow(
    version=2,
    round=2,
    now_s=3.0,
    val_accuracy=0.5,
    val_loss=1.25,
    test_accuracy=float("nan"),
    test_loss=float("nan"),
    mean_density=0.75,
    model_xxh3=xxhash.xxh3_64_intdigest(WEIGHTS.tobytes()),
    wall_s=0.2,
)
UPDATE = UpdateRow(
    now_s=2.5,
    client=2,
    base_version=1,
    version=2,
    mask_id=4,
    density=1.0,
    down_bytes=140,
    up_bytes=70,
    train_loss=2.25,
    score=float("nan"),
    num_samples=50,
    wall_overrun=0,
    wall_rank=1,
)
EVENT = EventRow(kind=1, now_s=3.0, ready_s=3.5, client=-1, chain_xxh3=2**64 - 2)
TRANSFER = TransferRow(
    now_s=2.25,
    client=2,
    base_version=1,
    is_upload=1,
    bytes=70,
    requested_bytes_per_s=50.0,
    achieved_bytes_per_s=40.0,
    queue_wait_s=0.125,
    num_resent=1,
)
RANK = RankRow(
    rank=1,
    host="node-ü",
    device="cpu",
    sent_bytes=5,
    received_bytes=6,
    overhead_bytes=1,
    num_tasks=9,
    train_s=0.5,
    wait_s=0.25,
    rss_bytes=1 << 20,
)


def open_writer(path: Path, **changes: Any) -> ResultWriter:
    return ResultWriter(path, **{**SIZES, **TEXTS, **changes})


def write_run(path: Path, **changes: Any) -> Path:
    with open_writer(path) as writer:
        writer.append(merge_row(1))
        writer.append(merge_row(2, **changes))
        writer.append(EVALUATION)
        writer.append(UPDATE)
        writer.append(EVENT)
        writer.append(TRANSFER)
        writer.finish("finished", weights=WEIGHTS, ranks=[RANK])
    return path
