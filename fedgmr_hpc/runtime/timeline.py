"""Spans of every rank, put on one clock: a Chrome/Perfetto timeline and a breakdown of the time.

Every rank records its spans in a `Tracer`, in seconds of its own `time.perf_counter()`, and sends
`to_bytes()` to rank 0 at the end. Rank 0 is the reference: `estimate_offset` measures another
rank's clock from round trips, `align` moves its spans to rank 0's clock, with two measurements also
for drift. `write_timeline` makes one file that https://ui.perfetto.dev or chrome://tracing opens.

Seconds by category, each the union of its spans, so that two at the same time count once:

    category   spans                   what the rank does
    compute    train                   local training
    serialise  decode encode           frames to arrays and back
    send       queue send throttle     a finished frame until it has left
    wait       receive                 nothing, until a message is there
    merge      merge density           aggregation, densities and masks
    evaluate   evaluate                accuracy on the validation and test sets
    idle       -                       in no span at all

Different categories may overlap (a rank trains while a frame queues), so a row's sum may exceed the
run's length. Shapes: S spans.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.errors import Stage
from fedgmr_hpc.config.messages import must_be, unknown_choice

SpanName = Literal[Stage, "queue", "throttle", "density"]
Spans = NDArray[np.void]  # [S] of SPAN

NAMES: tuple[SpanName, ...] = get_args(SpanName)
CODES = {name: code for code, name in enumerate(NAMES)}
CATEGORIES: dict[str, tuple[SpanName, ...]] = {
    "compute": ("train",),
    "serialise": ("decode", "encode"),
    "send": ("queue", "send", "throttle"),
    "wait": ("receive",),
    "merge": ("merge", "density"),
    "evaluate": ("evaluate",),
}
NONE = -1  # the client or version of a span that has none
SPAN = np.dtype(
    [("name", "u1"), ("client", "<i4"), ("version", "<i4"), ("begin_s", "<f8"), ("end_s", "<f8")]
)
_PACKED = struct.Struct("<Biidd")
_HEADER = struct.Struct("<4sII")  # magic, spans, spans dropped
MAGIC = b"FGT1"
MAX_SPANS = 2**20  # 26 MB a rank; later ones are dropped and counted
FORMAT = "fedgmr_hpc timeline 1"
TICKS_PER_US = 8  # exact in binary, so that no viewer's rounding makes neighbours overlap
_OFF = nullcontext()


def _code(name: str) -> int:
    if name not in CODES:
        raise ValueError(unknown_choice("a span", name, NAMES))
    return CODES[name]


class Tracer:
    """One rank's spans. Any thread may add; a disabled tracer keeps nothing."""

    def __init__(self, enabled: bool, *, max_spans: int = MAX_SPANS) -> None:
        self.enabled, self.max_spans = enabled, max_spans
        self.num_dropped = 0
        self._packed = bytearray()
        self._lock = threading.Lock()

    def span(
        self, name: SpanName, client: int | None = None, version: int | None = None
    ) -> AbstractContextManager[None]:
        """Record the time from entering to leaving, also when an exception leaves.

        Raises:
            ValueError: `name` is none of `NAMES`.
        """
        _code(name)
        return self._open(name, client, version) if self.enabled else _OFF

    @contextmanager
    def _open(self, name: SpanName, client: int | None, version: int | None) -> Iterator[None]:
        begin_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, begin_s, time.perf_counter(), client, version)

    def add(
        self,
        name: SpanName,
        begin_s: float,
        end_s: float,
        client: int | None = None,
        version: int | None = None,
    ) -> None:
        """Record a span that has ended; times in seconds of `time.perf_counter()`.

        Raises:
            ValueError: `name` is none of `NAMES`, a time is not finite, or the end comes first.
        """
        code = _code(name)
        if not 0.0 <= end_s - begin_s < math.inf:
            raise ValueError(f"span {name} from {begin_s} to {end_s} s")
        if not self.enabled:
            return
        where = (NONE if number is None else number for number in (client, version))
        packed = _PACKED.pack(code, *where, begin_s, end_s)
        with self._lock:
            if len(self._packed) < self.max_spans * SPAN.itemsize:
                self._packed += packed
            else:
                self.num_dropped += 1

    def spans(self) -> Spans:
        """Return a copy of the spans [S] so far, in the order in which they ended."""
        with self._lock:
            return np.frombuffer(bytes(self._packed), SPAN)

    def to_bytes(self) -> bytes:
        """Return all spans, 25 bytes each behind a header of 12."""
        with self._lock:
            num_spans = len(self._packed) // SPAN.itemsize
            return _HEADER.pack(MAGIC, num_spans, self.num_dropped) + self._packed

    @classmethod
    def from_bytes(cls, content: bytes | bytearray | memoryview) -> Tracer:
        """Return the tracer that `to_bytes` packed.

        Raises:
            ValueError: the bytes are damaged or something else.
        """
        if len(content) < _HEADER.size:
            raise ValueError(f"{len(content)} bytes are no spans")
        magic, num_spans, num_dropped = _HEADER.unpack_from(content)
        packed = bytearray(content[_HEADER.size :])
        if magic != MAGIC or len(packed) != num_spans * SPAN.itemsize:
            raise ValueError(f"{len(content)} bytes are no {num_spans} spans, or part of them")
        _check(np.frombuffer(bytes(packed), SPAN))
        tracer = cls(enabled=True)
        tracer._packed, tracer.num_dropped = packed, num_dropped
        return tracer


