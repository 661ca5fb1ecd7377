"""Numbers and values in words, as tables, pages and lines on a terminal show them."""

from __future__ import annotations

import json
import math
from typing import Any


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: `1 rank`, `3 ranks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_s(seconds: float) -> str:
    """Return a duration: `3 h 12 min`, `4 min 10 s` or `8 s`; `unknown` for NaN."""
    if math.isnan(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def percent(fraction: float) -> str:
    """Return a fraction in percent with two decimals, without the sign; `-` if not finite."""
    return f"{100 * fraction:.2f}" if math.isfinite(fraction) else "-"


def part_of(key: str, value: Any) -> str:
    """Return a value in a label: a word by itself, a CSV file with its folder's name alone, another
    value with its key.
    """
    if isinstance(value, str):
        return "/".join(value.split("/")[-2:]) if value.endswith(".csv") else value
    return f"{short_key(key)} {text_of(value)}"


def short_key(key: str) -> str:
    """Return the last word of a dotted key, as people say it."""
    return key.rpartition(".")[2].replace("_", " ")


def text_of(value: Any) -> str:
    """Return a value that is no word."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
