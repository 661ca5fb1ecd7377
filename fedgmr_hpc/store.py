"""One HDF5 file a run: schema, append, provenance, read back (the only importer of h5py).

Shapes: C clients, P model weights, R ranks; N rows of a table so far. Units stand in the names.

    path              type           shape     filled     content
    @format           utf-8, fixed   -         at start   "fedgmr_hpc results 2"
    /status           utf-8, fixed   ()        all along  running | finished | failed: reason
    /committed        int64          (5,)      each flush rows of the tables, in the order below
    /config           utf-8, fixed   ()        at start   resolved configuration, YAML
    /provenance @KEY  utf-8, fixed   -         at start   one attribute a key: provenance.py
    /merges/COL       int64 float64  (N[, C])  each flush one dataset a field of records.MergeRow
    /evaluations/COL  int64 float64  (N,)      each flush of records.EvaluationRow
    /updates/COL      int64 float64  (N,)      each flush of records.UpdateRow
    /events/COL       int64 float64  (N,)      each flush of records.EventRow, what a replay follows
    /transfers/COL    int64 float64  (N,)      each flush of records.TransferRow, wall clock only
    /ranks/COL        int64 float64, (R,)      at the end of RankRow, below
                      utf-8 fixed
    /model/weights    float32        (P,)      at the end final weights, natural order; (0,) before
    /model/layout     utf-8, fixed   ()        at start   JSON: names, shapes, offsets

Columns named `*_xxh3` are uint64. There is one writer (rank 0). Everything exists before SWMR
starts and has a fixed size, so readers may follow a running file, and a killed writer loses only
what came after its last flush. A dataset's extent can reach the disk before its values (a full
disk, a kill inside a flush), hence `/committed`: it is written after the columns, and readers cut
them to it.

File locks are taken where the file system has them ("best-effort"); HDF5_USE_FILE_LOCKING=FALSE
turns them off, e.g. on a Lustre mount that refuses them with an unusual error.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, get_args, get_type_hints

import h5py  # type: ignore[import-untyped]
import numpy as np
import yaml
from numpy.typing import NDArray

from fedgmr_hpc.records import (
    EvaluationRow,
    EventRow,
    Floats,
    MergeRow,
    TransferRow,
    UpdateRow,
)

FORMAT = "fedgmr_hpc results 2"
STATUS_BYTES = 2048
NAME_BYTES = 256  # host and device names of /ranks
CHUNK_BYTES = 1 << 14

Row = MergeRow | EvaluationRow | UpdateRow | EventRow | TransferRow
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RankRow:
    """What one rank did in the whole run. `overhead_bytes`: traffic that only placement caused."""

    rank: int
    host: str
    device: str
    sent_bytes: int
    received_bytes: int
    overhead_bytes: int
    num_tasks: int
    train_s: float
    wait_s: float
    rss_bytes: int


TABLES: dict[str, type[Any]] = {
    "merges": MergeRow,
    "evaluations": EvaluationRow,
    "updates": UpdateRow,
    "events": EventRow,
    "transfers": TransferRow,
}
REQUIRED = ("status", "committed", "config", "provenance", *TABLES, "ranks", "model/weights")


class Column(NamedTuple):
    """One dataset: its type, and whether a row holds one value a client."""

    name: str
    dtype: np.dtype[Any]
    per_client: bool


def columns_of(row_type: type[Any]) -> list[Column]:
    """The columns of a row dataclass, from its annotations, in field order."""
    hints = get_type_hints(row_type)
    return [_column(field.name, hints[field.name]) for field in fields(row_type)]


def _column(name: str, hint: Any) -> Column:
    if get_args(hint):  # NDArray[scalar] is ndarray[shape, dtype[scalar]]
        (scalar,) = get_args(get_args(hint)[1])
        return Column(name, np.dtype(scalar), True)
    if name.endswith("_xxh3"):
        return Column(name, np.dtype(np.uint64), False)
    name_type = h5py.string_dtype("utf-8", NAME_BYTES)
    kinds = {int: np.dtype(np.int64), float: np.dtype(np.float64), str: name_type}
    return Column(name, kinds[hint], False)


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

    Raises:
        ValueError: `path` exists.
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
    ) -> None:
        self.path = Path(path)
        self._flush_s, self._flushed_s = flush_s, time.monotonic()
        self._num_clients = num_clients
        self._schema = {table: columns_of(row_type) for table, row_type in TABLES.items()}
        self._rows: dict[str, list[list[Any]]] = {table: [] for table in TABLES}
        self._committed = dict.fromkeys(TABLES, 0)
        self._file = _create(self.path)
        with self._named_errors():
            for table, columns in self._schema.items():
                self._create_table(table, columns, None)
            self._create_table("ranks", columns_of(RankRow), num_ranks)
            self._create("model/weights", np.dtype(np.float32), (), num_weights)
            self._write_header(config_yaml, layout_json, provenance)
            self._file.swmr_mode = True

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
        self._file.attrs["format"] = _text(FORMAT)
        self._file["config"], self._file["model/layout"] = _text(config), _text(layout)
        self._file["status"] = _text("running", STATUS_BYTES)
        self._file["committed"] = np.zeros(len(TABLES), np.int64)
        attributes = self._file.create_group("provenance").attrs
        for key, value in provenance.items():
            attributes[key] = _text(value)

    def append(self, row: Row) -> None:
        """Buffer one row (its arrays are copied); flush when the last flush is `flush_s` ago.

        Raises:
            ValueError: a per-client array is not of shape [C].
            OSError: the flush failed.
        """
        table = next(name for name, row_type in TABLES.items() if isinstance(row, row_type))
        self._rows[table].append([self._value(row, column) for column in self._schema[table]])
        if time.monotonic() - self._flushed_s >= self._flush_s:
            self.flush()

    def _value(self, row: Row, column: Column) -> Any:
        value = getattr(row, column.name)
        if not column.per_client:
            return value
        values = np.array(value, column.dtype)
        if values.shape != (self._num_clients,):
            name = f"{type(row).__name__}.{column.name}"
            raise ValueError(f"results {name}: shape {values.shape}, want {(self._num_clients,)}")
        return values

    def flush_if_due(self) -> None:
        """Flush when the oldest buffered row may have waited `flush_s`."""
        if any(self._rows.values()) and time.monotonic() - self._flushed_s >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Bring every buffered row to the file, where readers and a crash find it."""
        with self._named_errors():
            for table, rows in self._rows.items():
                for index, column in enumerate(self._schema[table] if rows else ()):
                    values = np.array([row[index] for row in rows], column.dtype)
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
            self._write("status", _text(status, STATUS_BYTES))
            self._file.close()

    def _check_size(self, name: str, size: int, *, exact: bool) -> None:
        room = self._file[name].maxshape[0]
        if size > room or (exact and size != room):
            raise ValueError(f"results {name}: {size} values, the file was made for {room}")

    def _write_ranks(self, ranks: Sequence[RankRow]) -> None:
        for column in columns_of(RankRow):
            values = [getattr(row, column.name) for row in ranks]
            if column.dtype.kind == "S":
                values = [_clip(value, NAME_BYTES) for value in values]
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
            raise OSError(f"results {self.path}: cannot write ({_reason(error)})") from error

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
                self._write("status", _text(reason, STATUS_BYTES))
                self._file.close()