def _check(spans: Spans) -> None:
    begins, ends = spans["begin_s"], spans["end_s"]
    is_timed = np.isfinite(begins) & np.isfinite(ends) & (begins <= ends)
    if not is_timed.all() or (spans["name"] >= len(NAMES)).any():
        raise ValueError("a span has no known name, or ends before it begins")


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """A rank's clock against rank 0's when the rank's clock read `at_s`: it was ahead by
    `offset_s`, give or take `error_s`."""

    at_s: float
    offset_s: float
    error_s: float


def estimate_offset(samples: Iterable[tuple[float, float, float]]) -> ClockOffset:
    """Return the offset by the shortest round trip; its error is at most half of that trip.

    Args:
        samples: (sent_s on rank 0's clock, remote_s when the rank answered on its own, received_s
            on rank 0's) of each round trip.

    Raises:
        ValueError: there are no samples, or one was received before it was sent.
    """
    trips = [(received - sent, sent, remote) for sent, remote, received in samples]
    if not trips or not all(trip_s >= 0.0 for trip_s, _, _ in trips):
        need = "one or more, each of 0 s or more"
        raise ValueError(must_be("round trips", need, len(trips)))
    trip_s, sent_s, remote_s = min(trips)
    return ClockOffset(remote_s, remote_s - (sent_s + trip_s / 2), trip_s / 2)


def align(spans: Spans, start: ClockOffset, end: ClockOffset | None = None) -> Spans:
    """Return a copy on rank 0's clock. With an `end` the offset moves linearly from one measurement
    to the other, and stands still outside; in between it is as exact as the worse of the two.

    Raises:
        ValueError: `end` was not measured after `start`.
    """
    end = end or ClockOffset(start.at_s + 1.0, start.offset_s, start.error_s)
    if end.at_s <= start.at_s:
        raise ValueError(f"clock measured at {start.at_s} s and then at {end.at_s} s")
    times, offsets = (start.at_s, end.at_s), (start.offset_s, end.offset_s)
    aligned: Spans = spans.copy()
    for field in ("begin_s", "end_s"):
        aligned[field] -= np.interp(spans[field], times, offsets)
    return aligned


@dataclass(frozen=True)
class RankTrace:
    """A rank's part of a timeline; `spans` [S] are on rank 0's clock, by means of `offsets`."""

    rank: int
    host: str
    spans: Spans
    offsets: tuple[ClockOffset, ...] = ()  # none for rank 0 itself
    num_dropped: int = 0


