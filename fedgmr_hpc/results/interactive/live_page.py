"""A page of runs that is renewed while they go on: `watch --html DIR`.

Every look takes the table of `watch`, and the curves of the files that have changed since the last
one. A file that cannot be read just now keeps the curve that it had; the page says what is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from fedgmr_hpc.reporting.interactive import Chart, LivePage
from fedgmr_hpc.reporting.live import LiveText
from fedgmr_hpc.results.interactive.curves import NOTE, columns, curves, read_light
from fedgmr_hpc.results.watch import (
    HEADS,
    Look,
    Stamp,
    cells_of,
    follow,
    ranked,
    render,
    short_names,
    stamp_of,
    unreadable,
)
from fedgmr_hpc.storage.reader import Result

TITLE = "Runs"


def watch_page(
    words: Sequence[str], folder: Path, every_s: float, once: bool, stream: TextIO | None = None
) -> int:
    """Renew the page until the runs end or Ctrl-C; return exit code 0.

    A terminal shows the table, too.

    Raises:
        ValueError: a word names nothing, or plotly is missing.
        OSError: `folder` cannot be written.
    """
    stream, curves_of, looks = stream or sys.stdout, WatchedCurves(), []
    page = LivePage(folder, TITLE, every_s)
    print(f"page: {page.path}", file=stream)
    with suppress(KeyboardInterrupt), LiveText(stream) as live:
        for looks in follow(words, every_s):
            page.update(curves_of.chart(looks), goes_on=not once)
            if once:
                break
            if live.is_live:
                live.show(render(looks, max(1, live.height - 5)))
    page.update(curves_of.chart(looks), goes_on=False)
    return 0


class WatchedCurves:
    """The curves of files that grow; a file is read again where it has changed."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[Stamp, Result]] = {}

    def chart(self, looks: Sequence[Look]) -> Chart:
        """Return the table and the curves of runs."""
        looks = sorted(looks, key=lambda run: str(run.path))  # styles go by the order of curves
        names = short_names([run.path for run in looks])
        found = [(name, self._result(run.path)) for name, run in zip(names, looks, strict=True)]
        known = {name: result for name, result in found if result is not None}
        results = list(known.values())
        return Chart(
            TITLE,
            columns([result.config for result in results]),
            curves(results, list(known)),
            notes=[*unreadable(looks), NOTE],
            shows_runs=True,
            heads=HEADS,
            rows=cells_of(ranked(looks)),
        )

    def _result(self, path: Path) -> Result | None:
        """Return a run as it is, or as it was when it could be read; None if it never was."""
        with suppress(OSError, ValueError):
            stamp = stamp_of(path)
            if path not in self._read or self._read[path][0] != stamp:
                self._read[path] = (stamp, read_light(path))
        return self._read[path][1] if path in self._read else None
