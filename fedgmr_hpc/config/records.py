"""Array types and fields of records, shared by all wings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]


def fields_of(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name; their values are not copied."""
    return shared_fields(record, type(record))


def shared_fields(record: Any, wanted: type[Any]) -> dict[str, Any]:
    """Return those fields of a dataclass or named tuple that the dataclass `wanted` has, too.

    Example:
        >>> UpdateRow(**shared_fields(update, UpdateRow), now_s=now_s, ...)
    """
    kinds = type(record), wanted
    if kinds not in _SHARED:
        _SHARED[kinds] = _find_shared(*kinds)
    names, read = _SHARED[kinds]
    return dict(zip(names, read(record), strict=True))


_Shared = tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]
_SHARED: dict[tuple[type[Any], type[Any]], _Shared] = {}  # every message asks


def _find_shared(have: type[Any], wanted: type[Any]) -> _Shared:
    """Return the names of the fields that both have, and what reads them."""
    own = have.__annotations__ if issubclass(have, tuple) else {f.name for f in fields(have)}
    names = tuple(field.name for field in fields(wanted) if field.name in own)
    if len(names) < 2:  # of which attrgetter would make no tuple
        return names, lambda record: tuple(getattr(record, name) for name in names)
    return names, attrgetter(*names)