def write_timeline(path: str | os.PathLike[str], ranks: Sequence[RankTrace]) -> None:
    """Write all ranks' spans as Chrome trace events, one event a line. A reader sees the whole
    file or none.

    Times are rounded to 125 ns. A process is a rank; its rows are the rank itself and each client,
    with further rows where spans of one row overlap, which viewers would drop.

    Raises:
        OSError: `path` cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".tmp")
    about = {"format": FORMAT, "ranks": [_about(trace) for trace in ranks]}
    try:
        with unfinished.open("w") as file:
            file.write(f'{{"otherData": {json.dumps(about)},\n"traceEvents": [')
            for number, event in enumerate(e for trace in ranks for e in _events(trace)):
                file.write((",\n" if number else "\n") + json.dumps(event))
            file.write("\n]}\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _about(trace: RankTrace) -> dict[str, Any]:
    return {
        "rank": trace.rank,
        "host": trace.host,
        "num_spans": len(trace.spans),
        "num_dropped": trace.num_dropped,
        "offsets": [asdict(offset) for offset in trace.offsets],
    }


def _events(trace: RankTrace) -> Iterator[dict[str, Any]]:
    spans = trace.spans[np.lexsort((-trace.spans["end_s"], trace.spans["begin_s"]))]
    pid, rows = trace.rank + 1, _rows(spans)  # viewers keep process and thread 0 for themselves
    tids = {row: tid for tid, row in enumerate(sorted(set(rows)), start=1)}
    yield _label("process_name", pid, name=f"rank {trace.rank} ({trace.host})")
    yield _label("process_sort_index", pid, sort_index=trace.rank)
    for (client, lane), tid in tids.items():
        name = f"rank {trace.rank}" if client == NONE else f"client {client}"
        yield _label("thread_name", pid, tid, name=f"{name} ({lane + 1})" if lane else name)
        yield _label("thread_sort_index", pid, tid, sort_index=tid)
    for row, (code, client, version, begin_s, end_s) in zip(rows, spans.tolist(), strict=True):
        begin, end = (round(at_s * 1e6 * TICKS_PER_US) for at_s in (begin_s, end_s))
        who = {"client": client, "version": version}
        args = {key: value for key, value in who.items() if value != NONE}
        event = {"name": NAMES[code], "ph": "X", "pid": pid, "tid": tids[row], "args": args}
        yield event | {"ts": begin / TICKS_PER_US, "dur": (end - begin) / TICKS_PER_US}


def _rows(spans: Spans) -> list[tuple[int, int]]:
    """Return the row (client, lane) of each span: the first of its client's lanes that is free."""
    lanes: defaultdict[int, list[float]] = defaultdict(list)  # when each is free again
    rows = []
    for _, client, _, begin_s, end_s in spans.tolist():
        ends = lanes[client]
        lane = next((i for i, free_s in enumerate(ends) if free_s <= begin_s), len(ends))
        ends[lane : lane + 1] = [end_s]
        rows.append((client, lane))
    return rows


def _label(kind: str, pid: int, tid: int = 0, **args: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": args}


def read_timeline(path: str | os.PathLike[str]) -> list[RankTrace]:
    """Read what `write_timeline` wrote, spans in the order in which they began.

    Raises:
        ValueError: the file is damaged, or no timeline of this package.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        timeline = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: no timeline, or a damaged one: {error}") from None
    about = timeline.get("otherData") if isinstance(timeline, dict) else None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{path}: a JSON file, but no {FORMAT}")
    try:
        spans = _spans_by_rank(timeline["traceEvents"])
        return [_rank_trace(entry, spans[entry["rank"]]) for entry in about["ranks"]]
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: a damaged timeline: {reason}") from None


def _spans_by_rank(events: list[dict[str, Any]]) -> defaultdict[int, list[tuple[Any, ...]]]:
    spans = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            who = (event["args"].get(key, NONE) for key in ("client", "version"))
            begin_s, end_s = event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6
            spans[event["pid"] - 1].append((CODES[event["name"]], *who, begin_s, end_s))
    return spans


def _rank_trace(about: dict[str, Any], rows: list[tuple[Any, ...]]) -> RankTrace:
    spans = np.array(rows, SPAN)
    _check(spans)
    if len(spans) != about["num_spans"]:
        raise ValueError(f"rank {about['rank']} has {len(spans)} of {about['num_spans']} spans")
    offsets = tuple(ClockOffset(**offset) for offset in about["offsets"])
    return RankTrace(about["rank"], about["host"], spans, offsets, about["num_dropped"])


def breakdown(spans: Spans, begin_s: float, end_s: float) -> dict[str, float]:
    """Return seconds between two times in each category of the module's table, `idle` the last.

    Raises:
        ValueError: the end comes first.
    """
    if not begin_s <= end_s:
        raise ValueError(f"breakdown from {begin_s} to {end_s} s")
    begins, ends = (np.clip(spans[field], begin_s, end_s) for field in ("begin_s", "end_s"))
    seconds = {}
    for category, names in CATEGORIES.items():
        picks = np.isin(spans["name"], [CODES[name] for name in names])
        seconds[category] = _union_s(begins[picks], ends[picks])
    return seconds | {"idle": max(end_s - begin_s - _union_s(begins, ends), 0.0)}


def _union_s(begins: NDArray[np.float64], ends: NDArray[np.float64]) -> float:
    """Return seconds in at least one of the intervals."""
    if not len(begins):
        return 0.0
    order = np.argsort(begins)
    begins, reached = begins[order], np.maximum.accumulate(ends[order])
    gaps = np.maximum(begins[1:] - reached[:-1], 0.0)
    return float(reached[-1] - begins[0] - gaps.sum())


def breakdowns(ranks: Sequence[RankTrace]) -> dict[int, dict[str, float]]:
    """Return each rank's breakdown from the first begin to the last end of any rank's span."""
    begin_s = min((t.spans["begin_s"].min() for t in ranks if len(t.spans)), default=0.0)
    end_s = max((t.spans["end_s"].max() for t in ranks if len(t.spans)), default=0.0)
    return {trace.rank: breakdown(trace.spans, begin_s, end_s) for trace in ranks}
