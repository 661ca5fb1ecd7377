"""The tables of a result file that is being written: blocks of rows, each under a checksum.

Shapes: N rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.storage.checksums import block_xxh3
from fedgmr_hpc.storage.hdf5_file import force_to_disk
from fedgmr_hpc.storage.schema import PARTS, TABLES, Columns


class TableFile:
    """Adds rows to the tables of an open file. Its errors are those of HDF5."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._num_rows = dict.fromkeys(PARTS, 0)  # that count
        self._num_blocks = dict.fromkeys(PARTS, 0)

    def num_committed(self) -> dict[str, int]:
        """Return how many rows of each table count."""
        return {table: self._num_rows[table] for table in TABLES}

    def commit(self, added: Mapping[str, Columns]) -> None:
        """Add a block to each table that has new rows; they count once they are on the disk."""
        added = {t: columns for t, columns in added.items() if len(next(iter(columns.values())))}
        num_rows = {table: self._add_block(table, columns) for table, columns in added.items()}
        force_to_disk(self._file)
        self._num_rows |= num_rows
        self._num_blocks |= {table: self._num_blocks[table] + 1 for table in added}
        committed = self._file["committed"]
        committed[...] = list(self.num_committed().values())
        committed.id.flush()

    def _add_block(self, table: str, columns: Columns) -> int:
        """Return how many rows the table has then."""
        start = self._num_rows[table]
        stop = start + min(len(values) for values in columns.values())
        for name, values in columns.items():
            self._fill(f"{table}/{name}", start, values)
        block = np.array([[stop, block_xxh3(columns)]], np.uint64)
        self._fill(f"checksums/{table}", self._num_blocks[table], block)
        return stop

    def _fill(self, name: str, start: int, values: NDArray[Any]) -> None:
        # Opened for this write only: a dataset kept open keeps up to 8 MiB of its chunks in memory.
        dataset = self._file[name]
        dataset.resize(start + len(values), axis=0)
        dataset[start:] = values
        dataset.id.flush()  # whose error is raised; that of a close is not
