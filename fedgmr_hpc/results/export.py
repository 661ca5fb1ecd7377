"""The tables of result files in forms that other programs read.

    format       files under OUT                                   needs
    csv          RUN/TABLE.csv                                     -
    jsonl        RUN/TABLE.jsonl, one object a row                 -
    parquet      RUN/TABLE.parquet, per-client columns as lists    pyarrow
    tensorboard  RUN/events.out.tfevents...                        tensorboardX

Each but the last adds RUN/run.json: status, configuration, provenance. In CSV a per-client column
becomes one column a client, `density_0`, `density_1`, ...; in JSON NaN is null. A TensorBoard
scalar's step is the version, of looks at equal times the whole second of that time, and its time
the wall clock. Existing files are not overwritten.

Shapes: N rows of a table, C clients.
"""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.storage.schema import TABLES, Columns, RankRow, columns_of

EXTRA = "pip install 'fedgmr_hpc[export]'"
SCALARS = {
    "evaluations": ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "mean_density"),
    "looks": ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "mean_density"),
    "merges": ("round", "now_s", "num_merged", "server_up_bytes", "server_down_bytes"),
}


def export(
    path: str | os.PathLike[str],
    form: str,
    out: str | os.PathLike[str],
    *,
    partial: bool = False,
) -> list[Path]:
    """Write the tables of a result file under `out`, in a folder named after it.

    Args:
        form: csv, jsonl, parquet or tensorboard.
        partial: write what is left of a damaged file instead of refusing it.

    Returns:
        The files written.

    Raises:
        ValueError: an unknown form, a missing package, an unreadable file, or files that exist.
        OSError: `out` cannot be written.
    """
    if form not in FORMS:
        raise ValueError(f"--format: got {form}, allowed: {', '.join(FORMS)}")
    result = read_result(path, partial=partial)
    return FORMS[form](result, _fresh_folder(Path(out) / Path(path).stem))


def _fresh_folder(folder: Path) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--out: {folder} has files already, allowed: a new or empty folder")
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


def _csv(result: Result, folder: Path) -> list[Path]:
    paths = []
    for table, columns in _tables(result).items():
        flat = dict(_one_a_client(columns))
        paths.append(folder / f"{table}.csv")
        with paths[-1].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(flat)
            writer.writerows(zip(*(values.tolist() for values in flat.values()), strict=True))
    return [*paths, _write_run(result, folder)]


def _one_a_client(columns: Columns) -> Iterator[tuple[str, Any]]:
    for name, values in columns.items():
        if values.ndim == 1:
            yield name, values
        else:
            yield from ((f"{name}_{client}", values[:, client]) for client in range(len(values.T)))


def _jsonl(result: Result, folder: Path) -> list[Path]:
    paths = []
    for table, columns in _tables(result).items():
        paths.append(folder / f"{table}.jsonl")
        with paths[-1].open("w", encoding="utf-8") as file:
            for row in zip(*(values.tolist() for values in columns.values()), strict=True):
                file.write(json.dumps(dict(zip(columns, map(_finite, row), strict=True))) + "\n")
    return [*paths, _write_run(result, folder)]


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parquet(result: Result, folder: Path) -> list[Path]:
    arrow, parquet = _package("pyarrow"), _package("pyarrow.parquet")
    paths = []
    for table, columns in _tables(result).items():
        arrays = {n: v if v.ndim == 1 else list(v) for n, v in columns.items()}
        paths.append(folder / f"{table}.parquet")
        parquet.write_table(arrow.table(arrays), paths[-1])
    return [*paths, _write_run(result, folder)]


def _tensorboard(result: Result, folder: Path) -> list[Path]:
    board = _package("tensorboardX")
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


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ValueError(f"--format: needs {package}, which is missing: {EXTRA}") from None


def _write_run(result: Result, folder: Path) -> Path:
    path = folder / "run.json"
    content = {
        "status": result.status,
        "config": result.config,
        "provenance": result.provenance,
        "layout": json.loads(result.layout_json or "null"),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


FORMS: dict[str, Callable[[Result, Path], list[Path]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "tensorboard": _tensorboard,
}
