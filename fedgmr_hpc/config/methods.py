"""The method table: a method is a row of choices on six axes (docs/methods.md).

A row is a file of configs/methods that says what it is about and makes a choice on every axis but
`train`, where it says what it asks for besides plain SGD. It may name a `base` row and then says
only what differs, and its own `source`. Files of configs/wrappers are laid over any row:
`heterofl+aux+gmr` is the row `heterofl` under `aux`, then under `gmr`. So a new method is a new
file, and at most one new rule.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from fedgmr_hpc.config.axes import (
    AdmissionConfig,
    AggregationConfig,
    LocalConfig,
    RestorationConfig,
    SubmodelConfig,
    Transmission,
)
from fedgmr_hpc.config.choices.open_section import with_option_defaults
from fedgmr_hpc.config.choices.plugins import load_plugins, plugins_in
from fedgmr_hpc.config.choices.section import Section
from fedgmr_hpc.config.messages import did_you_mean, must_be, unknown_name
from fedgmr_hpc.config.rules import broken_rules
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.validation import prefixed, validate
from fedgmr_hpc.config.yaml_file import configs_dir, dump, read_mapping
from fedgmr_hpc.reporting.tables import as_text

CHOICES = {"submodel": "kind", "restoration": "trigger", "aggregation": "rule", "admission": "kind"}
AXES = (*CHOICES, "transmission", "train")  # a word; what a row may leave out
COMPARED = {  # what a row says it differs from
    "paper": "its paper",
    "code": "its authors' public code",
    "release": "the release of FedGMR",
}
WRAPPER_SIGN = "+"
TITLE_SIGN = " + "
_ROW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Read = TypeVar("Read")


class Differs(Section):
    """What a row does otherwise than its paper, its authors' code, or the release of FedGMR."""

    paper: list[str] = []
    code: list[str] = []
    release: list[str] = []


class RowFile(Section):
    """The content of a file of a row or a wrapper: facts, then the axes that it sets.

    A row that is named by its path may say its `plugins`, too, files from its folder.
    """

    title: str = ""
    about: Annotated[str, Field(min_length=1)]
    source: str = ""
    base: str = ""
    differs: Differs = Differs()
    submodel: SubmodelConfig = SubmodelConfig()
    restoration: RestorationConfig = RestorationConfig()
    aggregation: AggregationConfig = AggregationConfig()
    admission: AdmissionConfig = AdmissionConfig()
    transmission: Transmission = "increments"
    train: LocalConfig = LocalConfig()


@dataclass(frozen=True)
class Method:
    """A row with its wrappers applied.

    Attributes:
        title: what tables and figures call it: `HeteroFL + Aux`.
        axes: nested values of the six axes; `train` is missing where it is plain SGD.
        differs: what is done otherwise than in the `paper` of the method, in the public `code` of
            its authors, or in the `release` of FedGMR.
        own_rows: those of a configuration's own rows that it is made of, by name.
        made_of: its row and the rows that this is based on, by name.
    """

    name: str
    title: str
    about: str
    source: str
    axes: dict[str, Any]
    differs: dict[str, list[str]] = field(default_factory=dict)
    own_rows: dict[str, Any] = field(default_factory=dict)
    made_of: tuple[str, ...] = ()


def method_names() -> list[str]:
    """Return the names of all rows of the method table."""
    return _names("methods")


def wrapper_names() -> list[str]:
    """Return the names of all wrappers, which can be laid over a row."""
    return _names("wrappers")


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (configs_dir() / folder).glob("*.yaml"))


def is_row_file(method: str) -> bool:
    """Return whether a method is named by the path of its row's file."""
    return _split(method)[0].endswith((".yaml", ".yml"))


def _split(method: str) -> list[str]:
    """Return the row of a method and its wrappers; the path of a row's file may have plus signs."""
    if path := re.match(r"(.*?\.ya?ml)(?:\+(.*))?$", method):
        return [path.group(1), *(path.group(2).split(WRAPPER_SIGN) if path.group(2) else ())]
    return method.split(WRAPPER_SIGN)


def short_name(method: str) -> str:
    """Return what a method is called, its row by the name of its file.

    Example:
        >>> short_name("rows/mine.yaml+aux")
        'mine+aux'
    """
    row, *wrappers = _split(method)
    return WRAPPER_SIGN.join([Path(row).stem if is_row_file(row) else row, *wrappers])


def plugins_of(method: Any) -> list[str]:
    """Return the plug-ins that a row names in a file of its own; files as absolute paths.

    Raises:
        ValueError: they are no list of texts.
    """
    if not isinstance(method, str) or not is_row_file(method):
        return []
    path = Path(_split(method)[0]).expanduser()
    return plugins_in(read_mapping(path), path.parent) if path.is_file() else []


