"""The tables of result files in forms that other programs read.

    format       files under OUT                                   needs
    csv          RUN/TABLE.csv                                     -
    jsonl        RUN/TABLE.jsonl, one object a row                 -
    parquet      RUN/TABLE.parquet, per-client columns as lists    pyarrow
    tensorboard  RUN/events.out.tfevents...                        tensorboardX

Each but the last adds RUN/run.json: status, configuration, provenance. Joined, all runs share one
file a table, OUT/TABLE.csv, with a first column `run`, and OUT/runs.json. In CSV a per-client
column becomes one column a client, `density_0`, `density_1`, ...; in JSON NaN is null. A
TensorBoard scalar's step is the version, of looks at equal times the whole second of that time, and
its time the wall clock. Existing files are not overwritten.

Shapes: N rows of a table, C clients.
"""

from __future__ import annotations

import csv
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.reporting.packages import optional_package
from fedgmr_hpc.reporting.tables import finite
from fedgmr_hpc.results.columns import wide
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.storage.schema import TABLES, Columns, RankRow, columns_of

SCALARS = {
    "evaluations": ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "mean_density"),
    "looks": ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "mean_density"),
    "merges": ("round", "now_s", "num_merged", "server_up_bytes", "server_down_bytes"),
}


def export(
    paths: Sequence[str | os.PathLike[str]],
    form: str,
    out: str | os.PathLike[str],
    *,
    join: bool = False,
    partial: bool = False,
) -> list[Path]:
    """Write the tables of result files for other programs, once all files are read.

    Args:
        paths: result files.
        form: `csv`, `jsonl`, `parquet` or `tensorboard`.
        out: a folder.
        join: one file a table for all runs together, with a column `run`.
        partial: write what is left of damaged files instead of refusing them.

    Returns:
        What was written.

    Raises:
        ValueError: an unknown form, a missing package, an unreadable file, or files that exist.
        OSError: `out` cannot be written.
    """
    if form not in FORMS:
        raise ValueError(f"--format must be one of {', '.join(FORMS)} (got {form})")
    names = run_names(paths)
    if join:
        results = [read_result(path, partial=partial) for path in paths]
        return _export_joined(dict(zip(names, results, strict=True)), form, Path(out))
    for path in paths:
        read_result(path, partial=partial)  # none is written where one cannot be read
    folders = [_fresh_folder(Path(out) / name) for name in names]
    return [
        written
        for path, folder in zip(paths, folders, strict=True)
        for written in FORMS[form](read_result(path, partial=partial), folder)
    ]


def run_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return what the runs of files are called, their stems.

    Raises:
        ValueError: two are called alike.
    """
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"FILE must have another name than the others (got {again} again)")
    return names


def _export_joined(runs: Mapping[str, Result], form: str, folder: Path) -> list[Path]:
    if form not in TABLE_FORMS:
        allowed = ", ".join(TABLE_FORMS)
        raise ValueError(f"--format must be one of {allowed} when --join is given (got {form})")
    parts: dict[str, list[Columns]] = {}
    for name, result in runs.items():
        for table, columns in _tables(result).items():
            num_rows = len(next(iter(columns.values())))
            parts.setdefault(table, []).append({"run": np.full(num_rows, name), **columns})
    _fresh_folder(folder)
    written = [TABLE_FORMS[form](each, folder / f"{table}.{form}") for table, each in parts.items()]
    records = {name: _run_record(result) for name, result in runs.items()}
    return [*written, _write_json(records, folder / "runs.json")]


def _fresh_folder(folder: Path) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(must_be("--out", "a new or empty folder", folder))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tables(result: Result) -> dict[str, Columns]:
    """Return the tables that have rows, columns in the schema's order."""
    found: dict[str, Columns] = {}
    for table, row_type in {**TABLES, "ranks": RankRow}.items():
        columns = getattr(result, table)
        if any(len(values) for values in columns.values()):
            names = [column.name for column in columns_of(row_type) if column.name in columns]
            found[table] = {name: columns[name] for name in names}  # older files lack some
    return found


def _export_tables(form: str, result: Result, folder: Path) -> list[Path]:
    """Return one file a table, and the run's own."""
    tables = _tables(result)
    written = [
        TABLE_FORMS[form]([columns], folder / f"{table}.{form}")
        for table, columns in tables.items()
    ]
    return [*written, _write_json(_run_record(result), folder / "run.json")]


def _csv(parts: Sequence[Columns], path: Path) -> Path:
    """Return the rows of all parts; what a part lacks is left empty."""
    flat = [wide(columns) for columns in parts]
    heads = list(dict.fromkeys(name for columns in flat for name in columns))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, heads, lineterminator="\n")
        writer.writeheader()
        for columns in flat:
            rows = zip(*(values.tolist() for values in columns.values()), strict=True)
            writer.writerows(dict(zip(columns, row, strict=True)) for row in rows)
    return path


def _jsonl(parts: Sequence[Columns], path: Path) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for columns in parts:
            for row in zip(*(values.tolist() for values in columns.values()), strict=True):
                file.write(json.dumps(dict(zip(columns, map(finite, row), strict=True))) + "\n")
    return path


def _parquet(parts: Sequence[Columns], path: Path) -> Path:
    arrow = optional_package("pyarrow", "--format parquet")
    parquet = optional_package("pyarrow.parquet", "--format parquet")
    tables = [
        arrow.table({n: v if v.ndim == 1 else list(v) for n, v in columns.items()})
        for columns in parts
    ]
    parquet.write_table(arrow.concat_tables(tables, promote_options="default"), path)
    return path


def _tensorboard(result: Result, folder: Path) -> list[Path]:
    board = optional_package("tensorboardX", "--format tensorboard")
    began_s = _start_s(result)
    with board.SummaryWriter(str(folder)) as writer:
        for table, names in SCALARS.items():
            columns = getattr(result, table)
            steps = columns["now_s" if table == "looks" else "version"].astype(int).tolist()
            for index, step in enumerate(steps):
                at_s = began_s + float(columns["wall_s"][index])
                for name in names:
                    if np.isfinite(value := columns[name][index]):
                        writer.add_scalar(f"{table}/{name}", float(value), step, at_s)
        writer.add_text("config", f"    {result.config_yaml}".replace("\n", "\n    "))
    return sorted(folder.iterdir())


def _start_s(result: Result) -> float:
    start = result.provenance.get("start_utc", "1970-01-01T00:00:00+00:00")
    return datetime.fromisoformat(start).timestamp()


def _run_record(result: Result) -> dict[str, Any]:
    return {
        "status": result.status,
        "config": result.config,
        "provenance": result.provenance,
        "layout": json.loads(result.layout_json or "null"),
    }


def _write_json(content: Mapping[str, Any], path: Path) -> Path:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


TABLE_FORMS: dict[str, Callable[[Sequence[Columns], Path], Path]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
FORMS: dict[str, Callable[[Result, Path], list[Path]]] = {
    **{form: functools.partial(_export_tables, form) for form in TABLE_FORMS},
    "tensorboard": _tensorboard,
}
