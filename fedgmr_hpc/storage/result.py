"""What a result file holds, once it is read.

Shapes: N rows of a table, C clients, P prunable weights, D entries of the dense part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.storage.schema import TABLES, Columns, columns_of


@dataclass(frozen=True, eq=False)  # arrays have no single truth: each result equals itself
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
    weights: Floats  # [P + D + statistics of static norms], or [0] when the run has not finished
    layout_json: str
    checkpoints: Columns = field(default_factory=dict)
    looks: Columns = field(default_factory=dict)
    submodels: Columns = field(default_factory=dict)
    is_guarded: bool = True  # by checksums, which files of format 2 lack


def doubt(result: Result) -> str:
    """Return why a file that says `finished` is not believed; empty where it is."""
    versions = result.evaluations["version"][-1:].tolist()
    last = result.merges["version"][-1:].tolist() or [0]
    if not len(result.weights):
        return "it has no weights"
    if versions != last:  # not a whole run: nobody has said what they must be
        return ""
    if xxhash.xxh3_64_intdigest(result.weights.tobytes()) != result.evaluations["model_xxh3"][-1]:
        return f"its weights are not those of version {last[0]}, by evaluations/model_xxh3"
    return ""


def kept_rows(result: Result, num_rows: Mapping[str, int]) -> dict[str, Columns]:
    """Return the first rows of each table as `ResultWriter` takes them back, without columns that
    it no longer writes; checkpoints are all kept.

    Raises:
        ValueError: a table has fewer, or lacks a column that came later than its file.
    """
    kept = {"checkpoints": result.checkpoints}
    for table in TABLES.keys() - kept.keys():
        columns, wanted = getattr(result, table), num_rows.get(table, 0)
        if (found := min(len(values) for values in columns.values())) < wanted:
            raise ValueError(
                f"results {result.path}: {table} has {found} rows, the checkpoint needs {wanted}"
            )
        names = [column.name for column in columns_of(TABLES[table])]
        if missing := [name for name in names if name not in columns]:
            raise ValueError(
                f"results {result.path}: {table} lacks {', '.join(missing)}: it is of an older "
                "version, which alone can resume it"
            )
        kept[table] = {name: columns[name][:wanted] for name in names}
    return kept


def as_text(values: NDArray[Any]) -> NDArray[Any]:
    """Return a column as it is read: fixed-size utf-8 becomes str."""
    return np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values


def deterministic_columns(result: Result) -> Columns:
    """Return every dataset that must not depend on ranks or machine, by its path in the file."""
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
    """Return paths of the deterministic datasets that differ anywhere or in length; NaN equals
    NaN.
    """
    left, right = deterministic_columns(a), deterministic_columns(b)
    return sorted(
        name
        for name in left.keys() | right.keys()
        if name not in left
        or name not in right
        or not np.array_equal(left[name], right[name], equal_nan=True)
    )