def row_file_from(folder: Path, method: str) -> str:
    """Return a method that a file in `folder` names, with the path from here of its row's file."""
    found = folder / Path(_split(method)[0]).expanduser()
    return str(folder / method) if found.is_file() else method


def load_method(name: str, own_rows: Mapping[str, Any] | None = None) -> Method:
    """Return a method by name: a row, and behind plus signs the wrappers laid over it.

    Args:
        name: of a row of the table, of an own one, or the path of a row's file.
        own_rows: rows of a configuration's own, by name, as `methods` has them.

    Raises:
        ValueError: There is no such row or wrapper, or its file lacks a choice, has a wrong key or
            value, or values that rule one another out; with one line for every mistake.

    Example:
        >>> load_method("heterofl+aux").axes["admission"]["kind"]
        'window'
    """
    row, *wrappers = _split(str(name))
    rows, files = dict(_checked_own(own_rows or {})), {}
    if is_row_file(row):
        path = Path(row).expanduser()
        row, rows = _take_file(path, rows)
        files = {row: str(path)}
    known = [*rows, *method_names()]
    if row not in known:
        raise ValueError(unknown_name("method", row, known, or_else="a file"))
    found = _read_row(row, rows, files)
    for wrapper in wrappers:
        if wrapper not in wrapper_names():
            raise ValueError(unknown_name("wrapper", wrapper, wrapper_names()))
        found = _laid_over(found, _read(f"wrappers/{wrapper}"))
    axes = {axis: found[axis] for axis in AXES if axis in found}
    about, source = " ".join(found["about"]), str(found.get("source", ""))
    used = {each: rows[each] for each in found["made_of"] if each in rows}
    whole = WRAPPER_SIGN.join([row, *wrappers])
    facts = (about, source, axes, found.get("differs", {}), used, tuple(found["made_of"]))
    return Method(whole, found["title"], *facts)


def _checked_own(rows: Any) -> Mapping[str, Any]:
    """Return a configuration's own rows.

    Raises:
        ValueError: they are no mapping from new names to mappings.
    """
    if not isinstance(rows, Mapping):
        raise ValueError(must_be("methods", "a mapping from names to rows", rows))
    for name, row in rows.items():
        if not isinstance(row, Mapping):
            raise ValueError(must_be(f"methods.{name}", "a mapping of axes", row))
        if not _ROW_NAME.fullmatch(name) or name in method_names():
            need = "a new name, of letters, digits and ._-"
            raise ValueError(must_be("a key of methods", need, name))
    return rows


