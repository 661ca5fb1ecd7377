"""Files made from result files: repaired ones, and several runs in one.

A merged file has one group a run, named after the run's file; a group holds what a result file
holds at its top, see store.py:

    path            type          content
    @format         utf-8, fixed  "fedgmr_hpc merged results 1"
    /RUN/...                      /RUN/status, /RUN/merges/version, ... and /RUN @format
    /RUN @source    utf-8, fixed  the file that the run was read from

`read_runs` reads both kinds back. Nothing here ever writes to a file that exists.

Shapes: N rows of a table, C clients, P model weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import yaml

from fedgmr_hpc.hdf5file import (
    UNREADABLE,
    clip_text,
    describe_error,
    fixed_text,
    num_readable_rows,
    open_for_reading,
    open_marked,
    read_superblock,
)
from fedgmr_hpc.result import DAMAGE, Result, read_group, read_result
from fedgmr_hpc.schema import (
    FORMAT,
    MERGED_FORMAT,
    NAME_BYTES,
    TABLES,
    Columns,
    RankRow,
    columns_of,
)
from fedgmr_hpc.store import STATUS_BYTES

Paths = Sequence[str | os.PathLike[str]]


def read_runs(path: str | os.PathLike[str]) -> dict[str, Result]:
    """Every run of a result file or of a merged file, by name.

    Raises:
        ValueError: `path` is missing, unreadable or neither of them.
    """
    path = Path(path)
    if not _is_merged(path):
        return {path.stem: read_result(path)}
    try:
        with open_for_reading(path) as file:
            return {name: read_group(path, file[name]) for name in file}
    except DAMAGE as error:
        raise ValueError(f"results {path}: cannot be read ({describe_error(error)})") from error


def _is_merged(path: Path) -> bool:
    try:
        with open_for_reading(path) as file:
            return bool(file.attrs.get("format") == MERGED_FORMAT.encode())
    except UNREADABLE:  # read_result says what is wrong
        return False


def merge(paths: Paths, out: str | os.PathLike[str]) -> str:
    """Copies all runs of result files and merged files into the new file `out`; says what it holds.

    Raises:
        ValueError: a path is no result file, or `out` exists.
        OSError: `out` cannot be written.
    """
    if not paths:
        raise ValueError("results merge: got nothing, need one or more result files")
    names: list[str] = []
    with _new_file(Path(out)) as file:
        file.attrs["format"] = fixed_text(MERGED_FORMAT)
        for path in paths:
            for name, result in read_runs(path).items():
                names.append(_unused(name, names))
                group = file.create_group(names[-1])
                group.attrs["source"] = fixed_text(str(path))
                write_group(group, result)
    return "\n".join([f"{out}: {len(names)} runs", *(f"  {name}" for name in names)])


def _unused(name: str, taken: Sequence[str]) -> str:
    free = (f"{name}-{index}" for index in range(2, len(taken) + 3))
    return name if name not in taken else next(other for other in free if other not in taken)


def write_group(group: h5py.Group, result: Result) -> None:
    """Writes a whole run as `read_group` reads it."""
    tables = {table: getattr(result, table) for table in TABLES}
    group.attrs["format"] = fixed_text(FORMAT)
    group["status"] = fixed_text(result.status, STATUS_BYTES)
    group["config"] = fixed_text(result.config_yaml)
    group["model/layout"] = fixed_text(result.layout_json)
    group["model/weights"] = result.weights
    group["committed"] = np.array([_num_rows(columns) for columns in tables.values()], np.int64)
    attributes = group.create_group("provenance").attrs
    for key, value in result.provenance.items():
        attributes[key] = fixed_text(value)
    for table, columns in {**tables, "ranks": result.ranks}.items():
        inner = group.create_group(table)
        for name, values in columns.items():
            inner[name] = _fixed_names(values) if values.dtype.kind == "U" else values


def _num_rows(columns: Columns) -> int:
    return min((len(values) for values in columns.values()), default=0)


def _fixed_names(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    names = [clip_text(str(value), NAME_BYTES) for value in values]
    return np.array(names, h5py.string_dtype("utf-8", NAME_BYTES))


@contextmanager
def _new_file(out: Path) -> Iterator[h5py.File]:
    """A file that gets its name when it is whole."""
    if out.exists():
        raise ValueError(f"--out: got {out}, which exists, allowed: a new file")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with h5py.File(part, "w", libver="latest", locking="best-effort") as file:
            yield file
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)


def repair(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> str:
    """Copies what can be read of a damaged or killed run's file into the new file `out`.

    Each table keeps the rows that all its columns have. The status says what was lost, as does the
    text that is returned.

    Raises:
        ValueError: `path` is missing or holds no readable configuration, or `out` exists.
        OSError: `out` cannot be written.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"results {path}: no such file")
    with _new_file(Path(out)) as file:
        result = salvage(path)
        write_group(file, result)
    return f"{out}: {result.status}"


