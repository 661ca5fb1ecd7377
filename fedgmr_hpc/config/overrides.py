"""Overrides, words such as `run.max_rounds=100`: how they are read, and laid over one another.

Python programs also give them as a mapping, by dotted keys, nested, or both:
`{"run.max_rounds": 100, "links": {"client_sigma": 0}}`. Its values are taken as they are.

The type of a key decides how its value is read. Text is taken as typed, except for `null` where
that is allowed; anything else is null, a truth value, a number, or YAML in brackets. A key of
several values also takes them with commas between, as in `clients.shares=1,0.5`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from pydantic.fields import FieldInfo

from fedgmr_hpc.config.choices.open_section import fields_of
from fedgmr_hpc.config.choices.section import Section, is_off, types_in
from fedgmr_hpc.config.messages import must_be, shown
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.yaml_file import YamlError, parse, parse_scalar

Overrides = Sequence[str] | Mapping[str, Any]


def parse_override(word: str) -> tuple[str, Any]:
    """Return the key of a word and its value.

    Raises:
        ValueError: It is no `dotted.key=value`, or its value cannot be read.

    Example:
        >>> parse_override("clients.shares=1,0.5")
        ('clients.shares', [1, 0.5])
    """
    key, equals, text = word.partition("=") if isinstance(word, str) else ("", "", "")
    if not equals or not all(key.split(".")):
        raise ValueError(must_be("an override", "dotted.key=value", word))
    return key, parse_value(key, text)


def parse_value(key: str, text: str) -> Any:
    """Return what `text` means as the value of a key, or for an unknown key what YAML makes of it.

    Raises:
        ValueError: It is empty, or not YAML though it must be.
    """
    kinds = _kinds(key)
    if not (text if str in kinds else text.strip()):
        raise ValueError(must_be(key, "given a value", text))
    if str in kinds:
        return None if text == "null" and type(None) in kinds else text
    value, start = parse_scalar(text), text.lstrip()[:1]
    if start == "[" or (start == "{" and tuple not in kinds):
        return _parse_yaml(key, text)
    if tuple in kinds and value is not None and not is_off(value):
        return _parse_yaml(key, f"[{text}]")
    return value


def parse_values(key: str, text: str) -> list[Any]:
    """Return the values that a key takes in turn: a list in brackets or with commas, or a single
    one.

    Raises:
        ValueError: There is none, or it is not YAML though it must be.
    """
    if text.lstrip().startswith("["):
        values = _parse_yaml(key, text)
    elif {str, tuple}.isdisjoint(_kinds(key)) and "," in text:
        values = [parse_value(key, part.strip()) for part in text.split(",")]
    else:
        values = [parse_value(key, text)]
    if not values:
        raise ValueError(must_be(key, "given at least one value", text))
    return list(values)


def as_override(key: str, value: Any) -> str:
    """Return the word from which `parse_override` reads `value`."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def laid_over(words: Sequence[str], over: Sequence[str]) -> list[str]:
    """Return words for everything that `over` does not set, then those of `over`."""
    kept = leaves(words)
    for key in leaves(over):
        kept.pop(key, None)
    return [*(as_override(key, value) for key, value in kept.items()), *over]


def override(values: dict[str, Any], words: Overrides) -> None:
    """Set in nested `values` what the overrides say.

    Raises:
        ValueError: One cannot be read, is below a value, or sets a key again.
    """
    for key, value in leaves(words).items():
        *parents, last = key.split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ValueError(must_be(parent, f"a mapping of keys when {key} is set", inner))
        if value != {} or not isinstance(inner.get(last), dict):  # {} adds nothing
            inner[last] = value


def only(key: str, overrides: Overrides) -> Overrides:
    """Return those of the overrides that set `key`.

    Raises:
        ValueError: They are neither words nor a mapping.
    """
    if isinstance(overrides, Mapping):
        return {name: value for name, value in overrides.items() if name == key}
    return [word for word in _words(overrides) if str(word).partition("=")[0] == key]


def leaves(words: Overrides) -> dict[str, Any]:
    """Return every dotted key that the overrides set, with its value.

    Raises:
        ValueError: They are neither words nor a mapping; or with one line for each word that cannot
            be read and each key that is set again.
    """
    found: dict[str, tuple[Any, str]] = {}
    wrong: list[str] = []
    for word, read in _readers(words):
        try:
            own = dict(_flat(*read()))
        except ValueError as error:
            wrong.append(str(error))
            continue
        again = {key: found[old][1] for key in own for old in found if _meet(key, old)}
        wrong += [
            must_be(key, "set only once", found=f"{old} and {word}") for key, old in again.items()
        ]
        found |= {key: (value, word) for key, value in own.items()}
    if wrong:
        raise ValueError("\n".join(wrong))
    return {key: value for key, (value, _) in found.items()}


def _readers(overrides: Overrides) -> Iterator[tuple[str, Callable[[], tuple[str, Any]]]]:
    """Yield each override as it is typed, and what reads its key and value."""
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            yield f"{key}={shown(value)}", partial(_checked, key, value)
        return
    for word in _words(overrides):
        yield f"{word}", partial(parse_override, word)


def _words(overrides: Sequence[str]) -> Sequence[str]:
    """Return overrides that are no mapping.

    Raises:
        ValueError: They are no words either.
    """
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        raise ValueError(must_be("overrides", "a list of key=value words or a mapping", overrides))
    return overrides


def _checked(key: Any, value: Any) -> tuple[str, Any]:
    if not isinstance(key, str) or not all(key.split(".")):
        raise ValueError(must_be("a key", "dotted words", key))
    return key, value


def _plain(value: Any) -> Any:
    """Return a value as a file could have it: paths are words, NumPy's numbers and arrays are
    Python's.
    """
    if isinstance(value, PurePath):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _meet(key: str, other: str) -> bool:
    """Return whether two dotted keys are the same, or one is below the other."""
    return f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.")


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys of a mapping; an empty one is a value."""
    if not isinstance(value, Mapping) or not value:
        yield key, _plain(value)
        return
    for inner, each in value.items():
        yield from _flat(f"{key}.{inner}", each)


def _parse_yaml(key: str, text: str) -> Any:
    try:
        return parse(text)
    except YamlError as error:
        hint = f"; in a shell put it in quotes: '{key}=...'" if text[:1] in "[{" else ""
        why = "" if str(error).startswith("not YAML") else str(error)
        raise ValueError(must_be(key, "valid YAML", text, because=why) + hint) from None


def _kinds(key: str) -> set[Any]:
    """Return the types that a key's value may have: `str` for words, too; none for an unknown
    key.
    """
    section: Any = Config
    *parents, last = key.split(".")
    for parent in parents:
        field = _fields(section).get(parent)
        section = field.annotation if field else None
    fields = _fields(section)
    return types_in(fields[last].annotation) if last in fields else set()


def _fields(section: Any) -> dict[str, FieldInfo]:
    """Return the fields of a section; none for anything else."""
    is_section = isinstance(section, type) and issubclass(section, Section)
    return fields_of(section) if is_section else {}
