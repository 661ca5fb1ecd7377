"""Array types and fields of records, shared by all wings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def fields_of(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name; their values are not copied."""
    return shared_fields(record, type(record))


def shared_fields(record: Any, wanted: type[Any]) -> dict[str, Any]:
    """Return those fields of a dataclass or named tuple that the dataclass `wanted` has, too.

    Example:
        >>> UpdateRow(**shared_fields(update, UpdateRow), now_s=now_s, ...)
    """
    names, read = _shared_names(type(record), wanted)
    return dict(zip(names, read(record), strict=True))


@lru_cache
def _shared_names(
    have: Any, wanted: Any
) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """Return the names of the fields that both have, and what reads them. Every message asks."""
    own = have.__annotations__ if issubclass(have, tuple) else {f.name for f in fields(have)}
    names = tuple(field.name for field in fields(wanted) if field.name in own)
    if len(names) < 2:  # of which attrgetter would make no tuple
        return names, lambda record: tuple(getattr(record, name) for name in names)
    return names, attrgetter(*names)
