"""A measurement against an earlier one: the ratios of each row, not its times.

A baseline is a file of JSON lines as benchmarks print them, of which the last one of the benchmark
counts; so one file can be the history of a machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedgmr_hpc.bench.case import Benchmark, Row
from fedgmr_hpc.config.messages import must

Record = dict[str, Any]  # the content of a JSON line


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


def _ratios(rows: list[Row], shape: Benchmark) -> dict[tuple[str, str], float]:
    """Return the ratios of rows by the row's name and column."""
    return {
        (" ".join(str(row[key]) for key in shape.keys), column): row[column]
        for row in rows
        for column in shape.ratios
        if row.get(column) is not None
    }
