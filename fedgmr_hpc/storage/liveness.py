"""Whether a run that says `running` still does: by the time since its file last changed.

A killed writer cannot change its status. A file is rewritten at every flush that has rows, so a
silence that is long against the run's own pace means that nobody writes it any more. The clocks of
this machine and of the file system are compared, so the least silence is a minute.

Shapes: N merges.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SILENCE_S = 60.0  # the least that counts
FIRST_SILENCE_S = 600.0  # before the first merge, while nothing is known of the pace
SILENCE_GAPS = 10.0  # in the longest time between two merges so far
DEAD = "dead?"


def age_s(path: Path) -> float:
    """Return the wall time since the file was written to."""
    return max(0.0, time.time() - path.stat().st_mtime)


def shown_status(
    status: str, age_s: float, wall_s: NDArray[np.float64], config: Mapping[str, Any]
) -> str:
    """Return the first word of a status, or `dead?` for a running one that has long been silent.

    Args:
        age_s: wall time since the file was written to.
        wall_s: [N] wall time of merges, the last ones at least.
    """
    word = status.partition(":")[0]
    if word == "running" and age_s > allowed_silence_s(wall_s, config):
        return DEAD
    return word


def allowed_silence_s(wall_s: NDArray[np.float64], config: Mapping[str, Any]) -> float:
    """Return how long the file of a live run may stay as it is."""
    flush_s = float(config.get("results", {}).get("flush_s", 0.0))
    if len(wall_s) < 2:
        return FIRST_SILENCE_S + SILENCE_GAPS * flush_s
    longest_s = float(np.diff(wall_s).max())
    return max(SILENCE_S, SILENCE_GAPS * max(longest_s, flush_s))
