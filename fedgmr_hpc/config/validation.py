"""What pydantic says of wrong values, as lines with key, value found and values allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from fedgmr_hpc.config.schema import Config

NUMBERS = {"float_type": "a decimal number", "int_type": "a whole number such as 10"}


def wrong_values(values: Mapping[str, Any]) -> list[str]:
    """One line for every key and value that a configuration cannot have."""
    try:
        Config.model_validate(values)
    except ValidationError as error:
        return [render_error(item) for item in error.errors()]
    return []


def render_error(error: Any) -> str:
    """One of the mistakes of a `ValidationError` as a line."""
    key = ".".join(str(part) for part in error["loc"])
    got, context = error["input"], error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context["error"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; known keys here: {', '.join(_known_keys(error['loc'][:-1]))}"
    if error["type"] == "literal_error":
        return f"{key}: got {got!r}, allowed: {context['expected'].replace(' or ', ', ')}"
    if error["type"] == "model_type":
        return f"{key}: got {got!r}, allowed: a group of keys"
    if error["type"] in NUMBERS:
        return f"{key}: got {got!r}, allowed: {NUMBERS[error['type']]}"
    bounds = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = " and ".join(f"{word} {context[b]}" for b, word in bounds.items() if b in context)
    return f"{key}: got {got!r}, allowed: {limits or error['msg'].lower()}"


def _known_keys(path: Sequence[str | int]) -> list[str]:
    section: Any = Config
    for part in path:
        if isinstance(part, int):  # an entry of a tuple of sections
            section = get_args(section)[0]
        else:
            section = section.model_fields[part].annotation
    return list(section.model_fields)