def salvage(path: Path) -> Result:
    """What can be read of a result file; its status says what could not.

    Raises:
        ValueError: not even the configuration can be read.
    """
    try:
        damaged = open_marked(path) if read_superblock(path) else open_for_reading(path)
        with damaged as file:
            return _Salvage(path, file).result()
    except (*UNREADABLE, *DAMAGE) as error:
        reason = describe_error(error)
        raise ValueError(f"results {path}: nothing of it can be read ({reason})") from error


class _Salvage:
    """Reads a file part by part, and notes what is lost."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path, self._file, self._file_bytes = path, file, path.stat().st_size
        self._lost: list[str] = []

    def result(self) -> Result:
        config_yaml = self._whole("config")[()].decode()
        config = yaml.safe_load(config_yaml) or {}
        num_clients = int(config.get("clients", {}).get("count", 0))
        status = self._try("status", lambda: self._whole("status")[()].decode(), "unknown")
        committed = self._try("committed", lambda: self._whole("committed")[...].tolist(), [])
        limits = dict(zip(TABLES, committed, strict=False))
        tables = {
            table: self._table(table, row_type, limits.get(table), num_clients)
            for table, row_type in TABLES.items()
        }
        layout = self._try("model/layout", lambda: self._whole("model/layout")[()].decode(), "")
        no_weights = np.zeros(0, np.float32)
        weights = self._try("weights", lambda: self._whole("model/weights")[...], no_weights)
        provenance = self._try("provenance", self._provenance, {})
        ranks = self._table("ranks", RankRow, None, 0)
        lost = "; ".join(self._lost) or "nothing lost"
        return Result(
            path=self._path,
            status=f"repaired: was {status.partition(':')[0]}; {lost}",
            config_yaml=config_yaml,
            config=config,
            provenance=provenance,
            ranks={name: _as_text(values) for name, values in ranks.items()},
            weights=weights,
            layout_json=layout,
            **tables,
        )

    def _try(self, what: str, read: Callable[[], Any], instead: Any) -> Any:
        try:
            return read()
        except UNREADABLE:
            self._lost.append(f"{what} unreadable")
            return instead

    def _whole(self, name: str) -> h5py.Dataset:
        dataset = self._file[name]
        num_rows = len(dataset) if dataset.ndim else 1
        if num_readable_rows(dataset, num_rows, self._file_bytes) < num_rows:
            raise OSError(f"{name} lies behind the end of the file")
        return dataset

    def _provenance(self) -> dict[str, str]:
        attributes = self._file["provenance"].attrs
        return {key: value.decode() for key, value in attributes.items()}

    def _table(
        self, table: str, row_type: type[Any], limit: int | None, num_clients: int
    ) -> Columns:
        if table not in TABLES or self._has(table):
            sizes = {c.name: self._sizes(f"{table}/{c.name}") for c in columns_of(row_type)}
        else:
            return _no_rows(row_type, num_clients)
        wanted = max(size for size, _ in sizes.values()) if limit is None else limit
        kept = min([wanted, *(readable for _, readable in sizes.values())])
        if kept < wanted:
            short = [name for name, (_, readable) in sizes.items() if readable == kept]
            self._lost.append(f"{table} {kept} of {wanted} rows, as {short[0]} has")
        if not kept:
            return _no_rows(row_type, num_clients)
        return {name: self._file[f"{table}/{name}"][:kept] for name in sizes}

    def _has(self, table: str) -> bool:
        """False for a table that came later than the file; a link that is damaged counts."""
        try:
            return table in self._file
        except UNREADABLE:
            return True

    def _sizes(self, name: str) -> tuple[int, int]:
        """(rows, readable rows) of a column; (0, 0) where nothing is known of it."""
        try:
            dataset = self._file[name]
            num_rows = len(dataset)
            return num_rows, num_readable_rows(dataset, num_rows, self._file_bytes)
        except UNREADABLE:
            return 0, 0


def _no_rows(row_type: type[Any], num_clients: int) -> Columns:
    return {
        column.name: np.zeros((0, num_clients) if column.per_client else 0, column.dtype)
        for column in columns_of(row_type)
    }


def _as_text(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
