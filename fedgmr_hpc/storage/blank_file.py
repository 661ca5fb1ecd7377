"""A result file without rows: its datasets and texts, all of which exist before SWMR starts.

What they hold is said in storage/writer.py. Shapes: C clients, P model weights, R ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py  # type: ignore[import-untyped]
import numpy as np

from fedgmr_hpc.storage.checksums import status_xxh3, texts_xxh3
from fedgmr_hpc.storage.hdf5_file import LOCKING, describe_error, fixed_text, put
from fedgmr_hpc.storage.run_files import part_path
from fedgmr_hpc.storage.schema import FORMAT, TABLES, Column, RankRow, columns_of, describe_datasets

STATUS_BYTES = 2048
RUNNING = "running"
CHUNK_BYTES, BLOCKS_A_CHUNK = 1 << 14, 64
WEIGHTS = Column("weights", np.dtype(np.float32), False)


class Texts(NamedTuple):
    """What is written once: the configuration (YAML), names and shapes of the weights (JSON), and
    where the run comes from (provenance.py)."""

    config: str
    layout: str
    provenance: Mapping[str, str]


class Sizes(NamedTuple):
    """C, P, and the most rows that `/ranks` can take."""

    num_clients: int
    num_weights: int
    num_ranks: int


def open_new(path: Path, locking: str) -> h5py.File:
    """Return the file that is to be `path`, still under the name of a part; what a kill left
    there goes.

    Raises:
        OSError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part_path(path).unlink(missing_ok=True)
        return h5py.File(part_path(path), "x", libver="latest", locking=LOCKING[locking])
    except OSError as error:
        reason = describe_error(error)
        raise OSError(f"results {path}: cannot create the file ({reason})") from error


def lay_out(file: h5py.File, sizes: Sizes, texts: Texts) -> None:
    """Make everything that a run's file has, without rows."""
    for table, row_type in TABLES.items():
        _create_table(file, table, columns_of(row_type), sizes.num_clients, None)
    _create_table(file, "ranks", columns_of(RankRow), sizes.num_clients, sizes.num_ranks)
    _create_table(file, "model", [WEIGHTS], sizes.num_clients, sizes.num_weights)
    put(file, "committed", np.zeros(len(TABLES), np.int64))
    write_texts(file, texts, RUNNING)
    describe_datasets(file)


def _create_table(
    file: h5py.File, table: str, columns: Sequence[Column], num_clients: int, max_rows: int | None
) -> None:
    for column in columns:
        tail = (num_clients,) if column.per_client else ()
        fitting = CHUNK_BYTES // (column.dtype.itemsize * max(1, *tail, 1))
        chunk = max(1, min(fitting, max_rows or fitting))
        _create(file, f"{table}/{column.name}", column.dtype, (chunk, *tail), max_rows)
    _create(file, f"checksums/{table}", np.dtype(np.uint64), (BLOCKS_A_CHUNK, 2), None)


def _create(
    file: h5py.File, name: str, dtype: np.dtype[Any], chunks: tuple[int, ...], max_rows: int | None
) -> None:
    tail = chunks[1:]
    file.create_dataset(name, (0, *tail), dtype, maxshape=(max_rows, *tail), chunks=chunks)


def write_texts(group: h5py.Group, texts: Texts, status: str) -> None:
    """Write what a run's file or group says besides its tables, with its checksums."""
    group.attrs["format"] = fixed_text(FORMAT)
    put(group, "config", fixed_text(texts.config))
    put(group, "model/layout", fixed_text(texts.layout))
    put(group, "status", fixed_text(status, STATUS_BYTES))
    attributes = group.create_group("provenance").attrs
    for key, value in texts.provenance.items():
        attributes[key] = fixed_text(value)
    put(group, "checksums/texts", np.uint64(texts_xxh3(*texts)))
    put(group, "checksums/status", np.uint64(status_xxh3(status)))
