"""What a person sees while a run runs: one live line, or timestamped lines, and always a log file.

    mode   on stderr                                          in the log file
    live   one line rewritten in place, at most 5 times a s   the course every 5 s, evaluations
    plain  the same lines as in the log file                  the same
    quiet  warnings and errors only                           the same

`auto` is `live` on a terminal and `plain` elsewhere. Notes go to both places. All lines pass
through the `fedgmr_hpc` logger, so other modules' warnings reach both places too, and never tear
the live line. One Progress at a time.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal

from fedgmr_hpc.config.errors import PluginError
from fedgmr_hpc.reporting.live import LiveText, can_redraw
from fedgmr_hpc.storage.rows import EvaluationRow

Mode = Literal["auto", "live", "plain", "quiet"]
LOG_INTERVAL_S = 5.0

log = logging.getLogger("fedgmr_hpc")
course_log = logging.getLogger("fedgmr_hpc.runtime.progress")  # what the live line shows anyway
trace_log = logging.getLogger("fedgmr_hpc.traces")  # for the log file alone


class Progress:
    """Shows a run's course. A context manager, so that an error leaves a clean terminal.

    Args:
        mode: see the module docstring.
        total_rounds: rounds after which the run ends, None without such a limit.
        total_s: virtual seconds after which the run ends, None without such a limit.
        log_path: the run's log file, appended to; its folder is made where missing.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        total_rounds: int | None,
        total_s: float | None,
        log_path: str | os.PathLike[str],
    ) -> None:
        shown = ("live" if can_redraw(sys.stderr) else "plain") if mode == "auto" else mode
        self._line = LiveText(is_live=shown == "live", clock=time.monotonic)
        self._total_rounds, self._total_s = total_rounds, total_s
        self._start: tuple[float, int, float] | None = None  # wall clock, round, virtual time
        self._accuracy = ""
        self._state: tuple[int, float, float, int, int] | None = None  # what `update` was given
        self._logged_state: tuple[int, float, float, int, int] | None = None
        self._logged_s = -math.inf
        console = _Console(self._line)
        console.setLevel(logging.WARNING if shown == "quiet" else logging.INFO)
        console.addFilter(lambda record: record.name != trace_log.name)
        if self._line.is_live:
            console.addFilter(lambda record: record.name != course_log.name)
        self._level = log.level
        log.setLevel(logging.INFO)
        self._handlers = (console, _log_file(Path(log_path)))
        for handler in self._handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            log.addHandler(handler)

    def update(
        self,
        round: int,
        now_s: float,
        *,
        mean_density: float,
        server_up_bytes: int,
        server_down_bytes: int,
    ) -> None:
        """Note that a new version exists at virtual time `now_s`.

        Args:
            round: rounds completed.
            now_s: virtual time.
            mean_density: over the clients.
            server_up_bytes: what the server has sent, since the start.
            server_down_bytes: what it has received.
        """
        clock_s = time.monotonic()
        self._start = self._start or (clock_s, round, now_s)
        self._state = (round, now_s, mean_density, server_up_bytes, server_down_bytes)
        self._show(clock_s)

    def evaluated(self, row: EvaluationRow) -> None:
        """Note that the server's model was evaluated."""
        self._accuracy = f"val {_percent(row.val_accuracy)} test {_percent(row.test_accuracy)}"
        course_log.info(
            "evaluation | round %d | version %d | t %.1f s | %s | density %.3f",
            row.round,
            row.version,
            row.now_s,
            self._accuracy,
            row.mean_density,
        )

    def note(self, text: str) -> None:
        """Print one line worth reading, in every place but a silenced terminal."""
        log.info(text)

    def close(self) -> None:
        """Show the last state and let go of the terminal and the log file."""
        if self._state:
            self._logged_s = -math.inf
            self._show(time.monotonic(), is_last=True)
            self._state = None
        self._line.close()
        for handler in self._handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(self._level)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of all, with the traceback of a plug-in's failure in the log file."""
        if isinstance(error, PluginError) and error.__cause__ is not None:
            trace_log.error("%s", "".join(traceback.format_exception(error.__cause__)))
        self.close()

    def _show(self, clock_s: float, is_last: bool = False) -> None:
        if self._line.is_live and (self._line.is_due or is_last):
            self._line.show(self._compose(clock_s))
        if clock_s - self._logged_s >= LOG_INTERVAL_S and self._state != self._logged_state:
            self._logged_s, self._logged_state = clock_s, self._state
            course_log.info(self._compose(clock_s))

    def _compose(self, clock_s: float) -> str:
        """Return the line as things stand, the last evaluation included."""
        if self._state is None:
            return ""
        round, now_s, mean_density, up_bytes, down_bytes = self._state
        parts = [  # a narrow terminal cuts from the right
            _out_of("round", f"{round}", self._total_rounds),
            self._eta(clock_s, round, now_s),
            _out_of("t", f"{now_s:.1f}", self._total_s) + " s",
            self._accuracy,
            f"density {mean_density:.3f}",
            f"server {up_bytes / 1e6:.1f} MB up {down_bytes / 1e6:.1f} MB down",
            self._pace(clock_s, round),
        ]
        return " | ".join(filter(None, parts))

    def _pace(self, clock_s: float, round: int) -> str:
        start_s, start_round, _ = self._start or (clock_s, round, 0.0)
        elapsed_s = clock_s - start_s
        return f"{(round - start_round) / elapsed_s:.3g} rounds/s" if elapsed_s > 0 else ""

    def _eta(self, clock_s: float, round: int, now_s: float) -> str:
        """Return the wall time to the limit that comes first, at the speed so far."""
        start_s, start_round, start_now_s = self._start or (clock_s, round, now_s)
        limits = ((self._total_rounds, round, start_round), (self._total_s, now_s, start_now_s))
        left_s = [
            (total - at) / (at - start) * (clock_s - start_s)
            for total, at, start in limits
            if total is not None and at > start
        ]
        return f"ETA {timedelta(seconds=max(0, int(min(left_s))))}" if left_s else ""


class _Console(logging.Handler):
    """Log lines on stderr, above the live line where there is one."""

    def __init__(self, line: LiveText) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._line.print(self.format(record))


class _LogFile(logging.FileHandler):
    """The log file. A run continues without it: what is lost is reported once, on the console."""

    _is_lost = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        self._lose(sys.exc_info()[1])

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            log.warning("log file %s: %s; it is not whole", self.baseFilename, error)


def _log_file(path: Path) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    return _LogFile(path, encoding="utf-8")


def _out_of(name: str, value: str, total: float | None) -> str:
    return f"{name} {value}" if total is None else f"{name} {value}/{total:.12g}"


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.2f} %"
