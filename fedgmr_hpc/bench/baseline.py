"""A measurement against an earlier one: the ratios of each row, not its times.

A baseline is a file of JSON lines as benchmarks print them, of which the last one of the benchmark
counts, over as many ranks; so one file can be the history of a machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedgmr_hpc.bench.case import Benchmark, Row, Shape
from fedgmr_hpc.config.messages import listed, must
from fedgmr_hpc.results.gate.perf_log import Measurement

Record = dict[str, Any]  # the content of a JSON line
UNITS = ("s", "ms", "bytes", "MB", "GB/s", "MB/s", "%")


def words_of(record: Record) -> str:
    """Return what was measured, with all that its figures depend on: `bench round --ranks 5`."""
    words = f"bench {record['bench']}"
    if record["quick"]:
        words += " --quick"
    if "ranks" in record:
        words += f" --ranks {record['ranks']}"
    return f"{words} on {record['device']}" if "device" in record else words


def read_baseline(path: Path, asked: Record, shape: Shape) -> Record:
    """Return the last record of a benchmark in a file.

    Args:
        path: of the file.
        asked: what the record must say: the benchmark, whether it is quick, its ranks if any.
        shape: that of the benchmark.

    Raises:
        ValueError: there is none that can be compared, and says how to make one; or the benchmark
            has no ratios.
    """
    words = words_of(asked)
    if not shape.ratios:
        raise ValueError(must("--baseline", f"be absent for `{words}`, which has no ratios"))
    try:
        records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        fits = [each for each in records if words_of(each) == words]
        reason = _fault(fits[-1]["rows"], shape) if fits else "there is none in it"
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, TypeError, KeyError, AttributeError):
        reason = "it has a line that no benchmark has printed"
    if reason:
        hint = f"make it by `python -m fedgmr_hpc {words} --json >> {path}`"
        need = f"name a file with the JSON line of `{words}`"
        raise ValueError(must("--baseline", need, path, because=f"{reason}; {hint}"))
    return dict(fits[-1])


def _fault(rows: list[Row], shape: Shape) -> str:
    """Say why rows cannot be compared with those of today; "" where they can."""
    lacking = [key for key in shape.keys if any(key not in row for row in rows)]
    if lacking:
        return f"the rows of its last one lack {listed(lacking, 'and')}"
    return "" if _ratios(rows, shape) else "its last one has no ratios"


def compare(before: Record, now: Benchmark, shape: Shape, tolerance: float) -> list[Row]:
    """Return a row for each ratio of a measurement, and for each that is no longer there.

    Args:
        before: the record of the earlier measurement.
        now: the measurement.
        shape: that of the benchmark.
        tolerance: by how much of its earlier value a ratio may be worse.
    """
    then, found = _ratios(before["rows"], shape), _ratios(now.rows, shape)
    rows = []
    for name, column in [*then, *(key for key in found if key not in then)]:
        old, new = then.get((name, column)), found.get((name, column))
        change = new / old - 1 if old and new is not None else None
        worse = 0.0 if change is None else change * (1 if shape.ratios[column] == "lower" else -1)
        rows.append(
            {
                "row": name,
                "ratio": column,
                "better": shape.ratios[column],
                "before": old,
                "now": new,
                "change %": None if change is None else 100 * change,
                "within": new is not None and worse <= tolerance,
            }
        )
    return rows


def measurements(
    check: str, found: Benchmark, shape: Shape, compared: list[Row], tolerance: float
) -> Iterator[Measurement]:
    """Return every number of a measurement for a performance log.

    Args:
        check: what has measured it, as `words_of` says it.
        found: the measurement.
        shape: that of the benchmark.
        compared: what `compare` says of it, nothing without a baseline.
        tolerance: that of `compare`.
    """
    judged = {(row["row"], row["ratio"]): row for row in compared if row["before"] is not None}
    for number, row in enumerate(found.rows, 1):
        case = _name(row, shape) or f"row {number}"
        for column, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if column in shape.keys or not is_number:
                continue
            against = judged.get((case, column))
            yield Measurement(
                check,
                case,
                column,
                value,
                _unit(column),
                better=shape.ratios.get(column),
                reference=None if against is None else against["before"],
                tolerance=None if against is None else tolerance,
                within=None if against is None else against["within"],
            )


def _unit(column: str) -> str:
    """Return the unit that the name of a column ends in or begins with; `1` where it has none."""
    words = column.replace(",", "").split()
    return next((word for word in words if word in UNITS), "1/s" if "/s" in words[-1] else "1")


def _name(row: Row, shape: Shape) -> str:
    return " ".join(str(row[key]) for key in shape.keys)


def _ratios(rows: list[Row], shape: Shape) -> dict[tuple[str, str], float]:
    """Return the ratios of rows, those that are known, by the row's name and column."""
    return {
        (_name(row, shape), column): row[column]
        for row in rows
        for column in shape.ratios
        if isinstance(row.get(column), int | float)
    }
