"""A measurement against an earlier one: the ratios of each row, not its times.

A baseline is a file of JSON lines as benchmarks print them, of which the last one of the benchmark
counts; so one file can be the history of a machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedgmr_hpc.bench.case import Benchmark, Row
from fedgmr_hpc.config.messages import must
from fedgmr_hpc.results.gate.perf_log import Measurement

Record = dict[str, Any]  # the content of a JSON line
UNITS = ("s", "ms", "bytes", "MB", "GB/s", "MB/s", "%")


def read_baseline(path: Path, what: str, *, quick: bool) -> Record:
    """Return the last record of a benchmark in a file.

    Args:
        path: of the file.
        what: the name of the benchmark.
        quick: whether it is to be compared with a smoke test.

    Raises:
        ValueError: there is none; says how to make one.
    """
    words = f"{what} --quick" if quick else what
    try:
        records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        fits = [each for each in records if (each["bench"], each["quick"]) == (what, quick)]
        reason = "" if fits else "there is none in it"
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, TypeError, KeyError):
        reason = "it has a line that no benchmark has printed"
    if reason:
        hint = f"make it by `python -m fedgmr_hpc bench {words} --json >> {path}`"
        need = f"name a file with the JSON line of `bench {words}`"
        raise ValueError(must("--baseline", need, path, because=f"{reason}; {hint}"))
    return dict(fits[-1])


def compare(before: Record, now: Benchmark, tolerance: float) -> list[Row]:
    """Return a row for each ratio of a measurement, and for each that is no longer there.

    Args:
        before: the record of the earlier measurement.
        now: the measurement.
        tolerance: by how much of its earlier value a ratio may be worse.

    Raises:
        ValueError: the benchmark has no ratios.
    """
    if not now.ratios:
        need = f"be absent for `bench {before['bench']}`, which has no ratios"
        raise ValueError(must("--baseline", need))
    then, found = _ratios(before["rows"], now), _ratios(now.rows, now)
    rows = []
    for name, column in [*then, *(key for key in found if key not in then)]:
        old, new = then.get((name, column)), found.get((name, column))
        change = new / old - 1 if old and new is not None else None
        worse = 0.0 if change is None else change * (1 if now.ratios[column] == "lower" else -1)
        rows.append(
            {
                "row": name,
                "ratio": column,
                "better": now.ratios[column],
                "before": old,
                "now": new,
                "change %": None if change is None else 100 * change,
                "within": new is not None and worse <= tolerance,
            }
        )
    return rows


def measurements(
    check: str, found: Benchmark, compared: list[Row], tolerance: float
) -> Iterator[Measurement]:
    """Return every number of a measurement for a performance log.

    Args:
        check: what has measured it, `bench codec --quick`.
        found: the measurement.
        compared: what `compare` says of it, nothing without a baseline.
        tolerance: that of `compare`.
    """
    judged = {(row["row"], row["ratio"]): row for row in compared if row["before"] is not None}
    for number, row in enumerate(found.rows, 1):
        case = _name(row, found) or f"row {number}"
        for column, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if column in found.keys or not is_number:
                continue
            against = judged.get((case, column))
            yield Measurement(
                check,
                case,
                column,
                value,
                _unit(column),
                better=found.ratios.get(column),
                reference=None if against is None else against["before"],
                tolerance=None if against is None else tolerance,
                within=None if against is None else against["within"],
            )


def _unit(column: str) -> str:
    """Return the unit that the name of a column ends in or begins with; `1` where it has none."""
    words = column.replace(",", "").split()
    return next((word for word in words if word in UNITS), "1/s" if "/s" in words[-1] else "1")


def _name(row: Row, shape: Benchmark) -> str:
    return " ".join(str(row[key]) for key in shape.keys)


def _ratios(rows: list[Row], shape: Benchmark) -> dict[tuple[str, str], float]:
    """Return the ratios of rows by the row's name and column."""
    return {
        (_name(row, shape), column): row[column]
        for row in rows
        for column in shape.ratios
        if row.get(column) is not None
    }
