"""Performance logs: files of JSON lines, one for each figure that was measured.

A line says what was measured, when, and on what, so that lines of many machines and versions can
lie in one file (docs/performance.md#performance-logs).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.results.gate.compare import Verdict
from fedgmr_hpc.results.gate.figures import FIGURES, case_of, ranks_of
from fedgmr_hpc.results.stretches import course_of
from fedgmr_hpc.storage.reader import Result

SYSTEM = {  # what a line says of the system: where provenance has it
    "utc": "start_utc",
    "host": "hostname",
    "cpu": "cpu_model",
    "cores": "num_cores",
    "platform": "platform",
    "python": "version_python",
    "torch": "version_torch",
    "commit": "git_commit",
    "changed": "git_dirty",
}
_MAX_LINE_BYTES = 1 << 20  # a log has far shorter ones, a file of another kind may have no end


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure.

    Attributes:
        check: what has measured it: `bench codec --quick`, `run, 3 ranks on 1 host`.
        case: which of its rows or runs.
        figure: its name.
        value: in `unit`; None where it is unknown.
        unit: `s`, `ms`, `bytes`, `%`; `1` of ratios and counts.
        better: `higher`, `lower`, or None where neither is.
        reference: the value of the baseline, None without one.
        tolerance: by how much it may be worse: a share, of `%` points; None without a reference.
        within: whether it is no worse than that; None without a reference.
    """

    check: str
    case: str
    figure: str
    value: float | None
    unit: str
    better: str | None = None
    reference: float | None = None
    tolerance: float | None = None
    within: bool | None = None


def system_of(provenance: Mapping[str, str], mpi: str) -> dict[str, str]:
    """Return the description of a system from a run's or this process's provenance; `A→B` where a
    run was resumed on another one.
    """
    known = {name: course_of(provenance, key, "unknown") for name, key in SYSTEM.items()}
    start = provenance.get(SYSTEM["utc"], "unknown")
    return known | {"utc": start, "mpi": mpi or "none"}


def append_lines(
    path: str | os.PathLike[str], rows: Iterable[tuple[Mapping[str, str], Measurement]]
) -> None:
    """Append a line for each measurement and its system; without any, make the file and check it.

    Raises:
        ValueError: the file cannot be written, or holds something else.
    """
    lines = [json.dumps({**system, **asdict(each)}) + "\n" for system, each in rows]
    try:
        if not _is_log(Path(path)):
            need, because = "a new file or a log", "its first line is no JSON object"
            raise ValueError(must_be("--perf-log", need, str(path), because=because))
        with Path(path).open("a") as file:
            file.writelines(lines)
    except OSError as error:
        raise ValueError(
            must("--perf-log", "be a file to write", str(path), because=str(error.strerror))
        ) from None


def _is_log(path: Path) -> bool:
    """Return whether a file is not there, is empty or begins as a log does; what is no file, such
    as a pipe, is not read.
    """
    if not path.is_file() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        first = file.readline(_MAX_LINE_BYTES)
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def run_lines(results: Sequence[Result]) -> Iterator[tuple[dict[str, str], Measurement]]:
    """Return the lines of runs that are compared with nothing."""
    for result in results:
        for figure in FIGURES:
            value = _known(figure.read(result))
            what = (_check(result), case_of(result))
            told = Measurement(*what, figure.name, value, figure.unit, figure.better)
            yield _system(result), told


def verdict_lines(verdict: Verdict) -> Iterator[tuple[dict[str, str], Measurement]]:
    """Return the lines of the runs of a comparison; those of another machine have no reference."""
    for pair in verdict.pairs:
        for each in pair.figures:
            figure = each.figure
            has_reference = each.is_judged and math.isfinite(each.before)
            told = Measurement(
                _check(pair.now[0]),
                case_of(pair.now[0]),
                figure.name,
                _known(each.now),
                figure.unit,
                figure.better,
                reference=each.before if has_reference else None,
                tolerance=each.limit if has_reference else None,
                within=not each.is_worse if has_reference else None,
            )
            yield _system(pair.now[0]), told
    yield from run_lines(verdict.new)


def _check(result: Result) -> str:
    return f"run, {ranks_of(result)}"


def _system(result: Result) -> dict[str, str]:
    libraries = [*result.ranks.get("mpi_library", ())][:1]
    return system_of(result.provenance, str(*libraries))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
