"""Read result files: finished, running and killed runs, and what is left of damaged ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from fedgmr_hpc.config.yaml_file import YamlError, parse
from fedgmr_hpc.storage.blank_file import RUNNING, Texts
from fedgmr_hpc.storage.checksums import first_damaged, status_xxh3, texts_xxh3
from fedgmr_hpc.storage.hdf5_file import (
    check_members,
    describe_error,
    num_missing_bytes,
    num_readable_rows,
    open_for_reading,
    own_member,
    read_superblock,
)
from fedgmr_hpc.storage.partial import read_partial
from fedgmr_hpc.storage.result import (
    Result,
    as_text,
    deterministic_columns,
    differing_columns,
    doubt,
    kept_rows,
)
from fedgmr_hpc.storage.schema import (
    PARTS,
    REQUIRED,
    TABLES,
    UNGUARDED_FORMAT,
    Columns,
    columns_of,
)

__all__ = [
    "Result",
    "deterministic_columns",
    "differing_columns",
    "doubt",
    "kept_rows",
    "read_result",
]
UNENDED = (RUNNING, "failed")  # how the status of a run begins that has not ended
DAMAGE = (OSError, RuntimeError, KeyError, UnicodeDecodeError, YamlError)


def read_result(path: str | os.PathLike[str], *, partial: bool = False) -> Result:
    """Read a finished, running or killed run, up to its last flush.

    Args:
        partial: read what is left of a damaged file instead of refusing it; the status then says
            what is lost (storage/partial.py).

    Raises:
        ValueError: `path` is missing, damaged or no result file; says what is wrong. With
            `partial`: not even its configuration can be read.

    Example:
        >>> read_result("run.h5").evaluations["test_accuracy"]
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"results {path}: no such file")
    if partial:
        return read_partial(path)
    try:
        refuse_cut(path)
        if missing_bytes := num_missing_bytes(path):
            with open_for_reading(path) as file:
                _check_whole(path, file, missing_bytes)
        with open_for_reading(path) as file:
            return read_group(path, file)
    except DAMAGE as error:
        reason, missing_bytes = describe_error(error), num_missing_bytes(path)
        cut = f"cut off, the last {missing_bytes} bytes are missing: " * bool(missing_bytes)
        raise ValueError(f"results {path}: {cut}cannot be read ({reason})") from error


def refuse_cut(path: Path) -> None:
    """Fail where a file that was closed is shorter than it was then.

    Raises:
        ValueError: it is.
        OSError: it cannot be opened.
    """
    block, missing_bytes = read_superblock(path), num_missing_bytes(path)
    if block is not None and missing_bytes and not block.is_marked:
        raise ValueError(
            f"results {path}: cut off, the last {missing_bytes} bytes are missing; "
            "`python -m fedgmr_hpc results export --partial` keeps what can be read"
        )


def _check_whole(path: Path, file: h5py.File, missing_bytes: int) -> None:
    """Fail unless all that counts lies before the end of a running or killed run's file."""
    file_bytes = path.stat().st_size
    committed = zip(TABLES, file["committed"][...].tolist(), strict=False)  # older ones have fewer
    rows = {table: num_rows for table, num_rows in committed if table in file}
    for name in ("status", "committed", "config", "model/layout"):
        rows[name] = len(file[name]) if file[name].ndim else 1
    for name, num_rows in rows.items():
        for place in [name] if name not in TABLES else [f"{name}/{c}" for c in file[name]]:
            if num_readable_rows(file[place], num_rows, file_bytes) < num_rows:
                raise ValueError(
                    f"results {path}: cut off, the last {missing_bytes} bytes are missing, with "
                    f"part of /{place}; "
                    "`python -m fedgmr_hpc results export --partial` keeps the rest"
                )


def _check_place(path: Path, group: h5py.Group) -> None:
    try:
        check_members(group)
    except ValueError as error:
        raise ValueError(f"results {path}: {error}, no part of a result does") from None


