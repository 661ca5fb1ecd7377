"""Files made from result files: several runs in one (a repaired one: salvage.py).

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from fedgmr_hpc.storage.blank_file import Texts, write_texts
from fedgmr_hpc.storage.checksums import block_xxh3
from fedgmr_hpc.storage.hdf5_file import (
    UNREADABLE,
    abandon,
    clip_text,
    describe_error,
    fixed_text,
    force_to_disk,
    open_for_reading,
    put,
)
from fedgmr_hpc.storage.reader import DAMAGE, Result, read_group, read_result, refuse_cut
from fedgmr_hpc.storage.schema import LONG_BYTES, MERGED_FORMAT, TABLES, Columns, describe_datasets

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
        refuse_cut(path)
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
    with new_file(Path(out)) as file:
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


@contextmanager
def new_file(out: Path) -> Iterator[h5py.File]:
    """A file that gets its name when it is whole."""
    if out.exists():
        raise ValueError(f"--out: got {out}, which exists, allowed: a new file")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        file = h5py.File(part, "w", libver="latest", locking="best-effort")
        try:
            yield file
            force_to_disk(file)
            file.close()
        except BaseException:
            abandon(file)
            raise
        part.rename(out)
    except (OSError, RuntimeError) as error:
        raise OSError(f"--out: cannot write {out} ({describe_error(error)})") from error
    finally:
        part.unlink(missing_ok=True)