def _take_file(path: Path, rows: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a file's row, and the own rows with it.

    Raises:
        ValueError: it cannot be read, or its name is taken.
    """
    if not _ROW_NAME.fullmatch(path.stem):
        need = "a file whose name has letters, digits and ._- only"
        raise ValueError(must_be("method", need, str(path)))
    load_plugins(plugins_of(str(path)))
    content = {key: value for key, value in read_mapping(path).items() if key != "plugins"}
    own = _checked_own({path.stem: content})
    if rows.get(path.stem, own[path.stem]) != own[path.stem]:
        raise ValueError(must_be("method", "a file whose name methods does not have", str(path)))
    return path.stem, {**rows, **own}


def _read_row(
    name: str, rows: Mapping[str, Any], files: Mapping[str, str], below: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a row with its base.

    Args:
        name: of the row.
        rows: those of a configuration's own, by name.
        files: which of them come from a file of their own.
        below: the rows that are based on this one.
    """
    if name in rows:
        file = files.get(name, f"methods.{name}")
        row = _check_row({"about": name, **rows[name]}, name, file)
    else:
        file, row = f"configs/methods/{name}.yaml", _read(f"methods/{name}")
    made_of = [name]
    if "base" in row:
        known = [*rows, *method_names()]
        allowed = [other for other in known if other not in (name, *below)]
        if row["base"] not in allowed:
            is_known = row["base"] in (name, *known)
            need = "another row, not based on this one" if is_known else "the name of a row"
            line = must_be("base", need, row["base"])
            raise ValueError(f"{file}: {line}{did_you_mean(row['base'], allowed)}")
        base = _read_row(row["base"], rows, files, (name, *below))
        made_of += base["made_of"]
        row = merged(base, row) | _own_words(base, row)
    missing = [f"{axis}.{key}" for axis, key in CHOICES.items() if key not in row.get(axis, {})]
    missing += ["transmission"] * ("transmission" not in row)
    if missing:
        _refuse(file, [must_be(", ".join(missing), "chosen, here or in a base")])
    _refuse(file, _broken_rules({axis: row[axis] for axis in AXES if axis in row}))
    return row | {"made_of": made_of}


def _own_words(base: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row says of itself; what its base differs in holds for both where they are of
    one source.
    """
    source, differs = row.get("source", ""), row.get("differs", {})
    if source and source == base.get("source"):
        differs = base.get("differs", {}) | differs
    return {key: row[key] for key in ("title", "about")} | {"source": source, "differs": differs}


def _broken_rules(axes: Mapping[str, Any]) -> list[str]:
    """Return the rules that the axes break among themselves, with as many clients as they ask
    for.
    """
    count = axes["admission"].get("count")
    clients = {} if count is None else {"clients": {"count": count}}
    return broken_rules(validate(Config, with_option_defaults(Config, {**axes, **clients})))


def _refuse(file: str, wrong: list[str]) -> None:
    if wrong:
        raise ValueError(prefixed(file, wrong))


def _laid_over(row: dict[str, Any], wrapper: dict[str, Any]) -> dict[str, Any]:
    title = TITLE_SIGN.join([row["title"], wrapper["title"]])
    return merged(row, wrapper) | {"about": row["about"] + wrapper["about"], "title": title}


def _read(path: str) -> dict[str, Any]:
    """Return what a file of a row or wrapper says, its values checked."""
    file = configs_dir() / f"{path}.yaml"
    return _check_row(read_mapping(file), file.stem, f"configs/{path}.yaml")


def _check_row(values: Mapping[str, Any], name: str, file: str) -> dict[str, Any]:
    """Return the content of a row, its values checked; without a title, its name is its title."""
    validate(RowFile, values, file)
    return {**values, "about": [values["about"]], "title": values.get("title") or name}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values, those of `over` before those of `base`."""
    together = dict(base)
    for key, value in over.items():
        old = together.get(key)
        nested = isinstance(old, Mapping) and isinstance(value, Mapping)
        together[key] = merged(old, value) if nested else value  # type: ignore[arg-type]
    return together


def render_methods() -> tuple[str, list[str]]:
    """Return the table of all rows, without numbers, and one line for every mistake in the files of
    rows and wrappers that it leaves out.
    """
    heads = ("method", *AXES)
    methods, wrong = _readable(load_method, method_names())
    rows = [_cells(method) for method in methods]
    wrappers, wrong_wrappers = _readable(_describe_wrapper, wrapper_names())
    closing = ["", "laid over any row, as in heterofl+aux+gmr:", *wrappers]
    text = "\n".join([as_text(heads, rows), *closing])
    return text, list(dict.fromkeys(wrong + wrong_wrappers))  # a base's mistakes come with each row


def _readable(read: Callable[[str], Read], names: Sequence[str]) -> tuple[list[Read], list[str]]:
    """Return what `read` makes of the names, and the lines of its errors."""
    found, wrong = [], []
    for name in names:
        try:
            found.append(read(name))
        except ValueError as error:
            wrong += str(error).splitlines()
    return found, wrong


def _describe_wrapper(name: str) -> str:
    return f"  {WRAPPER_SIGN}{name}: {_read(f'wrappers/{name}')['about'][0]}"


def _cells(method: Method) -> tuple[str, ...]:
    return (method.name, *(_describe(axis, method.axes.get(axis, {})) for axis in AXES))


def _describe(axis: str, values: Any) -> str:
    """Return an axis in a few words: its choice, then what else the row sets."""
    if not isinstance(values, Mapping):
        return str(values)
    first = CHOICES.get(axis, "")
    others = {key: value for key, value in values.items() if key != first}
    if axis == "restoration" and values[first] == "none":
        others = {}
    words = [key if value is True else value for key, value in others.items()]
    kept = [word for word in words if isinstance(word, str) and word != "constant"]
    return " ".join([values[first], *kept] if first else kept or ["sgd"])


def explain_method(name: str) -> str:
    """Explain a method: what it is, its row, and how it differs from its paper and other code."""
    method = load_method(name)
    lines = [f"{method.name}: {method.about}", f"title: {method.title}"]
    lines += [f"source: {method.source or '-'}"]
    lines += [f"derived from: {method.made_of[1]}"] if method.made_of[1:] else []
    lines += [""]
    lines += dump(method.axes).splitlines()
    for other, what in COMPARED.items():
        if other not in method.differs and (other == "code" or not method.source):
            continue  # it has none, or that of the release
        lines += ["", f"differs from {what}:"]
        lines += [
            textwrap.fill(item, 96, initial_indent="  - ", subsequent_indent="    ")
            for item in method.differs.get(other, [])
        ] or ["  nothing known"]
    return "\n".join(lines)
