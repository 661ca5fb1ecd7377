"""What makes two runs the same, and what a run's method is called.

Every key of the configuration has one mark (axes.py); here the marks are read:

    run      what is trained, and in which order      look     what is looked at beside
    limit    when the run ends                        machine  where and how it is carried out

A study's cell is known by the keys of run, look and limit; a run goes on from a checkpoint of the
same run and look; a replay follows events of the same run. Only what differs from the default
counts, so that a new key changes no old identity, and only what has an effect beside the other
values (rules.py). Values are those of JSON, as files keep them.

A method is called by its row, and in brackets by what differs from it: with the label
`heterofl[aggregation.rule=average]` no table or legend shows HeteroFL with another merge rule as
the row. Only the keys that make up a row count: its axes, and of local training what rows choose.
The scales of a task, which run files set alike for all methods, do not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic_core import to_jsonable_python

from fedgmr_hpc.config.axes import LocalConfig
from fedgmr_hpc.config.choices.open_section import OpenSection, fields_of, with_option_defaults
from fedgmr_hpc.config.choices.section import Belongs, Mark, Section
from fedgmr_hpc.config.methods import AXES, Method, load_method
from fedgmr_hpc.config.rules import is_used
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.validation import validate

Keys = dict[str, Any]  # dotted -> value
CELL: tuple[Mark, ...] = ("run", "look", "limit")
RESUMED: tuple[Mark, ...] = ("run", "look")
REPLAYED: tuple[Mark, ...] = ("run",)
MAX_SLUG = 80  # characters of a file's name
# What a run file sets for its task; part of a method only where the row itself says it.
OF_THE_TASK = frozenset({"restoration.patience", "restoration.total_time_s"})


def marks() -> dict[str, Mark]:
    """Return the mark of every key, the options of plug-ins included.

    Raises:
        TypeError: A key has none, or several; names it.
    """
    return _marks() | dict.fromkeys(_options(), "run")


@cache
def _marks() -> dict[str, Mark]:
    return dict(_marked(Config, ""))


def _options() -> Keys:
    """Return the default of every option that a plug-in has added."""
    return {
        f"{name}.{option}": to_jsonable_python(field.get_default(call_default_factory=True))
        for name, section in Config.model_fields.items()
        if isinstance(section.annotation, type) and issubclass(section.annotation, OpenSection)
        for option, field in section.annotation.option_fields().items()
        if not field.is_required()
    }


def _marked(section: type[Section], prefix: str) -> Iterator[tuple[str, Mark]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _marked(field.annotation, f"{prefix}{name}.")
            continue
        found = [each.to for each in field.metadata if isinstance(each, Belongs)]
        if len(found) != 1:
            raise TypeError(
                f"{section.__name__}.{name} must have one mark around its type, Run, Look, Limit "
                f"or Machine of axes.py (got {len(found)})"
            )
        yield prefix + name, found[0]


def _defaults() -> Keys:
    return _own_defaults() | _options()


@cache
def _own_defaults() -> Keys:
    return flat(Config().model_dump(mode="json"))


def flat(values: Mapping[str, Any], prefix: str = "") -> Keys:
    """Return nested values by dotted key; that of a key can be a mapping."""
    return dict(_walk(values, prefix))


def _walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in _marks():
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def identity(
    config: Config | Mapping[str, Any],
    of: tuple[Mark, ...] = CELL,
    *,
    counts_unused: bool = False,
) -> Keys:
    """Return the marked keys that have an effect and differ from their defaults, in order.

    Args:
        config: A configuration, or the nested values that a file keeps of one; keys that it lacks
            are younger than the file and have their defaults.
        of: The marks that count.
        counts_unused: Whether keys without effect beside the other values count, too, as they did
            in the logs of older runs.
    """
    found, defaults, mark_of = _with_defaults(config), _defaults(), marks()
    return {
        key: found[key]
        for key in sorted(found)
        if mark_of.get(key, "run") in of
        and found[key] != defaults.get(key)
        and (counts_unused or is_used(key, found))
    }


def _with_defaults(config: Config | Mapping[str, Any]) -> Keys:
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    return _defaults() | flat(values)


def differences(
    then: Config | Mapping[str, Any], now: Config | Mapping[str, Any], of: tuple[Mark, ...]
) -> dict[str, tuple[Any, Any]]:
    """Return the marked keys in which two configurations differ, with their values then and now.

    A key that has an effect in one of them alone counts as well.
    """
    counted = identity(then, of).keys() | identity(now, of).keys()
    left, right = _with_defaults(then), _with_defaults(now)
    return {
        key: (left.get(key), right.get(key))
        for key in sorted(counted)
        if left.get(key) != right.get(key)
    }


def method_label(config: Config | Mapping[str, Any], but: Collection[str] = ()) -> str:
    """Return what the method of a run is called.

    Args:
        config: A configuration, or its nested values as YAML has them.
        but: Dotted keys that are shown elsewhere, such as those that a study varies.

    Example:
        >>> method_label({"method": "fedavg", "admission": {"kind": "each"}})
        'fedavg[admission.kind=each]'
    """
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    name = str(values.get("method", "-"))
    try:
        row, own = _row(name, json.dumps(values.get("methods", {}), sort_keys=True))
    except ValueError:  # a row of another checkout
        return name
    found = flat(values)
    unsaid = [k for k in found if k not in (*_marks(), *row) and k.partition(".")[0] in AXES]
    row = row | {key: _options().get(key) for key in unsaid}  # of plug-ins, here or not
    other = [
        f"{key}={_text(found[key])}"
        for key, value in row.items()
        if found.get(key, value) != value
        and key not in but
        and (key in own or key not in OF_THE_TASK)
        and is_used(key, found)
    ]
    return f"{name}[{','.join(other)}]" if other else name


def method_title(
    config: Config | Mapping[str, Any],
    but: Collection[str] = (),
    titles: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return what tables and figures call the method of a run, `HeteroFL + Aux`.

    Args:
        config, but: as of `method_label`.
        titles: of methods, in place of those of their rows.

    Example:
        >>> method_title({"method": "fedavg", "admission": {"kind": "each"}})
        'FedAvg [admission.kind=each]'
    """
    name, bracket, other = method_label(config, but).partition("[")
    own_rows = json.dumps(dict(config).get("methods", {}), sort_keys=True)
    try:
        title = titles.get(name) or _method(name, own_rows).title
    except ValueError:  # a row of another checkout
        title = name
    return f"{title} {bracket}{other}".rstrip()


