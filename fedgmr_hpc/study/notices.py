"""Lines on stderr about what a study passes over."""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache


def warn(text: str) -> None:
    """Write a line, if stderr can still be written."""
    with suppress(OSError):
        sys.stderr.write(f"fedgmr_hpc: warning: {text}\n")
        sys.stderr.flush()


@cache
def warn_once(text: str) -> None:
    """Write a line that this process has not written yet."""
    warn(text)
