"""Array types and fields of records, shared by all wings."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def fields_of(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name; their values are not copied."""
    return {name: getattr(record, name) for name in _names_of(type(record))}  # type: ignore[arg-type]


def shared_fields(record: Any, wanted: type[Any]) -> dict[str, Any]:
    """Return those fields of a dataclass or named tuple that the dataclass `wanted` has, too.

    Example:
        >>> UpdateRow(**shared_fields(update, UpdateRow), now_s=now_s, ...)
    """
    return {name: getattr(record, name) for name in _names_of(wanted) if hasattr(record, name)}  # type: ignore[arg-type]


@cache
def _names_of(record: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record))
