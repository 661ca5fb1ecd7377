"""One HDF5 file a run: schema, append, provenance, read back (how it is opened: hdf5file.py).

Shapes: C clients, P model weights, R ranks; N rows of a table so far. Units stand in the names.

    path              type           shape     filled     content
    @format           utf-8, fixed   -         at start   "fedgmr_hpc results 2"
    /status           utf-8, fixed   ()        all along  running | finished | failed: reason |
                                                          checkpointed: when, and by which signal
    /committed        int64          (6,)      each flush rows of the tables, in the order below
    /config           utf-8, fixed   ()        at start   resolved configuration, YAML
    /provenance @KEY  utf-8, fixed   -         at start   one attribute a key: provenance.py
    /merges/COL       int64 float64  (N[, C])  each flush one dataset a field of records.MergeRow
    /evaluations/COL  int64 float64  (N,)      each flush of records.EvaluationRow
    /updates/COL      int64 float64  (N,)      each flush of records.UpdateRow
    /events/COL       int64 float64  (N,)      each flush of records.EventRow, what a replay follows
    /transfers/COL    int64 float64  (N,)      each flush of records.TransferRow, wall clock only
    /checkpoints/COL  int64 float64  (N,)      each flush of records.CheckpointRow
    /ranks/COL        int64 float64, (R,)      at the end of RankRow, below
                      utf-8 fixed
    /model/weights    float32        (P,)      at the end final weights, natural order; (0,) before
    /model/layout     utf-8, fixed   ()        at start   JSON: names, shapes, offsets

Columns named `*_xxh3` are uint64. There is one writer (rank 0). Everything exists before SWMR
starts and has a fixed size, so readers may follow a running file, and a killed writer loses only
what came after its last flush. A dataset's extent can reach the disk before its values (a full
disk, a kill inside a flush), hence `/committed`: it is written after the columns, and readers cut
them to it. A run that is resumed (resume.py) copies its rows up to the checkpoint's into a new
file, which then takes the old one's name; `/provenance @resume_1` and on say where it went on. A
file from before there were checkpoints has no such table and reads as one with none.

The writer takes a file lock until SWMR starts, as `results.locking` says; readers take none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, get_args, get_type_hints

import h5py  # type: ignore[import-untyped]
import numpy as np
import yaml
from numpy.typing import NDArray

from fedgmr_hpc.hdf5file import (
    LOCKING,
    clip_text,
    describe_error,
    fixed_text,
    num_missing_bytes,
    num_readable_rows,
    open_for_reading,
)
from fedgmr_hpc.records import (
    CheckpointRow,
    EvaluationRow,
    EventRow,
    Floats,
    MergeRow,
    TransferRow,
    UpdateRow,
)

FORMAT = "fedgmr_hpc results 2"
MERGED_FORMAT = "fedgmr_hpc merged results 1"  # one group a run, see resultfiles.py
DAMAGE = (OSError, RuntimeError, KeyError, UnicodeDecodeError, yaml.YAMLError)
STATUS_BYTES = 2048
NAME_BYTES = 256  # host and device names of /ranks
CHUNK_BYTES = 1 << 14

Row = MergeRow | EvaluationRow | UpdateRow | EventRow | TransferRow | CheckpointRow
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
    "checkpoints": CheckpointRow,
}
_TABLE_OF = {row_type: table for table, row_type in TABLES.items()}
_LATER_TABLES = {"checkpoints"}  # that older files lack
REQUIRED = (
    *("status", "committed", "config", "provenance"),
    *(table for table in TABLES if table not in _LATER_TABLES),
    *("ranks", "model/weights"),
)


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
        self._rows[_TABLE_OF[type(row)]].append(copy)
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
    checkpoints: Columns = field(default_factory=dict)


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read a finished, running or killed run, up to its last flush.

    Raises:
        ValueError: `path` is missing, unreadable or no result file; says what is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"results {path}: no such file")
    try:
        with open_for_reading(path) as file:
            result = read_group(path, file)
            if missing_bytes := num_missing_bytes(path):
                _check_whole(path, file, missing_bytes)
            return result
    except DAMAGE as error:
        reason, missing_bytes = describe_error(error), num_missing_bytes(path)
        cut = f"cut off, the last {missing_bytes} bytes are missing: " * bool(missing_bytes)
        raise ValueError(f"results {path}: {cut}cannot be read ({reason})") from error


def _check_whole(path: Path, file: h5py.File, missing_bytes: int) -> None:
    """Fails unless all that counts lies before the end of a file that is too short."""
    file_bytes = path.stat().st_size
    committed = zip(TABLES, file["committed"][...].tolist(), strict=False)  # older ones have fewer
    rows = {table: num_rows for table, num_rows in committed if table in file}
    for name in ("status", "committed", "config", "model/layout", "model/weights"):
        rows[name] = len(file[name]) if file[name].ndim else 1
    for name, num_rows in rows.items():
        for place in [name] if name not in TABLES else [f"{name}/{c}" for c in file[name]]:
            if num_readable_rows(file[place], num_rows, file_bytes) < num_rows:
                raise ValueError(
                    f"results {path}: cut off, the last {missing_bytes} bytes are missing, with "
                    f"part of /{place}; `python -m fedgmr_hpc results repair` keeps the rest"
                )


def read_group(path: Path, file: h5py.Group) -> Result:
    """One run, from a file or from its group in a file of several (`resultfiles.merge`).

    Raises:
        ValueError: something is missing; says what.
        OSError, RuntimeError: HDF5 cannot read it.
    """
    missing = [name for name in REQUIRED if name not in file]
    if missing:
        lacks = ", ".join(f"/{name}" for name in missing)
        if file.attrs.get("format") == MERGED_FORMAT.encode():
            raise ValueError(f"results {path}: holds several runs; `results export` reads them")
        raise ValueError(f"results {path}: not a fedgmr_hpc result, it lacks {lacks}")
    committed = file["committed"][...].tolist()  # before the columns, which may grow meanwhile
    num_rows = dict(zip(TABLES, committed, strict=False))
    tables = {
        table: _read_columns(file[table], num_rows[table]) if table in file else _no_rows(row_type)
        for table, row_type in TABLES.items()
    }
    config_yaml = file["config"][()].decode()
    return Result(
        path=path,
        status=file["status"][()].decode(),
        config_yaml=config_yaml,
        config=yaml.safe_load(config_yaml) or {},
        provenance={key: value.decode() for key, value in file["provenance"].attrs.items()},
        ranks=_read_columns(file["ranks"], min(len(file["ranks"][name]) for name in file["ranks"])),
        weights=file["model/weights"][...],
        layout_json=file["model/layout"][()].decode(),
        **tables,
    )


def _no_rows(row_type: type[Any]) -> Columns:
    return {column.name: np.zeros(0, column.dtype) for column in columns_of(row_type)}


def kept_rows(result: Result, num_rows: Mapping[str, int]) -> dict[str, Columns]:
    """The first rows of each table as `ResultWriter` takes them back; checkpoints are all kept.

    Raises:
        ValueError: a table has fewer.
    """
    kept = {"checkpoints": result.checkpoints}
    for table in TABLES.keys() - kept.keys():
        columns, wanted = getattr(result, table), num_rows[table]
        if (found := min(len(values) for values in columns.values())) < wanted:
            raise ValueError(
                f"results {result.path}: {table} has {found} rows, the checkpoint needs {wanted}"
            )
        kept[table] = {name: values[:wanted] for name, values in columns.items()}
    return kept


def _fresh_part(path: Path) -> Path:
    """Where a file is made that is to replace the one at `path`; what a kill left there goes."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    return part


def _read_columns(group: h5py.Group, num_rows: int) -> Columns:
    columns = {name: group[name][:num_rows] for name in group}  # items() gives None for damage
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
