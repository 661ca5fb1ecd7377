"""The one validator behind runs, method rows, sites and studies: one line a mistake.

The lines are those of messages.py, each with its dotted key. A validator of a field raises
`ValueError` with what the value must be ("a list of paths"); the line is made here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ValidationError

from fedgmr_hpc.config.choices.open_section import OpenSection, fields_of
from fedgmr_hpc.config.choices.registry import REGISTRIES
from fedgmr_hpc.config.messages import (
    MISSING_PLUGIN,
    must_be,
    shown,
    unknown_choice,
    unknown_key,
)

Model = TypeVar("Model", bound=BaseModel)
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_QUOTE_OR_CALL = "'()_"  # around the field, or the function that reads it
_UNION_MEMBER = re.compile(r"(str|int|list|dict)(\[.*)?$|\[key\]$")
_TYPES = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping of keys",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "missing": "given",
    "model_type": "a mapping of keys",
    "string_too_short": "non-empty text",
    "string_type": "text",
    "too_short": "a list of at least one value",
    "tuple_type": "a list",
    "list_type": "a list",
}


def validate(model: type[Model], values: Mapping[str, Any], file: str | Path = "") -> Model:
    """Return `values` as a model.

    Args:
        file: what they were read from; every line begins with it.

    Raises:
        ValueError: with one line for every mistake.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(prefixed(file, mistakes(model, error))) from None


def prefixed(file: str | Path, lines: Sequence[str]) -> str:
    """Return lines as one text, the file's name before each."""
    return "\n".join(f"{file}: {line}" if str(file) else line for line in lines)


def mistakes(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Return one line for every mistake that pydantic found in the values of a model."""
    return list(dict.fromkeys(_line(model, item) for item in error.errors()))


def text_like(pattern: str, requirement: str) -> BeforeValidator:
    """Return a validator of text that fits a pattern; `requirement` says what it must be."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(requirement)
        return value

    return BeforeValidator(check)


def _line(model: type[BaseModel], error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    key, _ = _follow(model, error["loc"])
    if kind == "extra_forbidden":
        _, around = _follow(model, error["loc"][:-1])
        siblings = dict.fromkeys(name for each in around for name in fields_of(each))
        line = unknown_key(key, siblings, dotted_keys(model))
        return _with_hint(line, any(issubclass(each, OpenSection) for each in around))
    if kind.startswith("union_tag"):
        key = f"{key}.{context['discriminator'].strip(_QUOTE_OR_CALL)}"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or context["expected_tags"]
        got = context.get("tag", error["input"])
        line = unknown_choice(key, got, re.findall(r"'([^']*)'", expected))
        return _with_hint(line, any(key == registry.key for registry in REGISTRIES))
    if kind in ("missing", "union_tag_not_found"):
        return must_be(key, "given")
    return must_be(key, _requirement(error), error["input"])


def _with_hint(line: str, is_open: bool) -> str:
    """Ask for a plug-in, where one could bring what is not known and nothing like it is."""
    return line if not is_open or line.endswith("?") else line + MISSING_PLUGIN


def _requirement(error: Any) -> str:
    """Return what a wrong value must be."""
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context["error"])
    limits = [
        f"{word} {shown(context[bound])}" for bound, word in _BOUNDS.items() if bound in context
    ]
    default = str(error["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    return " and ".join(limits) or _TYPES.get(error["type"], default)


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a model, those of its sections in their place."""
    for name, field in fields_of(model).items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from dotted_keys(section, f"{prefix}{name}.")
        else:
            yield prefix + name


def _follow(model: type[BaseModel], path: Sequence[str | int]) -> tuple[str, list[type[BaseModel]]]:
    """Return the dotted key of an error's path, which names the members of unions too, and its
    models.
    """
    found, key = [model], []
    for part in path:
        fields = [fields_of(each)[part] for each in found if part in fields_of(each)]
        if fields:
            found = [inner for field in fields for inner in _models_in(field.annotation)]
        elif tagged := [each for each in found if _has_tag(each, part)]:
            found = tagged
            continue
        elif _UNION_MEMBER.match(str(part)):
            continue
        key.append(str(part))
    return ".".join(key), found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Return every model that an annotation allows: itself, in a list, or in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _has_tag(model: type[BaseModel], tag: str | int) -> bool:
    """Return whether a model is the one of a union that has this tag, the value of one of its
    fields.
    """
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())
