"""What makes two runs the same: every key of the configuration is marked, here the marks are read.

    run      what is trained, and in which order      look     what is looked at beside
    limit    when the run ends                        machine  where and how it is carried out

A study's cell is known by the keys of run, look and limit; a run goes on from a checkpoint of the
same run and look; a replay follows events of the same run. Only what differs from the default
counts, so that a new key changes no old identity. Values are those of JSON, as files keep them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from fedgmr_hpc.config.axes import Belongs, Mark, Section
from fedgmr_hpc.config.schema import Config

Keys = dict[str, Any]  # dotted -> value
CELL: tuple[Mark, ...] = ("run", "look", "limit")
RESUMED: tuple[Mark, ...] = ("run", "look")
REPLAYED: tuple[Mark, ...] = ("run",)


@cache
def marks() -> dict[str, Mark]:
    """The mark of every key.

    Raises:
        TypeError: one has none, or several; names it.
    """
    return dict(_marked(Config, ""))


def _marked(section: type[Section], prefix: str) -> Iterator[tuple[str, Mark]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _marked(field.annotation, f"{prefix}{name}.")
            continue
        found = [each.to for each in field.metadata if isinstance(each, Belongs)]
        if len(found) != 1:
            raise TypeError(
                f"{section.__name__}.{name}: got {len(found)} marks, allowed: one of Run, Look, "
                "Limit and Machine around its type (axes.py)"
            )
        yield prefix + name, found[0]


@cache
def _defaults() -> Keys:
    return flat(Config().model_dump(mode="json"))


def flat(values: Mapping[str, Any], prefix: str = "") -> Keys:
    """Nested values by dotted key."""
    return dict(_walk(values, prefix))


def _walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def identity(config: Config | Mapping[str, Any], of: tuple[Mark, ...] = CELL) -> Keys:
    """The marked keys that differ from their defaults, in order.

    Args:
        config: a configuration, or the nested values that a file keeps of one; keys that it lacks
            are younger than the file and have their defaults.
        of: the marks that count.
    """
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    found, defaults = flat(values), _defaults()
    return {
        key: found[key]
        for key, mark in sorted(marks().items())
        if mark in of and key in found and found[key] != defaults[key]
    }


def differences(
    then: Config | Mapping[str, Any], now: Config | Mapping[str, Any], of: tuple[Mark, ...]
) -> dict[str, tuple[Any, Any]]:
    """The marked keys in which two configurations differ, with their values then and now."""
    defaults, left, right = _defaults(), identity(then, of), identity(now, of)
    return {
        key: (left.get(key, defaults[key]), right.get(key, defaults[key]))
        for key in sorted(left.keys() | right.keys())
        if left.get(key, defaults[key]) != right.get(key, defaults[key])
    }