def read_group(path: Path, group: h5py.Group, *, is_ended: bool = False) -> Result:
    """Read a run from an open file.

    Args:
        is_ended: whether the run has ended, although its status does not say so yet.

    Raises:
        ValueError: something is missing or fails its checksum; says what.
        OSError, RuntimeError: HDF5 cannot read it.
    """
    # First of all: of a file that grows, libhdf5 remembers each dataset as it was when it was first
    # looked at, and of none may it remember less than what counts here.
    counted = _counted(group)
    _check_parts(path, group)
    _check_place(path, group)
    status = group["status"][()].decode()
    is_ended = is_ended or not status.startswith(UNENDED)
    num_rows = counted | _last_rows(group, is_ended)
    parts = {part: read_columns(group, part, num_rows[part]) for part in PARTS if part in group}
    texts = read_texts(group)
    if is_guarded(group) and (found := [*faults(group, parts, texts, status, is_ended)]):
        raise ValueError(f"results {path}: damaged: {'; '.join(found)}")
    tables = {
        table: parts[table] if table in parts else _no_rows(row_type)
        for table, row_type in TABLES.items()
    }
    return Result(
        path=path,
        status=status,
        config_yaml=texts.config,
        config=parse(texts.config) or {},
        provenance=dict(texts.provenance),
        ranks={name: as_text(values) for name, values in parts["ranks"].items()},
        weights=parts["model"]["weights"],
        layout_json=texts.layout,
        is_guarded=is_guarded(group),
        **tables,
    )


def _check_parts(path: Path, group: h5py.Group) -> None:
    missing = [name for name in REQUIRED if name not in group]
    if is_guarded(group) and "checksums" not in group:
        missing.append("checksums")
    if not missing:
        return
    lacks = ", ".join(f"/{name}" for name in missing)
    raise ValueError(f"results {path}: not a fedgmr_hpc result, it lacks {lacks}")


def is_guarded(group: h5py.Group) -> bool:
    """Return whether a run's file or group has checksums."""
    return bool(group.attrs.get("format") != UNGUARDED_FORMAT.encode())


def _counted(group: h5py.Group) -> dict[str, int]:
    """Return how many rows of each table count; nothing where that does not lie here."""
    try:
        found = own_member(group, "committed")
    except ValueError:  # which `_check_place` says
        return {}
    is_list = isinstance(found, h5py.Dataset) and found.ndim == 1
    return dict(zip(TABLES, found[...].tolist(), strict=False)) if is_list else {}


def _last_rows(group: h5py.Group, is_ended: bool) -> dict[str, int]:
    """Return how many rows `ranks` and `model` have: none before the run has ended."""
    return {
        part: min(len(group[part][name]) for name in column_names(group, part)) if is_ended else 0
        for part in ("ranks", "model")
    }


def column_names(group: h5py.Group, part: str) -> list[str]:
    """Return the datasets of a table."""
    return ["weights"] if part == "model" else list(group[part])


def read_columns(group: h5py.Group, part: str, num_rows: int) -> Columns:
    """Return the first rows of a table, as they lie in the file."""
    return {name: group[part][name][:num_rows] for name in column_names(group, part)}


def read_texts(group: h5py.Group) -> Texts:
    """Return what is written once; the provenance by key."""
    provenance = {key: value.decode() for key, value in group["provenance"].attrs.items()}
    return Texts(group["config"][()].decode(), group["model/layout"][()].decode(), provenance)


def faults(
    group: h5py.Group, parts: Mapping[str, Columns], texts: Texts, status: str, is_ended: bool
) -> Iterator[str]:
    """Return what fails its checksum, or of a run that has ended lies behind its last committed
    row.
    """
    checksums = group["checksums"]
    if texts_xxh3(*texts) != checksums["texts"][()]:
        yield "configuration, layout or provenance fail their checksum"
    if status != RUNNING and status_xxh3(status) != checksums["status"][()]:
        yield "the status fails its checksum"
    for part, columns in parts.items():
        blocks = checksums[part][...]
        num_rows = min(len(values) for values in columns.values())
        if (row := first_damaged(columns, blocks, num_rows)) is not None:
            yield f"/{part} fails its checksum from row {row} on"
        elif is_ended and len(blocks) and blocks[-1, 0] != num_rows:
            yield f"/{part} has {num_rows} rows, checksums for {blocks[-1, 0]}"


def _no_rows(row_type: type[Any]) -> Columns:
    return {column.name: np.zeros(0, column.dtype) for column in columns_of(row_type)}
