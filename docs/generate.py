"""Write the parts of pages that follow from the code: `python docs/generate.py`.

A page holds them between two comments, `begin generated` and `end generated`; the rest is written
by hand. A test compares every page with what this module makes of the code (tests/unit/docs).
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from fedgmr_hpc.cli.command_line import GROUPS, build_parser
from fedgmr_hpc.cli.parser import Parser
from fedgmr_hpc.config.identity import marks
from fedgmr_hpc.config.methods import AXES, CHOICES, COMPARED, Method, load_method, method_names
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.admission import Window
from fedgmr_hpc.fl.aggregation.rule import BufferEntry, Merge, Part
from fedgmr_hpc.fl.restoration.schedule import Refresh
from fedgmr_hpc.fl.selection import Draw
from fedgmr_hpc.storage.schema import TABLES, RankRow, columns_of, meaning_of, unit_of
from fedgmr_hpc.training.objectives.contract import LocalSteps

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- begin generated: `python docs/generate.py` -->", "<!-- end generated -->"
HIDDEN_ACTIONS = (argparse._HelpAction, argparse._VersionAction, argparse._SubParsersAction)
ALIASES = {
    "AbstractSet": "Set",
    "Floats": "NDArray[float32]",
    "Doubles": "NDArray[float64]",
    "Ints": "NDArray[integer]",
    "Counts": "NDArray[integer]",
    "np.bool_": "bool",
    "np.random.Generator": "Generator",
    "Vectors": "Mapping[str, Tensor]",
}
Schema = Mapping[str, Any]

TABLE_NOTES = {
    "merges": "One row a merge, that is, a model version.",
    "evaluations": "One row an evaluation of the server's model, at each refresh.",
    "updates": "One row an update of a client, in the order of arrival.",
    "events": "What the coordinator saw, in order; with the configuration, a replay needs no more.",
    "transfers": "One row a real transfer. Wall clock only.",
    "checkpoints": "One row a checkpoint that was written or read.",
    "looks": "With `eval.every_s`: scores at equal times, of the newest version at each.",
    "submodels": "With `eval.submodels`: test scores of versions cut to the clients' densities.",
    "ranks": "What each rank did in the whole run, and on what; written at the end.",
}


def render(name: str) -> str:
    """A page with its generated part made anew."""
    text = (DOCS / name).read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/{name} must contain {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n" + "\n".join(PARTS[name]()).strip() + f"\n\n{END}{after}"


def methods() -> Iterator[str]:
    """The rows of the method table: their choices, and how each differs from its origin."""
    rows = [load_method(name) for name in method_names()]
    yield f"| row | {' | '.join(AXES)} |"
    yield "|---" * (len(AXES) + 1) + "|"
    for row in rows:
        cells = (_choices(axis, row.axes.get(axis)) for axis in AXES)
        yield f"| [`{row.name}`](#{row.name}) | {' | '.join(cells)} |"
    for row in rows:
        yield from _method(row)


def _choices(axis: str, values: Any) -> str:
    """An axis in a cell: its choice first, then what else the row sets."""
    if values is None:
        return "plain SGD"
    if not isinstance(values, Mapping):
        return str(values)
    first = CHOICES.get(axis, "")
    if axis == "restoration" and values[first] == "none":
        return "none"
    others = [_word(key, value) for key, value in values.items() if key != first]
    chosen = [f"**{values[first]}**"] if first else []
    return ", ".join(chosen + [word for word in others if word])


def _word(key: str, value: Any) -> str:
    """A choice besides an axis's first in a word; none for what is off or has no effect."""
    if value in (False, None, "constant"):
        return ""
    return key if value is True else value if isinstance(value, str) else f"{key} {_value(value)}"


def _method(method: Method) -> Iterator[str]:
    yield from ("", f"## {method.name}", "", method.about)
    source = [f"Source: {method.source}."] if method.source else []
    base = [f"Derived from [`{each}`](#{each})." for each in method.made_of[1:2]]
    if facts := " ".join(source + base):
        yield from ("", facts)
    for other, what in COMPARED.items():
        if items := method.differs.get(other):
            yield from ("", f"Differs from {what}:", "", *(f"* {item}" for item in items))


