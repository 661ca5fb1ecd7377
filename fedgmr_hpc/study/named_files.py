"""Rows and plug-ins that a study names by their paths: those beside its file are taken from there.

What is left of a path is one from the working directory, as a run needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.choices.plugins import absolute
from fedgmr_hpc.config.methods import is_row_file, row_file_from

ROWS = ("method", "reference", "a", "b", "full")  # keys whose texts name rows


def files_from(folder: Path, values: Any, key: str = "") -> Any:
    """Return the content of a study's file, whose folder this is, with the paths from here.

    Args:
        key: what the values are those of.
    """
    if isinstance(values, Mapping):
        return {name: files_from(folder, value, str(name)) for name, value in values.items()}
    if isinstance(values, list):
        return [files_from(folder, value, key) for value in values]
    if isinstance(values, str) and key in ROWS and is_row_file(values):
        return row_file_from(folder, values)
    return absolute(values, folder) if isinstance(values, str) and key == "plugins" else values
