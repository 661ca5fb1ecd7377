"""The tables of a result file: which there are, and their columns (what each means: store.py).

Shapes: C clients, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, get_args, get_type_hints

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.records import (
    CheckpointRow,
    EvaluationRow,
    EventRow,
    LookRow,
    MergeRow,
    SubmodelRow,
    TransferRow,
    UpdateRow,
)

FORMAT = "fedgmr_hpc results 3"
UNGUARDED_FORMAT = "fedgmr_hpc results 2"  # without checksums
MERGED_FORMAT = "fedgmr_hpc merged results 1"  # one group a run, see resultfiles.py
NAME_BYTES = 256  # host and device names of /ranks

Row = MergeRow | EvaluationRow | UpdateRow | EventRow | TransferRow | CheckpointRow | SubmodelRow
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
    "looks": LookRow,
    "submodels": SubmodelRow,
}
PARTS = (*TABLES, "ranks", "model")  # all that comes in rows under checksums
TABLE_OF = {row_type: table for table, row_type in TABLES.items()}
_LATER_TABLES = {"checkpoints", "looks", "submodels"}  # that older files lack
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
    if get_args(hint):
        return Column(name, np.dtype(_innermost(hint)), True)
    if name.endswith("_xxh3"):
        return Column(name, np.dtype(np.uint64), False)
    name_type = h5py.string_dtype("utf-8", NAME_BYTES)
    kinds = {int: np.dtype(np.int64), float: np.dtype(np.float64), str: name_type}
    return Column(name, kinds[hint], False)


def _innermost(hint: Any) -> Any:
    """The scalar of NDArray[scalar], which is ndarray[shape, dtype[scalar]] or, since numpy 2.5, an
    alias of it."""
    while arguments := get_args(hint):
        hint = arguments[-1]
    return hint
