"""From files and words to a configuration: defaults, a method's row, YAML files, overrides.

Everything wrong is reported at once, each line with its dotted key, the value found and the values
allowed. `describe_keys` prints the reference.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedgmr_hpc.config.axes import Section
from fedgmr_hpc.config.install import configs_dir
from fedgmr_hpc.config.messages import must_be, unknown_key, unknown_name
from fedgmr_hpc.config.methods import load_method, merged
from fedgmr_hpc.config.overrides import override
from fedgmr_hpc.config.rules import broken_rules
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.validation import dotted_keys, mistakes
from fedgmr_hpc.config.yaml_file import dump, read_mapping

Source = str | Path | Mapping[str, Any]


def load_config(
    source: Source | Sequence[Source] | None = None,
    overrides: Sequence[str] = (),
    *more: Sequence[str],
) -> Config:
    """Resolves a run.

    Args:
        source: a YAML file, the name of one in configs/runs, or its content; or several, each laid
            over those before it. None for `digits`.
        overrides: `dotted.key=value` strings as overrides.py reads them, none for a key of another.
        more: overrides laid over those before.

    Raises:
        ValueError: with one line for every wrong key or value.
    """
    values: dict[str, Any] = {}
    given = [source] if isinstance(source, (str, Path, Mapping)) else source
    for each in given or ["digits"]:
        own = each if isinstance(each, Mapping) else read_mapping(_find_run(each))
        values = merged(values, copy.deepcopy(dict(own)))
    for words in (overrides, *more):
        override(values, words)
    return make_config(values)


def make_config(values: Mapping[str, Any]) -> Config:
    """The configuration of nested `values`; the method's row fills what they leave open.

    Raises:
        ValueError: with one line for every wrong key or value.
    """
    wrong: list[str] = []
    own = copy.deepcopy(dict(values))
    default = Config.model_fields["method"].default
    try:
        method = load_method(own.get("method", default))
    except ValueError as error:
        wrong.append(str(error))
        own.pop("method", None)
        method = load_method(default)
    own = merged(method.axes, own)
    config = None
    while config is None:
        try:
            config = Config.model_validate(own)
        except ValidationError as error:
            wrong += mistakes(Config, error)
            for item in error.errors():
                _drop(own, item["loc"])  # the rest may hold mistakes of its own
    wrong += broken_rules(config)
    if wrong:
        raise ValueError("\n".join(sorted(wrong)))
    return config


def _drop(values: dict[str, Any], path: Sequence[str | int]) -> None:
    """Removes the deepest key of a path; what is inside a list goes with the list."""
    first, rest = path[0], path[1:]
    inner = values.get(str(first))
    if rest and isinstance(inner, dict):
        _drop(inner, rest)
    else:
        values.pop(str(first), None)


def render_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return dump(config.model_dump(mode="json"))


def describe_keys(prefix: str = "") -> str:
    """The reference: every key, or those below `prefix`, with default, values and meaning.

    Raises:
        ValueError: no key has that prefix.
    """
    lines = []
    for key, default, allowed, about in _walk_fields(Config, ""):
        if not f"{key}.".startswith(f"{prefix}." if prefix else ""):
            continue
        lines.append(f"{key} = {dump(default, flow=True).split(chr(10))[0]}")
        lines.append(f"    {about}" + (f" [{allowed}]" if allowed else ""))
    if not lines:
        raise ValueError(unknown_key(prefix, Config.model_fields, dotted_keys(Config)))
    return "\n".join(lines)


def _walk_fields(section: type[Section], prefix: str) -> Iterator[tuple[str, Any, str, str]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk_fields(field.annotation, f"{prefix}{name}.")
        else:
            values = getattr(field.annotation, "__args__", ())
            allowed = ", ".join(values) if all(isinstance(v, str) for v in values) else ""
            about = " ".join((field.description or "").split())
            yield prefix + name, field.default, allowed, about


def run_names() -> list[str]:
    """The runs of configs/runs."""
    return sorted(path.stem for path in (configs_dir() / "runs").glob("*.yaml"))


def _find_run(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in run_names():
        return configs_dir() / "runs" / f"{source}.yaml"
    if path.name != str(source) or path.suffix in (".yaml", ".yml"):
        raise ValueError(must_be("--config", "a file that exists", source))
    raise ValueError(unknown_name("run", source, run_names(), or_else="a file"))