def method_slug(config: Config) -> str:
    """Return the label for the name of a file, without signs that have a meaning in a shell."""
    return re.sub(r"[^A-Za-z0-9.+_]+", "-", method_label(config)).strip("-")[:MAX_SLUG]


@cache
def _method(name: str, own_rows: str) -> Method:
    """Return a method, with rows of the configuration's own as JSON."""
    return load_method(name, json.loads(own_rows))


@cache
def _row(name: str, own_rows: str) -> tuple[Keys, frozenset[str]]:
    """Return the method keys of a row, defaults included, and those that it says itself.

    Args:
        own_rows: rows of the configuration's own, as JSON.

    Raises:
        ValueError: there is no such row, or it needs a plug-in that is not there.
    """
    axes = _method(name, own_rows).axes
    values = with_option_defaults(Config, axes)
    whole = flat(validate(Config, values).model_dump(mode="json"))
    row = {key: value for key, value in whole.items() if _is_of_a_row(key)}
    return row, frozenset(flat(axes))


def _is_of_a_row(key: str) -> bool:
    """Return whether it makes up a method: of local training only what rows choose does."""
    axis, _, name = key.partition(".")
    return axis in AXES and (axis != "train" or name in fields_of(LocalConfig))


def _text(value: Any) -> str:
    """Return a value as it is typed in an override."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
