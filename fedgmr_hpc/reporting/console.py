"""Lines that ranks print: each in one piece, and never a reason to stop."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path


def open_streams() -> None:
    """Let what is printed go nowhere where this process was started with closed descriptors."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def say(text: str) -> None:
    """Print `text` in one piece, since ranks share the terminal.

    A reader that has left, or a full disk where the output goes, stops nothing.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def print_error(text: str) -> None:
    """Write each line of `text` to stderr, if it can still be written."""
    with suppress(OSError):
        for line in text.splitlines():
            sys.stderr.write(f"fedgmr_hpc: error: {line}\n")
        sys.stderr.flush()


def own_python() -> str:
    """Return what to type for this Python: `python` where that finds it, else its path."""
    found = shutil.which("python")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "python"  # not where they only lead to the same: a venv's is a link
    here = os.path.relpath(sys.executable)
    return sys.executable if here.startswith("..") else here
