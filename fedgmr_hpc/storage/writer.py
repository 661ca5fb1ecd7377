"""One HDF5 file a run: what is in it, and its writer (columns: schema.py, reading: reader.py).

Shapes: C clients, P model weights, R ranks; N rows of a table so far. Units stand in the names.

    path              type           shape     filled     content
    @format           utf-8, fixed   -         at start   "fedgmr_hpc results 3"
    /status           utf-8, fixed   ()        all along  running | finished | failed: reason |
                                                          checkpointed: when, and by what
    /committed        int64          (8,)      each flush rows of the tables, in the order below
    /config           utf-8, fixed   ()        at start   resolved configuration, YAML
    /provenance @KEY  utf-8, fixed   -         at start   one attribute a key: provenance.py
    /merges/COL       int64 float64  (N[, C])  each flush one dataset a field of rows.MergeRow
    /evaluations/COL  int64 float64  (N,)      each flush of rows.EvaluationRow
    /updates/COL      int64 float64  (N,)      each flush of rows.UpdateRow
    /events/COL       int64 float64  (N,)      each flush of rows.EventRow, what a replay follows
    /transfers/COL    int64 float64  (N,)      each flush of rows.TransferRow, wall clock only
    /checkpoints/COL  int64 float64  (N,)      each flush of rows.CheckpointRow
    /looks/COL        int64 float64  (N,)      each flush of rows.LookRow, where asked for
    /submodels/COL    int64 float64  (N,)      each flush of rows.SubmodelRow, where asked for
    /ranks/COL        int64 float64, (R,)      at the end of schema.RankRow
                      utf-8 fixed
    /model/weights    float32        (W,)      at the end final weights, natural order, and behind
                                               them static norms' statistics; (0,) before
    /model/layout     utf-8, fixed   ()        at start   JSON: names, shapes, offsets
    /checksums/...    uint64         see there each flush checksums.py

Columns named `*_xxh3` are uint64. Every dataset has the attributes `unit` and `meaning`, from
schema.MEANINGS. There is one writer (rank 0). Everything exists before SWMR starts and has a fixed
size, so readers may follow a running file, and a killed writer loses only what came after its last
flush. A flush adds a block of rows and its checksum to each table, waits until the disk has them,
and only then writes `/committed`, to which readers cut the tables: a dataset's extent can reach the
disk before its values (a full disk, a kill inside a flush).

After an error nothing is written through HDF5 any more (hdf5_file.abandon). The weights and
`/ranks` count where the status says that the run has ended, which is said last: the file is closed,
read back and compared first, then the status is written into its place. A run that is resumed
(runtime/checkpoints/) copies its rows up to the checkpoint's into a new file, which then takes the
old one's name; `/provenance @resume_1` and on say where it was resumed. Files of format 2 have no
checksums, and the first ones lack tables that came later; they are read nevertheless.

The writer takes a file lock until SWMR starts, as `results.locking` says; readers take none.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.storage.blank_file import STATUS_BYTES, Sizes, Texts, lay_out, open_new
from fedgmr_hpc.storage.checkpoint import sync_folder
from fedgmr_hpc.storage.checksums import status_xxh3
from fedgmr_hpc.storage.hdf5_file import (
    UNREADABLE,
    abandon,
    clip_text,
    describe_error,
    force_to_disk,
    open_for_reading,
    settle_closed,
)
from fedgmr_hpc.storage.reader import doubt, read_group
from fedgmr_hpc.storage.run_files import part_path
from fedgmr_hpc.storage.schema import TABLE_OF, TABLES, Columns, RankRow, Row, columns_of
from fedgmr_hpc.storage.table_file import TableFile


class ResultWriter:
    """Writes one run's results. A context manager: an exception marks the file `failed: ...`.

    Args:
        path: the file to create; its folder is made where missing.
        config_yaml: the resolved configuration.
        provenance: see runtime/provenance.py.
        num_clients: C, the width of per-client columns.
        num_weights: P.
        layout_json: names, shapes and offsets of the flat weights.
        num_ranks: R, the most rows that `/ranks` can take.
        flush_s: seconds between two flushes while rows come in.
        locking: whether the file is locked while it is made: auto, on or off.
        kept: the rows to begin with, by table; the new file then replaces the one at `path`.
        may_write: raises a RunError where the run is no longer this process's.

    Raises:
        ValueError: `path` exists, and no rows are kept.
        OSError: `path` cannot be created or written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config_yaml: str,
        provenance: Mapping[str, str],
        num_clients: int,
        num_weights: int,
        layout_json: str,
        num_ranks: int,
        flush_s: float = 2.0,
        locking: str = "auto",
        kept: Mapping[str, Columns] | None = None,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self._may_write = Path(path), may_write
        self._flush_s, self._flushed_s = flush_s, time.monotonic()
        self._sizes = Sizes(num_clients, num_weights, num_ranks)
        self._schema = {table: columns_of(row_type) for table, row_type in TABLES.items()}
        self._per_client_names = {
            table: [c.name for c in columns if c.per_client]
            for table, columns in self._schema.items()
        }
        self._rows: dict[str, list[Row]] = {table: [] for table in TABLES}
        self._error: OSError | RunError | None = None  # after which nothing is written
        self._is_ended = False
        if kept is None and self.path.exists():
            raise ValueError(
                f"results.path: {path} exists and is never overwritten; move it or name another"
            )
        self._make(locking, Texts(config_yaml, layout_json, provenance), kept or {})

    def _make(self, locking: str, texts: Texts, kept: Mapping[str, Columns]) -> None:
        """Make the file under another name, which it loses when all is in it."""
        part = part_path(self.path)
        self._file = open_new(self.path, locking)
        try:
            with self._writing():
                lay_out(self._file, self._sizes, texts)
                self._tables = TableFile(self._file)
                self._tables.commit(kept)
                self._file.swmr_mode = True
                force_to_disk(self._file)
                self._status_at = [
                    self._file[name].id.get_offset() for name in ("checksums/status", "status")
                ]
                self._may_write()
                os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def sync(self) -> dict[str, int]:
        """Bring every row to the disk itself; return how many rows each table has.

        Raises:
            OSError: writing failed.
        """
        self.flush()
        with self._writing():
            force_to_disk(self._file)
        return self._tables.num_committed()

    def append(self, *rows: Row) -> None:
        """Buffer rows (their arrays are copied), which are flushed together when the last flush is
        `flush_s` ago.

        Raises:
            ValueError: a per-client array is not of shape [C].
            OSError: the flush failed.
        """
        for row in rows:
            self._rows[TABLE_OF[type(row)]].append(self._copied(row))
        if time.monotonic() - self._flushed_s >= self._flush_s:
            self.flush()

    def _copied(self, row: Row) -> Row:
        """Return the row with its per-client arrays as they are now: their owner goes on changing
        them.
        """
        names = self._per_client_names[TABLE_OF[type(row)]]
        own: dict[str, Any] = {name: self._per_client(row, name) for name in names}
        return replace(row, **own) if own else row

    def _per_client(self, row: Row, name: str) -> NDArray[Any]:
        values, want = getattr(row, name), (self._sizes.num_clients,)
        if values.shape != want:
            where = f"{type(row).__name__}.{name}"
            raise ValueError(f"results {where}: shape {values.shape}, want {want}")
        return np.array(values)

    def flush_if_due(self) -> None:
        """Flush when the oldest buffered row may have waited `flush_s`."""
        if any(self._rows.values()) and time.monotonic() - self._flushed_s >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Bring every buffered row to the disk, where readers and a crash find it.

        Raises:
            OSError: it failed; nothing is written any more.
            RunError: the run is no longer this process's.
        """
        with self._writing():
            filled = [table for table, rows in self._rows.items() if rows]
            self._tables.commit({table: self._columns(table) for table in filled})
            for rows in self._rows.values():
                rows.clear()
        self._flushed_s = time.monotonic()

    def _columns(self, table: str) -> Columns:
        rows, columns = self._rows[table], self._schema[table]
        return {c.name: np.array([getattr(row, c.name) for row in rows], c.dtype) for c in columns}

    def finish(
        self, status: str, *, weights: Floats | None = None, ranks: Sequence[RankRow] | None = None
    ) -> None:
        """Write the final model and the rank table, close, read all back, and only then write
        `status`; later calls are idle.

        Raises:
            ValueError: weights [P] or ranks do not fit the sizes given at the start.
            OSError: writing failed, or what is read back is not what was written.
            RunError: the run is no longer this process's.
        """
        if self._is_ended:
            return
        last: dict[str, Columns] = {}
        if ranks:
            self._check_size("ranks/rank", len(ranks), len(ranks) <= self._sizes.num_ranks)
            last["ranks"] = _rank_columns(ranks)
        if weights is not None:
            self._check_size("model/weights", weights.size, weights.size == self._sizes.num_weights)
            last["model"] = {"weights": weights}
        self.flush()
        with self._writing():
            self._tables.commit(last)
        self._close()
        self._prove(weights)
        self._end(status)

    def _check_size(self, name: str, size: int, is_right: bool) -> None:
        if not is_right:
            room = self._file[name].maxshape[0]
            raise ValueError(f"results {name}: {size} values, the file was made for {room}")

    def _close(self) -> None:
        with self._writing():
            self._file.close()
            settle_closed(self.path)

    def _prove(self, weights: Floats | None) -> None:
        try:
            with open_for_reading(self.path) as file:
                result = read_group(self.path, file, is_ended=True)
            fault = doubt(result) if weights is not None else ""
            if weights is not None and result.weights.tobytes() != weights.tobytes():
                fault = "its weights are not those that were written"
        except UNREADABLE as error:
            fault = describe_error(error)
        if fault:
            raise OSError(f"results {self.path}: cannot be read back ({fault})")

    def _end(self, status: str) -> None:
        """Write the status into its place, without HDF5: the file is closed, or was abandoned."""
        clipped = clip_text(status, STATUS_BYTES)
        checksum = status_xxh3(clipped.decode()).to_bytes(8, sys.byteorder)
        texts = (checksum, clipped.ljust(STATUS_BYTES, b"\0"))
        try:
            self._may_write()
            with self.path.open("r+b") as file:
                for place, text in zip(self._status_at, texts, strict=True):
                    os.pwrite(file.fileno(), text, place)
                    os.fsync(file.fileno())
        except OSError as error:
            raise self._named(error) from error
        self._is_ended = True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Around all that writes: none but the run's owner does, and nobody after an error."""
        if self._error is not None:
            raise self._error
        try:
            self._may_write()
            yield
        except RunError as error:
            self._error = error
            abandon(self._file)
            raise
        except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
            self._error = self._named(error)
            abandon(self._file)
            raise self._error from error

    def _named(self, error: OSError | RuntimeError) -> OSError:
        return OSError(f"results {self.path}: cannot write ({describe_error(error)})")

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish("finished")
        elif not self._is_ended:
            with suppress(OSError, RunError):  # the run's own error is the one to see
                self.flush()
                self._close()
            if not isinstance(self._error, RunError):
                with suppress(OSError, RunError):
                    self._end(f"failed: {type(error).__name__}: {error}")


def _rank_columns(ranks: Sequence[RankRow]) -> Columns:
    columns: Columns = {}
    for name, dtype, _ in columns_of(RankRow):
        values = [getattr(row, name) for row in ranks]
        if dtype.kind == "S":
            values = [clip_text(value, dtype.itemsize) for value in values]
        columns[name] = np.array(values, dtype)
    return columns
