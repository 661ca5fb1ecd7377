"""Array types and fields of records, shared by all wings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def fields_of(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name; their values are not copied."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def shared_fields(record: Any, wanted: type[Any]) -> dict[str, Any]:
    """Return those fields of a dataclass or named tuple that the dataclass `wanted` has, too.

    Example:
        >>> UpdateRow(**shared_fields(update, UpdateRow), now_s=now_s, ...)
    """
    names = (field.name for field in fields(wanted))
    return {name: getattr(record, name) for name in names if hasattr(record, name)}
