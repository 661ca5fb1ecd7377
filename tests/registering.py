"""A choice of a plug-in for the time of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedgmr_hpc.config.choices.registry import registering


@contextmanager
def registered(registry: Any, entry: Any, name: str = "mine") -> Iterator[None]:
    """Have a registry know an entry by a name."""
    with registering("test"):
        registry.add(name, entry)
    try:
        yield
    finally:
        registry.forget("test")