def _create(path: Path) -> h5py.File:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return h5py.File(path, "x", libver="latest", locking="best-effort")
    except OSError as error:
        if isinstance(error, FileExistsError) and path.is_file():
            raise ValueError(
                f"results.path: {path} exists and is never overwritten; move it or name another"
            ) from error
        raise OSError(f"results {path}: cannot create the file ({_reason(error)})") from error


def _text(text: str, num_bytes: int = 0) -> NDArray[Any]:
    """`text` as a fixed-size utf-8 scalar, cut to `num_bytes`; 0 means as long as it needs."""
    data = _clip(text, num_bytes or sys.maxsize)
    return np.array(data, h5py.string_dtype("utf-8", max(1, num_bytes or len(data))))


def _clip(text: str, num_bytes: int) -> bytes:
    """At most `num_bytes` of the utf-8 of `text`, never half a character."""
    data = text.encode("utf-8", errors="replace")[:num_bytes]
    return data.decode("utf-8", errors="ignore").encode()


def _reason(error: BaseException) -> str:
    """The part of an HDF5 message that a user can act on."""
    found = re.search(r"error message = '([^']*)'", str(error))
    return found.group(1) if found else (str(error) or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class Result:
    """One run, read back. A table maps column name to [N] or [N, C]; text columns hold str."""

    path: Path
    status: str
    config_yaml: str
    config: dict[str, Any]
    provenance: dict[str, str]
    merges: Columns
    evaluations: Columns
    updates: Columns
    events: Columns
    transfers: Columns
    ranks: Columns
    weights: Floats  # [P], or [0] when the run has not finished
    layout_json: str


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read a finished, running or killed run, up to its last flush.

    Raises:
        ValueError: `path` is missing, unreadable or no result file; says what is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"results {path}: no such file")
    try:
        # After a kill only an SWMR reader gets in: to a plain open the file is still being written.
        with h5py.File(path, "r", libver="latest", swmr=True, locking="best-effort") as file:
            return _read(path, file)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"results {path}: cannot be read ({_reason(error)})") from error


def _read(path: Path, file: h5py.File) -> Result:
    missing = [name for name in REQUIRED if name not in file]
    if missing:
        lacks = ", ".join(f"/{name}" for name in missing)
        raise ValueError(f"results {path}: not a fedgmr_hpc result, it lacks {lacks}")
    committed = file["committed"][...].tolist()  # before the columns, which may grow meanwhile
    tables = {
        table: _read_columns(file[table], num_rows)
        for table, num_rows in zip(TABLES, committed, strict=True)
    }
    config_yaml = file["config"][()].decode()
    return Result(
        path=path,
        status=file["status"][()].decode(),
        config_yaml=config_yaml,
        config=yaml.safe_load(config_yaml) or {},
        provenance={key: value.decode() for key, value in file["provenance"].attrs.items()},
        ranks=_read_columns(file["ranks"], min(len(column) for column in file["ranks"].values())),
        weights=file["model/weights"][...],
        layout_json=file["model/layout"][()].decode(),
        **tables,
    )


def _read_columns(group: h5py.Group, num_rows: int) -> Columns:
    columns = {name: dataset[:num_rows] for name, dataset in group.items()}
    return {
        name: np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
        for name, values in columns.items()
    }


def deterministic_columns(result: Result) -> Columns:
    """Every dataset that must not depend on ranks or machine, by its path in the file."""
    tables = {
        "merges": result.merges,
        "evaluations": result.evaluations,
        "updates": result.updates,
        "events": result.events,
    }
    columns = {
        f"{table}/{name}": values
        for table, by_name in tables.items()
        for name, values in by_name.items()
        if not name.startswith("wall_")
    }
    return columns | {"model/weights": result.weights}


def differing_columns(a: Result, b: Result) -> list[str]:
    """Paths of the deterministic datasets that differ anywhere or in length; NaN equals NaN."""
    left, right = deterministic_columns(a), deterministic_columns(b)
    return sorted(
        name
        for name in left.keys() | right.keys()
        if name not in left
        or name not in right
        or not np.array_equal(left[name], right[name], equal_nan=True)
    )
