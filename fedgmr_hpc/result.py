"""Reading back what store.py wrote: finished, running, killed and cut-off runs alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import yaml

from fedgmr_hpc.hdf5file import (
    describe_error,
    num_missing_bytes,
    num_readable_rows,
    open_for_reading,
)
from fedgmr_hpc.records import Floats
from fedgmr_hpc.schema import MERGED_FORMAT, REQUIRED, TABLES, Columns, columns_of

DAMAGE = (OSError, RuntimeError, KeyError, UnicodeDecodeError, yaml.YAMLError)


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
    looks: Columns = field(default_factory=dict)
    submodels: Columns = field(default_factory=dict)


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
        columns, wanted = getattr(result, table), num_rows.get(table, 0)
        if (found := min(len(values) for values in columns.values())) < wanted:
            raise ValueError(
                f"results {result.path}: {table} has {found} rows, the checkpoint needs {wanted}"
            )
        kept[table] = {name: values[:wanted] for name, values in columns.items()}
    return kept


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
        "looks": result.looks,
        "submodels": result.submodels,
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