def configuration() -> Iterator[str]:
    """Every key: type, default, kind and meaning, from the fields of the configuration."""
    schema = Config.model_json_schema()
    sections = {name: field for name, field in schema["properties"].items() if "$ref" in field}
    single = {name: f for name, f in schema["properties"].items() if name not in sections}
    yield from ("## Top level", "", *_keys("", single, schema))
    for name, reference in sections.items():
        section = _resolve(reference, schema)
        yield from ("", f"## {name}", "", _linked(section.get("description", "")), "")
        yield from _keys(f"{name}.", section["properties"], schema)
    yield from ("", "### An entry of faults", "")
    yield from _keys("", schema["$defs"]["FaultConfig"]["properties"], schema, has_kinds=False)


def _keys(prefix: str, keys: Schema, schema: Schema, has_kinds: bool = True) -> Iterator[str]:
    """A table of the keys of a section."""
    yield "| key | type | default |" + " kind |" * has_kinds + " meaning |"
    yield "|---" * (4 + has_kinds) + "|"
    yield from _key_rows(prefix, keys, schema, has_kinds)


def _key_rows(prefix: str, keys: Schema, schema: Schema, has_kinds: bool) -> Iterator[str]:
    """Rows of keys, those of a section within the section in its place."""
    for name, field in keys.items():
        inner = _resolve(field, schema).get("properties")
        if inner:
            yield from _key_rows(f"{prefix}{name}.", inner, schema, has_kinds)
            continue
        default = f"`{_value(field['default'])}`" if "default" in field else "required"
        kind = f" {marks()[prefix + name]} |" if has_kinds else ""
        meaning = _linked(field.get("description", ""))
        yield f"| `{prefix}{name}` | {_type(field, schema)} | {default} |{kind} {meaning} |"


def _resolve(field: Schema, schema: Schema) -> Schema:
    found: Schema = field
    while "$ref" in found:
        found = schema["$defs"][found["$ref"].rpartition("/")[2]]
    return found


