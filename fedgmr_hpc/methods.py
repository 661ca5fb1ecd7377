"""The method table: a method is a row of choices on five axes (DESIGN idea 1).

A row is a file of configs/methods. It may name a `base` row and then says only what differs. Files
of configs/wrappers are laid over any row: `heterofl+aux+gmr` is the row `heterofl` under `aux`,
then under `gmr`. So a new method is a new file, and at most one new rule.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

AXES = ("submodel", "restoration", "aggregation", "admission", "transmission")
FACTS = ("about", "source", "section", "differs", "base")
WRAPPER_SIGN = "+"


@dataclass(frozen=True)
class Method:
    """A row with its wrappers applied.

    Attributes:
        axes: nested values of the five axes.
        differs: what is done otherwise than in the `paper` of the method or in the `release` of
            FedGMR, with the items of spec section 11.
    """

    name: str
    about: str
    source: str
    section: str
    axes: dict[str, Any]
    differs: dict[str, list[str]] = field(default_factory=dict)


def configs_dir() -> Path:
    """The folder of the tables: in an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def method_names() -> list[str]:
    """Every row of the method table."""
    return _names("methods")


def wrapper_names() -> list[str]:
    """What can be laid over a row."""
    return _names("wrappers")


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (configs_dir() / folder).glob("*.yaml"))


def load_method(name: str) -> Method:
    """A row by name, with wrappers behind plus signs.

    Raises:
        ValueError: there is no such row or wrapper, or its file is not one.
    """
    row, *wrappers = str(name).split(WRAPPER_SIGN)
    if row not in method_names():
        raise ValueError(f"method: got {name!r}, allowed: {', '.join(method_names())}")
    found = _read_row(row)
    for wrapper in wrappers:
        if wrapper not in wrapper_names():
            allowed = ", ".join(f"{WRAPPER_SIGN}{each}" for each in wrapper_names())
            raise ValueError(f"method: got {name!r}, allowed behind a row: {allowed}")
        found = _laid_over(found, _read(f"wrappers/{wrapper}"))
    axes = {axis: found[axis] for axis in AXES if axis in found}
    about, section = " ".join(found["about"]), "; ".join(dict.fromkeys(found["section"]))
    return Method(name, about, found.get("source", ""), section, axes, found.get("differs", {}))


def _read_row(name: str) -> dict[str, Any]:
    own = _read(f"methods/{name}")
    if "base" not in own:
        return own
    base = _read_row(own["base"])
    own_words = {"about": own["about"], "differs": own.get("differs", base.get("differs", {}))}
    return merged(base, own) | own_words


def _laid_over(row: dict[str, Any], wrapper: dict[str, Any]) -> dict[str, Any]:
    together = {key: row[key] + wrapper[key] for key in ("about", "section")}
    return merged(row, wrapper) | together


def _read(path: str) -> dict[str, Any]:
    values = read_yaml(configs_dir() / f"{path}.yaml")
    if misplaced := sorted(set(values) - {*AXES, *FACTS}):
        allowed = ", ".join((*FACTS, *AXES))
        raise ValueError(f"configs/{path}.yaml: got {', '.join(misplaced)}, allowed: {allowed}")
    return values | {key: [str(values.get(key, ""))] for key in ("about", "section")}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a {type(values).__name__}, need a mapping of keys")
    return values


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, those of `over` first."""
    together = dict(base)
    for key, value in over.items():
        old = together.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        together[key] = merged(old, value) if nested else value  # type: ignore[arg-type]
    return together


def render_methods() -> str:
    """The table: a row's five axes, its source and its section of the specification."""
    heads = ("method", *AXES, "source", "section")
    rows = [_cells(load_method(name)) for name in method_names()]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (heads, *rows)
    ]
    wrappers = [
        f"  {WRAPPER_SIGN}{name}: {_read(f'wrappers/{name}')['about'][0]}"
        for name in wrapper_names()
    ]
    rule = "-" * max(map(len, lines))
    closing = ["", "laid over any row, as in heterofl+aux+gmr:", *wrappers]
    return "\n".join([lines[0], rule, *lines[1:], *closing])


def _cells(method: Method) -> tuple[str, ...]:
    return (
        method.name,
        *(_describe(axis, method.axes[axis]) for axis in AXES),
        method.source or "-",
        method.section,
    )


def _describe(axis: str, values: Any) -> str:
    """An axis in a few words: its first choice, then what else the row sets."""
    if not isinstance(values, Mapping):
        return str(values)
    first, *others = values.items()
    kept = [_short(key, value) for key, value in others if value not in (False, None, "constant")]
    if axis == "restoration" and first[1] == "none":
        kept = []
    return " ".join([str(first[1]), *kept])


def _short(key: str, value: Any) -> str:
    return key if value is True else str(value) if isinstance(value, str) else f"{key}={value}"


def explain_method(name: str) -> str:
    """One method: what it is, its row, and what differs from its paper and from the release."""
    method = load_method(name)
    lines = [f"{method.name}: {method.about}", f"source: {method.source or '-'}"]
    lines += [f"specification: section {method.section}", ""]
    lines += yaml.safe_dump(method.axes, sort_keys=False, default_flow_style=None).splitlines()
    for other, what in (("paper", "its paper"), ("release", "the release of FedGMR")):
        lines += ["", f"differs from {what}:"]
        lines += [
            textwrap.fill(item, 96, initial_indent="  - ", subsequent_indent="    ")
            for item in method.differs.get(other, [])
        ] or ["  nothing known"]
    return "\n".join(lines)
