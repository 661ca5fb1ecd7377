"""What a study names by its path: rows, plug-ins, and the files of named_content.py.

Those that are there are taken from the folder of the study's file. What is left of a path is one
from the working directory, as a run needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.choices.named_content import CONTENT_OF, path_from
from fedgmr_hpc.config.choices.plugins import absolute
from fedgmr_hpc.config.methods import is_row_file, row_file_from

ROWS = ("method", "reference", "a", "b", "full")  # keys whose texts name rows
FILES = {*CONTENT_OF, *(key.rpartition(".")[2] for key in CONTENT_OF)}  # dotted or nested


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
    if isinstance(values, str) and key in FILES:
        return path_from(folder, values)
    return absolute(values, folder) if isinstance(values, str) and key == "plugins" else values
