"""Link speeds over time, from a trace file: `time_s,client,direction,bytes_per_s`.

A row says that from `time_s` on the link runs at `bytes_per_s`, until the link's next row. The
first row of a link is at time 0. After the last row the speed stays, or, with a period, the trace
begins anew every `period_s`. Client -1 is the server: `up` is what it sends, `down` what it takes.
Rows of one link are in order of time; those of different links may be mixed.
"""

from __future__ import annotations

import csv
import io
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

from fedgmr_hpc.config.choices.named_content import check_content
from fedgmr_hpc.config.messages import must, must_be, unknown_choice
from fedgmr_hpc.config.sections import LinksConfig

SERVER = -1
Direction = Literal["down", "up"]
Link: TypeAlias = tuple[int, Direction]
HEADER = ["time_s", "client", "direction", "bytes_per_s"]
DIRECTIONS: dict[str, Direction] = {"down": "down", "up": "up"}


class LinkTrace:
    """Piecewise constant speeds of some links.

    Args:
        steps: (seconds, bytes per second) of each link, ascending, the first at 0.
        period_s: when all links begin anew, later than every step; None for never.
    """

    def __init__(
        self, steps: Mapping[Link, Sequence[tuple[float, float]]], period_s: float | None = None
    ) -> None:
        self.period_s = period_s
        self._times = {link: [time_s for time_s, _ in rows] for link, rows in steps.items()}
        self._rates = {link: [rate for _, rate in rows] for link, rows in steps.items()}
        self._changes = sorted(set(chain.from_iterable(self._times.values())))

    def rate(self, link: int, direction: Direction, at_s: float) -> float | None:
        """Return bytes per second of a link at a time; None when the trace does not have the
        link.
        """
        times = self._times.get((link, direction))
        if times is None:
            return None
        begin_s = self._begin_s(self._lap(at_s))
        index = bisect_right(times, at_s, key=lambda time_s: begin_s + time_s)
        return self._rates[link, direction][index - 1]

    def next_change_s(self, after_s: float) -> float:
        """Return when the first step of any link after a time is; infinity when there is none."""
        lap = self._lap(after_s)
        begin_s = self._begin_s(lap)
        index = bisect_right(self._changes, after_s, key=lambda time_s: begin_s + time_s)
        if index < len(self._changes):
            return begin_s + self._changes[index]
        return math.inf if self.period_s is None or not self._changes else self._begin_s(lap + 1)

    def _lap(self, at_s: float) -> int:
        """Return how often the trace has begun anew; consistent with `_begin_s` in spite of
        rounding.
        """
        if self.period_s is None:
            return 0
        lap = math.floor(at_s / self.period_s)
        if self._begin_s(lap + 1) <= at_s:
            return lap + 1
        return lap - 1 if self._begin_s(lap) > at_s else lap

    def _begin_s(self, lap: int) -> float:
        return lap * (self.period_s or 0.0)


def trace_of(links: LinksConfig, num_clients: int) -> LinkTrace | None:
    """Return the trace of a run's links, None if there is none.

    Raises:
        ValueError: see `load_trace`; or its content is not what the run began with.
    """
    if links.trace is None:
        return None
    check_content("links.trace", links.trace, links.trace_xxh3)
    return load_trace(links.trace, num_clients, links.trace_period_s)


def load_trace(path: str, num_clients: int, period_s: float | None = None) -> LinkTrace:
    """Read and check a trace file.

    Args:
        path: the CSV file, with its header line.
        num_clients: clients are 0 to num_clients - 1, and -1 for the server.
        period_s: after how many seconds the trace begins anew; None for never.

    Raises:
        ValueError: the first thing wrong, with `links.trace`, the file, the line, what was found
            and what is allowed.
    """
    steps: dict[Link, list[tuple[float, float]]] = {}
    end_s = math.inf if period_s is None else period_s
    line, rows = 1, csv.reader(io.StringIO(_read_text(path), newline=""))
    try:
        _check_header(next(rows, []))
        for row in rows:
            line = rows.line_num
            if row:
                link, step = _parse([field.strip() for field in row], num_clients)
                _check_time(step[0], steps.get(link), end_s)
                steps.setdefault(link, []).append(step)
        if not steps:
            raise ValueError(must("the file", "have a row of a link"))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"links.trace: {path} line {line}: {error}") from None
    return LinkTrace(steps, period_s)


def _read_text(path: str) -> str:
    try:
        content = Path(os.path.expanduser(path)).read_bytes()
    except OSError as error:
        line = must_be("links.trace", "a readable file", path, because=str(error.strerror))
        raise ValueError(line) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        line = must_be("text", "UTF-8", found=f"byte {content[error.start]:#x}")
        raise ValueError(f"links.trace: {path} line {number}: {line}") from None


def _check_header(row: list[str]) -> None:
    if [field.strip() for field in row] != HEADER:
        raise ValueError(must_be("the header", ",".join(HEADER), ",".join(row)))


def _parse(row: list[str], num_clients: int) -> tuple[Link, tuple[float, float]]:
    """Return the link of a row, and its (seconds, bytes per second)."""
    if len(row) != len(HEADER):
        raise ValueError(must("a row", f"have {len(HEADER)} fields", len(row)))
    time, number, direction, rate = row
    time_s, client, bytes_per_s = _read_number(time), _read_number(number), _read_number(rate)
    if not time_s >= 0:
        raise ValueError(must_be("time_s", "a finite number from 0 on", time))
    if not (SERVER <= client < num_clients and client.is_integer()):
        need = f"between -1, the server, and {num_clients - 1}"
        raise ValueError(must_be("client", need, number))
    if direction not in DIRECTIONS:
        raise ValueError(unknown_choice("direction", direction, DIRECTIONS))
    if not bytes_per_s > 0:
        raise ValueError(must_be("bytes_per_s", "a finite number more than 0", rate))
    return (int(client), DIRECTIONS[direction]), (time_s, bytes_per_s)


def _read_number(text: str) -> float:
    """Return a finite number; NaN, which no rule allows, for anything else."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _check_time(time_s: float, before: list[tuple[float, float]] | None, end_s: float) -> None:
    if before is None and time_s != 0.0:
        raise ValueError(must_be("time_s", "0 in the first row of a link", time_s))
    if before is not None and time_s <= before[-1][0]:
        raise ValueError(must_be("time_s", f"more than {before[-1][0]:g}, the one before", time_s))
    if time_s >= end_s:
        raise ValueError(must_be("time_s", f"less than links.trace_period_s, {end_s:g}", time_s))
