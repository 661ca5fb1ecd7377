"""A table of runs, live, from their result files alone.

Files are looked at again and again, new ones included; nothing is written, no server is needed, and
only the last rows are read.

    column      meaning
    done        of the rounds or of the virtual time, whichever is further
    rows/s      rows of all tables, over the wall time of the run
    age         wall time since the file was written to
    left        wall time to the limit that comes first, at the pace of the last 64 merges
    dead?       it says running, but has been silent for longer than its pace explains (liveness.py)

Shapes: N merges of those kept, C clients.
"""

from __future__ import annotations

import glob
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fedgmr_hpc.config.identity import method_label
from fedgmr_hpc.config.yaml_file import parse
from fedgmr_hpc.reporting.live import LiveText, can_redraw
from fedgmr_hpc.reporting.tables import as_text
from fedgmr_hpc.reporting.words import describe_s, percent
from fedgmr_hpc.storage.hdf5_file import describe_error, open_for_reading
from fedgmr_hpc.storage.liveness import DEAD, age_s, shown_status
from fedgmr_hpc.storage.reader import DAMAGE
from fedgmr_hpc.storage.schema import TABLES

TAIL_ROWS = 64
HEADS = (
    *("run", "method", "state", "round", "done", "left", "age", "val %", "test %", "density"),
    *("virtual s", "server up MB", "server down MB", "rows/s"),
)
MERGE_COLUMNS = ("round", "now_s", "wall_s", "density", "server_up_bytes", "server_down_bytes")
UNREADABLE = "unreadable"
ORDER = ("running", DEAD, UNREADABLE)  # what is shown first
ENDED = ("finished", "failed", "checkpointed")
Stamp = tuple[int, int, int]  # what tells a file from one that has changed or taken its place


@dataclass(frozen=True)
class Look:
    """What one look at a run's file found. `merges` [N]: the last ones; density is a mean."""

    path: Path
    state: str
    config: Mapping[str, Any]
    age_s: float
    num_rows: int  # of all tables
    merges: Mapping[str, Any]
    val_accuracy: float
    test_accuracy: float


def look(path: Path) -> Look:
    """Read the last rows of a run; a file that cannot be read is a state, too."""
    try:
        return _read(path)
    except (*DAMAGE, ValueError) as error:
        nothing = {name: np.zeros(0) for name in MERGE_COLUMNS}
        state = f"{UNREADABLE}: {describe_error(error).removeprefix(f'results {path}: ')}"
        return Look(path, state, {}, math.nan, 0, nothing, math.nan, math.nan)


def _read(path: Path) -> Look:
    with open_for_reading(path) as file:
        if "committed" not in file:
            raise ValueError("not the result file of one run")
        age = age_s(path)
        rows = dict(zip(TABLES, file["committed"][...].tolist(), strict=False))
        config = parse(file["config"][()].decode()) or {}
        merges = {n: _tail(file["merges"][n], rows["merges"]) for n in MERGE_COLUMNS}
        merges["density"] = merges["density"].mean(axis=1)
        val, test = (
            _last(file["evaluations"][name], rows["evaluations"])
            for name in ("val_accuracy", "test_accuracy")
        )
        state = shown_status(file["status"][()].decode(), age, merges["wall_s"], config)
    return Look(path, state, config, age, sum(rows.values()), merges, val, test)


def _tail(dataset: Any, num_rows: int) -> Any:
    return dataset[max(0, num_rows - TAIL_ROWS) : num_rows]


def _last(dataset: Any, num_rows: int) -> float:
    """Return the last known value."""
    known = _tail(dataset, num_rows)
    known = known[np.isfinite(known)]
    return float(known[-1]) if len(known) else math.nan


