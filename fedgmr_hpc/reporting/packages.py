"""Packages that only some outputs need, and that may be missing."""

from __future__ import annotations

import importlib
from typing import Any


def optional_package(name: str, user: str) -> Any:
    """Import a package that is no dependency.

    Args:
        name: of the package, or of a module in it.
        user: what needs it, for the message.

    Raises:
        ValueError: it is missing; says how to install it.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, but lacks something of its own
            raise
        raise ValueError(
            f"{user} needs {package}, which is missing: pip install {package}"
        ) from None
