"""Checksums of a result file: over every block of rows that was flushed, and over its texts.

    path               type    shape   content
    /checksums/TABLE   uint64  (B, 2)  a row a block: the row behind its last one, xxh3 of its rows
    /checksums/texts   uint64  ()      xxh3 of configuration, layout and provenance
    /checksums/status  uint64  ()      xxh3 of the status that the run has ended with

A block begins where the one before it ends. `ranks` and `model` (the weights) are tables of one
block. What is hashed are the columns' bytes as they lie in the file, in the order of their names.

Shapes: N rows of a table, B blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Blocks = NDArray[np.uint64]


def block_xxh3(columns: Mapping[str, NDArray[Any]]) -> int:
    """Return the checksum of some rows, given as column slices."""
    digest = xxhash.xxh3_64()
    for name in sorted(columns):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.intdigest()


def texts_xxh3(config: str, layout: str, provenance: Mapping[str, str]) -> int:
    """Return the checksum of what is written once, at the start."""
    parts = [config, layout, *(f"{key}={provenance[key]}" for key in sorted(provenance))]
    return xxhash.xxh3_64_intdigest(_written("\0".join(parts)))


def status_xxh3(status: str) -> int:
    """Return the checksum of a status."""
    return xxhash.xxh3_64_intdigest(_written(status))


def _written(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")


def first_damaged(columns: Mapping[str, NDArray[Any]], blocks: Blocks, num_rows: int) -> int | None:
    """Return the row where the first block begins that is not as it was written, None if all are.

    Args:
        columns: the first `num_rows` rows.
        blocks: [B, 2], which may go on behind them.
    """
    start = 0
    for stop, wanted in blocks.tolist():
        if start == num_rows:
            break
        rows = {name: values[start:stop] for name, values in columns.items()}
        if not start < stop <= num_rows or block_xxh3(rows) != wanted:
            return start
        start = stop
    return None if start == num_rows else start