def stamp_of(path: Path) -> Stamp:
    """Return the time of a file's last change, its bytes and its number.

    Raises:
        OSError: there is none.
    """
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def find_files(words: Sequence[str], *, may_be_gone: bool = False) -> list[Path]:
    """Return the files that words stand for now.

    Args:
        may_be_gone: take a word that names nothing for a file that comes back.

    Raises:
        ValueError: a word names nothing, and is no pattern.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found += sorted(path.glob("*.h5")) or sorted(path.glob("cells/*.h5"))
        elif glob.has_magic(word) and not path.exists():
            found += [Path(name) for name in sorted(glob.glob(str(path)))]
        elif path.is_file() or may_be_gone:
            found.append(path)
        else:
            raise ValueError(f"results {word}: no such file, pattern or folder")
    return list(dict.fromkeys(found))


def render(looks: Sequence[Look], max_rows: int | None = None) -> str:
    """Render the table and a line of counts; running ones come first and are cut last."""
    shown = ranked(looks)[:max_rows]
    counts = Counter(_word(run) for run in looks)
    line = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no files"
    hidden = f"; {len(looks) - len(shown)} more rows do not fit" * (len(shown) < len(looks))
    footer = f"{time.strftime('%H:%M:%S')}  {line}{hidden}"
    table = [as_text(HEADS, cells_of(shown))] if shown else []
    return "\n".join([*table, footer, *unreadable(shown)])


def ranked(looks: Sequence[Look]) -> list[Look]:
    """Return runs in the order in which they are shown."""
    return sorted(looks, key=lambda run: (_rank(run), str(run.path)))


def unreadable(looks: Sequence[Look]) -> list[str]:
    """Say what is wrong with files."""
    return [f"{run.path}: {run.state}" for run in looks if _word(run) == UNREADABLE]


def _word(run: Look) -> str:
    return run.state.partition(":")[0]


def _rank(run: Look) -> int:
    return ORDER.index(_word(run)) if _word(run) in ORDER else len(ORDER)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return stems, or paths where two stems are the same."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def cells_of(looks: Sequence[Look]) -> list[list[str]]:
    """Return the rows of the table, as `HEADS` names their cells."""
    names = short_names([run.path for run in looks])
    return [_cells(name, run) for name, run in zip(names, looks, strict=True)]


def _cells(name: str, run: Look) -> list[str]:
    merges, limits = run.merges, run.config.get("run", {})
    last = {key: float(values[-1]) if len(values) else 0.0 for key, values in merges.items()}
    has_merges = len(merges["round"]) > 0
    pace = run.num_rows / last["wall_s"] if last["wall_s"] > 0 else math.nan
    is_running = _word(run) == "running"
    return [
        name,
        method_label(run.config),
        _word(run),
        f"{last['round']:.0f}/{limits.get('max_rounds', '-')}",
        f"{100 * progress_frac(last, limits):.0f} %",
        describe_s(left_s(merges, limits, run.age_s)) if is_running else "-",
        "-" if math.isnan(run.age_s) else describe_s(run.age_s),
        percent(run.val_accuracy),
        percent(run.test_accuracy),
        f"{last['density']:.3f}" if has_merges else "-",
        f"{last['now_s']:.1f}",
        f"{last['server_up_bytes'] / 1e6:.1f}",
        f"{last['server_down_bytes'] / 1e6:.1f}",
        f"{pace:.1f}" if math.isfinite(pace) else "-",
    ]


def progress_frac(last: Mapping[str, float], limits: Mapping[str, Any]) -> float:
    """Return how much of the rounds or of the virtual time is done, at most 1."""
    pairs = ((last["round"], limits.get("max_rounds")), (last["now_s"], limits.get("max_time_s")))
    return min(1.0, max((at / limit for at, limit in pairs if limit), default=0.0))


def left_s(merges: Mapping[str, Any], limits: Mapping[str, Any], age_s: float) -> float:
    """Return wall time to the limit that comes first, NaN while the pace is unknown.

    Args:
        merges: columns [N] of `MERGE_COLUMNS`.
        age_s: wall time since the last of them.
    """
    if len(merges["wall_s"]) < 2:
        return math.nan
    spent_s = float(merges["wall_s"][-1] - merges["wall_s"][0])
    left = [math.nan]
    for name, limit in (("round", limits.get("max_rounds")), ("now_s", limits.get("max_time_s"))):
        first, last = float(merges[name][0]), float(merges[name][-1])
        if limit and last > first:
            left.append(max(0.0, (limit - last) / (last - first) * spent_s - age_s))
    return float(np.nanmin(left)) if len(left) > 1 else math.nan


def watch(words: Sequence[str], every_s: float, once: bool, stream: TextIO | None = None) -> int:
    """Show the runs until all have ended or Ctrl-C; return exit code 0.

    Raises:
        ValueError: a word names nothing.
    """
    stream = stream or sys.stdout
    if once or not can_redraw(stream):
        print(render([look(path) for path in find_files(words)]), file=stream)
        return 0
    with suppress(KeyboardInterrupt):
        _show(words, every_s, stream)
    return 0


def _show(words: Sequence[str], every_s: float, stream: TextIO) -> None:
    with LiveText(stream) as live:
        for looks in follow(words, every_s):
            live.show(render(looks, max(1, live.height - 4)))


def follow(words: Sequence[str], every_s: float) -> Iterator[list[Look]]:
    """Yield looks until the named runs have ended; new files of a folder are awaited.

    A file that seems dead, cannot be read or is gone has not ended: it may be resumed or come back.

    Raises:
        ValueError: a word names nothing at first.
    """
    are_files = all(Path(word).expanduser().is_file() for word in words)
    paths = find_files(words)
    ended: dict[Path, tuple[Stamp, Look]] = {}
    while True:
        looks = [_look_again(path, ended) for path in paths]
        yield looks
        if are_files and all(_word(run) in ENDED for run in looks):
            return
        time.sleep(every_s)
        paths = find_files(words, may_be_gone=True)


def _look_again(path: Path, ended: dict[Path, tuple[Stamp, Look]]) -> Look:
    """Return a look at a file as it is now. That of an ended run is kept until the file changes: a
    failed run may be tried again, and another file take the place of a finished one.
    """
    with suppress(OSError):  # it is gone, which the look then says
        stamp = stamp_of(path)
        if path in ended and ended[path][0] == stamp:
            return replace(ended[path][1], age_s=age_s(path))
        run = look(path)
        if _word(run) in ENDED:
            ended[path] = (stamp, run)
        return run
    return look(path)
