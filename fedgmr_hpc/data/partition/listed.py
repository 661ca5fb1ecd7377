"""A partition from a file: `client,sample`, a line for each sample that a client holds.

Samples are numbered from 0 in the order of the training split. Those that no line names stay
unused; none may be named twice. Lines may be in any order: a client's samples are taken in
ascending order, so that the order of lines decides nothing.

Shapes: C clients, N samples.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.data.partition.sizes import MIN_SAMPLES, Longs, split_by_owner

if TYPE_CHECKING:
    from _csv import Reader  # the type of csv.reader, which has no public name before 3.13

KEY = "data.partition_file"
HEADER = ["client", "sample"]


def read_partition(path: str | None, num_clients: int, num_samples: int) -> list[Longs]:
    """Return the samples [C] of each client that a file lists.

    Args:
        path: the CSV file, with its header line.
        num_clients: C.
        num_samples: N of the training split.

    Raises:
        ValueError: the first thing wrong, with the key, the file and the line.
    """
    if path is None:
        raise ValueError(must_be(KEY, "a CSV file", None, when={"data.partition": "file"}))
    rows = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        owner, line_of = _find_owners(rows, num_clients, num_samples)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{KEY}: {path} line {max(rows.line_num, 1)}: {error}") from None
    listed = np.flatnonzero(line_of)
    parts = split_by_owner(listed, owner[listed], num_clients)
    _check_parts(path, parts)
    return parts


def _find_owners(rows: Reader, num_clients: int, num_samples: int) -> tuple[Longs, Longs]:
    """Return the client of each sample, and the line that names it, 0 for none [N]."""
    owner, line_of = np.zeros(num_samples, np.int64), np.zeros(num_samples, np.int64)
    if (found := [field.strip() for field in next(rows, [])]) != HEADER:
        raise ValueError(must_be("the header", ",".join(HEADER), ",".join(found)))
    for row in filter(None, rows):
        client, sample = _parse(row, (num_clients, num_samples))
        if line_of[sample]:
            found_twice = f"line {line_of[sample]} names it, too"
            raise ValueError(must_be(f"sample {sample}", "named once", found=found_twice))
        owner[sample], line_of[sample] = client, rows.line_num
    return owner, line_of


def _read_text(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(must_be(KEY, "a readable CSV file", path, because=str(error))) from None


def _parse(row: list[str], limits: tuple[int, int]) -> tuple[int, int]:
    """Return a row's client and sample, each within its limit."""
    if len(row) != len(HEADER):
        raise ValueError(must("a row", f"have {len(HEADER)} fields", len(row)))
    values = []
    for name, text, limit in zip(HEADER, row, limits, strict=True):
        digits = text.strip()
        is_number = digits.isascii() and digits.isdigit() and len(digits) < 20
        if not is_number or int(digits) >= limit:
            raise ValueError(must_be(name, f"between 0 and {limit - 1}", digits))
        values.append(int(digits))
    return values[0], values[1]


def _check_parts(path: str, parts: list[Longs]) -> None:
    for client, part in enumerate(parts):
        if len(part) < MIN_SAMPLES:
            need = f"name {MIN_SAMPLES} or more samples of client {client}"
            reason = f"clients.count is {len(parts)}; each trains on one and validates with another"
            raise ValueError(must(f"{KEY}: {path}", need, len(part), because=reason))