def _type(field: Schema, schema: Schema) -> str:
    """The type of a key in words, with the values that it may have."""
    field = _resolve(field, schema)
    if "anyOf" in field:
        return " or ".join(_type(each, schema) for each in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{word}`" for word in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'], schema)}"
    names = {"string": "text", "boolean": "`true`, `false`", "object": "mapping"}
    kind = str(field.get("type"))
    return names.get(kind, kind) + _bounds(field)


VAST = 1e9  # a bound as great only keeps sums finite


def _bounds(field: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    known = {key: field[key] for key in signs if abs(field.get(key, VAST)) < VAST}
    found = [f"{signs[key]} {value:g}" for key, value in known.items()]
    return f" {', '.join(found)}" if found else ""


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def result_tables() -> Iterator[str]:
    """The columns of every table of a result file."""
    for table, row_type in {**TABLES, "ranks": RankRow}.items():
        yield from (f"### /{table}", "", TABLE_NOTES[table], "")
        yield from ("| column | type | shape | unit | meaning |", "|---|---|---|---|---|")
        yield from (_column(table, *column) for column in columns_of(row_type))
        yield ""


def _column(table: str, name: str, dtype: Any, is_per_client: bool) -> str:
    kind = "text" if dtype.kind in "SO" else str(dtype)
    shape = ("R" if table == "ranks" else "N") + ", C" * is_per_client
    unit, meaning = unit_of(f"{table}/{name}"), meaning_of(f"{table}/{name}")
    return f"| `{name}` | {kind} | {shape} | {unit} | {_linked(meaning)} |"


def command_line() -> Iterator[str]:
    """Every verb: what it does, its words and options, and examples, from its parser."""
    verbs = build_parser().verbs()
    groups = {group: [verbs[name] for name in names] for group, names in GROUPS.items()}
    yield from ("| | verbs |", "|---|---|")
    for group, parsers in groups.items():
        yield f"| {group} | {', '.join(map(_verb_link, parsers))} |"
    for parser in verbs.values():
        yield from _verb(parser, "##")
        for action in parser.verbs().values():
            yield from _verb(action, "###")


def _verb_link(parser: Parser) -> str:
    name = parser.prog.rpartition(" ")[2]
    return f"[`{name}`](#{name})"


def _verb(parser: Parser, heading: str) -> Iterator[str]:
    name = parser.prog.partition("fedgmr_hpc ")[2]
    shown = [each for each in parser._actions if each.help != argparse.SUPPRESS]
    own = [each for each in shown if not isinstance(each, HIDDEN_ACTIONS)]
    yield from ("", f"{heading} {name}", "", "```text", (parser.description or "").strip(), "```")
    if own:
        yield from ("", "| word or option | meaning |", "|---|---|")
        yield from (f"| {_words(each)} | {_about(each)} |" for each in own)
    if parser.epilog:
        yield from ("", "```text", (parser.epilog % {"prog": parser.prog}).strip(), "```")


def _words(action: argparse.Action) -> str:
    """How an argument is typed: `--out DIR`, `FILE ...`."""
    value = action.metavar or "" if action.nargs != 0 else ""
    many = " ..." if action.nargs in ("*", "+") else ""
    typed = [f"{option} {value}".strip() for option in action.option_strings] or [str(value)]
    return ", ".join(f"`{word}{many}`".replace("|", "\\|") for word in typed)


def _about(action: argparse.Action) -> str:
    needed = " (required)" if action.option_strings and action.required else ""
    return _linked((action.help or "") % vars(action)) + needed


def _linked(text: str) -> str:
    """Text as a table's cell: on one line, pages of docs/ as links."""
    line = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"docs/([\w-]+)\.md(#[\w-]+)?", r"[\1](\1.md\2)", line)


SEEN: Mapping[str, type] = {
    "part": Part,
    "merge": Merge,
    "one of merge.entries": BufferEntry,
    "refresh": Refresh,
    "window": Window,
    "draw": Draw,
    "steps": LocalSteps,
}


def hooks() -> Iterator[str]:
    """What the methods of plug-ins are given: attributes and methods, from their docstrings."""
    for name, seen in SEEN.items():
        about = inspect.cleandoc(seen.__doc__ or "").partition("\nAttributes:")[0]
        yield from (f"### {name}", "", _plain(about), "")
        yield from ("| name | type | shape | meaning |", "|---|---|---|---|")
        yield from (_row(*each) for each in (*_attributes(seen), *_methods(seen)))
        yield ""


def _attributes(seen: type) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and meaning of each field."""
    found = inspect.cleandoc(seen.__doc__ or "").partition("\nAttributes:\n")[2]
    told = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", found, re.MULTILINE))
    for each in fields(seen):  # type: ignore[arg-type]
        yield each.name, str(each.type), told[each.name]


def _methods(seen: type) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and meaning of each property and method of its own."""
    for name, own in vars(seen).items():
        if name.startswith("_") or not (
            inspect.isfunction(own) or isinstance(own, cached_property)
        ):
            continue
        function = own.func if isinstance(own, cached_property) else own
        taken = ", ".join([*inspect.signature(function).parameters][1:])
        typed = f"{name}({taken})" if function is own else name
        about = inspect.getdoc(function) or ""
        yield typed, function.__annotations__["return"], about.partition("\n\n")[0]


def _row(name: str, kind: str, about: str) -> str:
    text = _plain(about)
    shape = re.match(r"\[[\w +,]+\]", text)
    for alias, meant in ALIASES.items():
        kind = re.sub(rf"\b{alias}\b", meant, kind)
    meaning = text.removeprefix(shape.group()).strip() if shape else text
    kind = kind.replace("|", "or")
    return f"| `{name}` | `{kind}` | {shape.group()[1:-1] if shape else ''} | {_linked(meaning)} |"


def _plain(text: str) -> str:
    return " ".join(text.split())


PARTS: dict[str, Callable[[], Iterable[str]]] = {
    "methods.md": methods,
    "configuration.md": configuration,
    "results-format.md": result_tables,
    "command-line.md": command_line,
    "extending.md": hooks,
}


def main() -> int:
    """Write every page that has changed."""
    for name in PARTS:
        if (page := render(name)) != (DOCS / name).read_text():
            (DOCS / name).write_text(page)
            print(f"docs/{name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
