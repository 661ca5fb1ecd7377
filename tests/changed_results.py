"""Result files with whatever content a test wants, under checksums that hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedgmr_hpc.storage.blank_file import Texts, write_texts
from fedgmr_hpc.storage.checksums import block_xxh3
from fedgmr_hpc.storage.hdf5_file import clip_text, put
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.storage.schema import LONG_BYTES, TABLES, Columns, describe_datasets


def write_result(path: Path, result: Result) -> Path:
    """A whole run as `read_result` reads it."""
    with h5py.File(path, "w", libver="latest") as file:
        _write(file, result)
    return path


def _write(group: h5py.Group, result: Result) -> None:
    texts = Texts(result.config_yaml, result.layout_json, result.provenance)
    write_texts(group, texts, result.status)
    tables = {table: getattr(result, table) for table in TABLES}
    committed = [_num_rows(columns) for columns in tables.values()]
    put(group, "committed", np.array(committed, np.int64))
    for part, columns in {**tables, "ranks": result.ranks, "model": _model(result)}.items():
        written = {name: _fixed_names(values) for name, values in columns.items()}
        for name, values in written.items():
            put(group, f"{part}/{name}", values)
        num_rows = _num_rows(columns)
        blocks = [[num_rows, block_xxh3(written)]] if num_rows else []
        put(group, f"checksums/{part}", np.array(blocks, np.uint64).reshape(-1, 2))
    describe_datasets(group)


def _model(result: Result) -> Columns:
    return {"weights": result.weights}


def _num_rows(columns: Columns) -> int:
    return min((len(values) for values in columns.values()), default=0)


def _fixed_names(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A column as it lies in a file: names are fixed-size utf-8 there."""
    if values.dtype.kind != "U":
        return values
    names = [clip_text(str(value), LONG_BYTES) for value in values]
    return np.array(names, h5py.string_dtype("utf-8", LONG_BYTES))
