"""One HDF5 file a run: what is in it, and its writer (columns: schema.py, reading: result.py).

Shapes: C clients, P model weights, R ranks; N rows of a table so far. Units stand in the names.

    path              type           shape     filled     content
    @format           utf-8, fixed   -         at start   "fedgmr_hpc results 2"
    /status           utf-8, fixed   ()        all along  running | finished | failed: reason |
                                                          checkpointed: when, and by which signal
    /committed        int64          (8,)      each flush rows of the tables, in the order below
    /config           utf-8, fixed   ()        at start   resolved configuration, YAML
    /provenance @KEY  utf-8, fixed   -         at start   one attribute a key: provenance.py
    /merges/COL       int64 float64  (N[, C])  each flush one dataset a field of records.MergeRow
    /evaluations/COL  int64 float64  (N,)      each flush of records.EvaluationRow
    /updates/COL      int64 float64  (N,)      each flush of records.UpdateRow
    /events/COL       int64 float64  (N,)      each flush of records.EventRow, what a replay follows
    /transfers/COL    int64 float64  (N,)      each flush of records.TransferRow, wall clock only
    /checkpoints/COL  int64 float64  (N,)      each flush of records.CheckpointRow
    /looks/COL        int64 float64  (N,)      each flush of records.LookRow, where asked for
    /submodels/COL    int64 float64  (N,)      each flush of records.SubmodelRow, where asked for
    /ranks/COL        int64 float64, (R,)      at the end of schema.RankRow
                      utf-8 fixed
    /model/weights    float32        (P,)      at the end final weights, natural order; (0,) before
    /model/layout     utf-8, fixed   ()        at start   JSON: names, shapes, offsets

Columns named `*_xxh3` are uint64. There is one writer (rank 0). Everything exists before SWMR
starts and has a fixed size, so readers may follow a running file, and a killed writer loses only
what came after its last flush. A dataset's extent can reach the disk before its values (a full
disk, a kill inside a flush), hence `/committed`: it is written after the columns, and readers cut
them to it. A run that is resumed (resume.py) copies its rows up to the checkpoint's into a new
file, which then takes the old one's name; `/provenance @resume_1` and on say where it went on. A
file from before there were checkpoints, looks or sub-models' scores lacks the table and reads as
one without rows.

The writer takes a file lock until SWMR starts, as `results.locking` says; readers take none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.hdf5file import (
    LOCKING,
    clip_text,
    describe_error,
    fixed_text,
)
from fedgmr_hpc.records import Floats, MergeRow
from fedgmr_hpc.schema import (
    FORMAT,
    NAME_BYTES,
    TABLE_OF,
    TABLES,
    Column,
    Columns,
    RankRow,
    Row,
    columns_of,
)

STATUS_BYTES = 2048
CHUNK_BYTES = 1 << 14


class ResultWriter:
    """Writes one run's results. A context manager: an exception marks the file `failed: ...`.

    Args:
        path: the file to create; its folder is made where missing.
        config_yaml: the resolved configuration.
        provenance: see provenance.py.
        num_clients: C, the width of per-client columns.
        num_weights: P.
        layout_json: names, shapes and offsets of the flat weights.
        num_ranks: R, the most rows that `/ranks` can take.
        flush_s: seconds between two flushes while rows come in.
        locking: whether the file is locked while it is made: auto, on or off, see config.py.
        kept: the rows to begin with, by table; the new file then replaces the one at `path`.

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
    ) -> None:
        self.path = Path(path)
        self._flush_s, self._flushed_s = flush_s, time.monotonic()
        self._num_clients = num_clients
        self._schema = {table: columns_of(row_type) for table, row_type in TABLES.items()}
        self._rows: dict[str, list[Row]] = {table: [] for table in TABLES}
        self._committed = dict.fromkeys(TABLES, 0)
        self._file = _create(self.path if kept is None else _fresh_part(self.path), locking)
        with self._named_errors():
            for table, columns in self._schema.items():
                self._create_table(table, columns, None)
            self._create_table("ranks", columns_of(RankRow), num_ranks)
            self._create("model/weights", np.dtype(np.float32), (), num_weights)
            self._write_header(config_yaml, layout_json, provenance)
            self._keep(kept or {})
            self._file.swmr_mode = True
            self._file.flush()
            if kept is not None:
                os.replace(self._file.filename, self.path)

    def _keep(self, kept: Mapping[str, Columns]) -> None:
        for table, columns in kept.items():
            for name, values in columns.items():
                self._fill(f"{table}/{name}", 0, values)
                self._committed[table] = len(values)
        self._file["committed"][...] = list(self._committed.values())

    def sync(self) -> dict[str, int]:
        """Brings every row to the disk itself; returns how many rows each table has.

        Raises:
            OSError: writing failed.
        """
        self.flush()
        with self._named_errors(), self.path.open("rb") as file:
            os.fsync(file.fileno())
        return dict(self._committed)

    def _create_table(self, table: str, columns: Sequence[Column], max_rows: int | None) -> None:
        for column in columns:
            tail = (self._num_clients,) if column.per_client else ()
            self._create(f"{table}/{column.name}", column.dtype, tail, max_rows)

    def _create(
        self, name: str, dtype: np.dtype[Any], tail: tuple[int, ...], max_rows: int | None
    ) -> None:
        fitting = CHUNK_BYTES // (dtype.itemsize * max(1, *tail, 1))
        chunk = max(1, min(fitting, max_rows or fitting))
        self._file.create_dataset(
            name, (0, *tail), dtype, maxshape=(max_rows, *tail), chunks=(chunk, *tail)
        )

    def _write_header(self, config: str, layout: str, provenance: Mapping[str, str]) -> None:
        self._file.attrs["format"] = fixed_text(FORMAT)
        self._file["config"], self._file["model/layout"] = fixed_text(config), fixed_text(layout)
        self._file["status"] = fixed_text("running", STATUS_BYTES)
        self._file["committed"] = np.zeros(len(TABLES), np.int64)
        attributes = self._file.create_group("provenance").attrs
        for key, value in provenance.items():
            attributes[key] = fixed_text(value)

    def append(self, row: Row) -> None:
        """Buffer one row (its arrays are copied); flush when the last flush is `flush_s` ago.

        Raises:
            ValueError: a per-client array is not of shape [C].
            OSError: the flush failed.
        """
        copy = self._copied(row) if isinstance(row, MergeRow) else row
        self._rows[TABLE_OF[type(row)]].append(copy)
        if time.monotonic() - self._flushed_s >= self._flush_s:
            self.flush()

    def _copied(self, row: MergeRow) -> MergeRow:
        return replace(
            row,
            staleness=self._per_client("staleness", row.staleness),
            density=self._per_client("density", row.density),
            weight=self._per_client("weight", row.weight),
            up_bytes=self._per_client("up_bytes", row.up_bytes),
            down_bytes=self._per_client("down_bytes", row.down_bytes),
        )

    def _per_client(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        if values.shape != (self._num_clients,):
            want = (self._num_clients,)
            raise ValueError(f"results MergeRow.{name}: shape {values.shape}, want {want}")
        return np.array(values)

    def flush_if_due(self) -> None:
        """Flush when the oldest buffered row may have waited `flush_s`."""
        if any(self._rows.values()) and time.monotonic() - self._flushed_s >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Bring every buffered row to the file, where readers and a crash find it."""
        with self._named_errors():
            for table, rows in self._rows.items():
                for column in self._schema[table] if rows else ():
                    values = np.array([getattr(row, column.name) for row in rows], column.dtype)
                    self._fill(f"{table}/{column.name}", self._committed[table], values)
            self._file.flush()
            for table, rows in self._rows.items():  # only now: a failed flush can be repeated
                self._committed[table] += len(rows)
                rows.clear()
            self._write("committed", list(self._committed.values()))
        self._flushed_s = time.monotonic()

    def finish(
        self, status: str, *, weights: Floats | None = None, ranks: Sequence[RankRow] | None = None
    ) -> None:
        """Write the final model and the rank table, then `status`, and close; later calls are idle.

        Raises:
            ValueError: weights [P] or ranks do not fit the sizes given at the start.
            OSError: writing failed.
        """
        if not self._file:
            return
        self.flush()
        with self._named_errors():
            if weights is not None:
                self._check_size("model/weights", weights.size, exact=True)
                self._fill("model/weights", 0, weights)
            if ranks:
                self._check_size("ranks/rank", len(ranks), exact=False)
                self._write_ranks(ranks)
            self._file.flush()
            self._write("status", fixed_text(status, STATUS_BYTES))
            self._file.close()

    def _check_size(self, name: str, size: int, *, exact: bool) -> None:
        room = self._file[name].maxshape[0]
        if size > room or (exact and size != room):
            raise ValueError(f"results {name}: {size} values, the file was made for {room}")

    def _write_ranks(self, ranks: Sequence[RankRow]) -> None:
        for column in columns_of(RankRow):
            values = [getattr(row, column.name) for row in ranks]
            if column.dtype.kind == "S":
                values = [clip_text(value, NAME_BYTES) for value in values]
            self._fill(f"ranks/{column.name}", 0, np.array(values, column.dtype))

    def _fill(self, name: str, start: int, values: NDArray[Any]) -> None:
        # Opened for this write only: a dataset kept open keeps up to 8 MiB of its chunks in memory.
        dataset = self._file[name]
        dataset.resize(start + len(values), axis=0)
        dataset[start:] = values

    def _write(self, name: str, value: Any) -> None:
        self._file[name][...] = value
        self._file[name].flush()  # this dataset alone, so it works while another one fails

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
            raise OSError(f"results {self.path}: cannot write ({describe_error(error)})") from error

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
        elif self._file:
            with suppress(OSError):  # the run's own error is the one to see
                self.flush()
            with suppress(OSError), self._named_errors():
                reason = f"failed: {type(error).__name__}: {error}"
                self._write("status", fixed_text(reason, STATUS_BYTES))
                self._file.close()


def _create(path: Path, locking: str) -> h5py.File:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return h5py.File(path, "x", libver="latest", locking=LOCKING[locking])
    except OSError as error:
        if isinstance(error, FileExistsError) and path.is_file():
            raise ValueError(
                f"results.path: {path} exists and is never overwritten; move it or name another"
            ) from error
        reason = describe_error(error)
        raise OSError(f"results {path}: cannot create the file ({reason})") from error


def _fresh_part(path: Path) -> Path:
    """Where a file is made that is to replace the one at `path`; what a kill left there goes."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    return part
