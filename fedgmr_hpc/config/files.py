"""Make a configuration of defaults, a method's row, YAML files and overrides, in this order.

Everything wrong is reported at once, in one line for each mistake (messages.py). `describe_keys`
prints the reference of the keys.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedgmr_hpc.config.axes import Section
from fedgmr_hpc.config.messages import did_you_mean, must, must_be, unknown_name
from fedgmr_hpc.config.methods import load_method, merged
from fedgmr_hpc.config.overrides import override
from fedgmr_hpc.config.rules import broken_rules
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.validation import dotted_keys, mistakes
from fedgmr_hpc.config.yaml_file import configs_dir, dump, read_mapping

Source = str | Path | Mapping[str, Any]


def load_config(
    source: Source | Sequence[Source] | None = None,
    overrides: Sequence[str] = (),
    *more: Sequence[str],
) -> Config:
    """Load and check the configuration of a run.

    Args:
        source: A YAML file, the name of one in configs/runs, or its content; or several of them,
            each laid over those before it. None for `digits`.
        overrides: `dotted.key=value` words (overrides.py), at most one for a key.
        more: Further words, which replace those before.

    Raises:
        ValueError: With one line for every wrong key or value.

    Example:
        >>> load_config("digits", ["method=heterofl", "run.max_rounds=100"]).run.max_rounds
        100
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
    """Check nested `values` and return them as a configuration.

    The row of their method, or else the defaults, fill in what they leave out.

    Raises:
        ValueError: With one line for every wrong key or value.

    Example:
        >>> make_config({"method": "fedavg", "train": {"steps": 3}}).admission.kind
        'barrier'
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
    """Remove the deepest key of a path; what is inside a list goes with the list."""
    first, rest = path[0], path[1:]
    inner = values.get(str(first))
    if rest and isinstance(inner, dict):
        _drop(inner, rest)
    else:
        values.pop(str(first), None)


def render_config(config: Config) -> str:
    """Return a configuration as YAML from which `load_config` makes an equal one."""
    return dump(config.model_dump(mode="json"))


def describe_keys(text: str = "") -> str:
    """Return the reference of keys with default, values and meaning.

    Args:
        text: A key or a section, for all that is in it; else what to look for in names and, as
            whole words, in meanings. Empty for every key.

    Raises:
        ValueError: Nothing is found.
    """
    fields = list(_walk_fields(Config, ""))
    found = [field for field in fields if not text or f"{field[0]}.".startswith(f"{text}.")]
    if not found:
        word = re.compile(rf"\b{re.escape(text)}\b", re.IGNORECASE)
        named = [field for field in fields if text.lower() in field[0]]
        found = named + [field for field in fields if field not in named and word.search(field[3])]
    if not found:
        near = did_you_mean(text, dotted_keys(Config))
        raise ValueError(f"no key has {text} in its name or meaning{near}")
    return "\n".join(line for field in found for line in _describe_field(*field))


def _describe_field(key: str, default: Any, allowed: str, about: str) -> Iterator[str]:
    yield f"{key} = {dump(default, flow=True).split(chr(10))[0]}"
    yield f"    {about}" + (f" [{allowed}]" if allowed else "")


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
    """Return the names of the runs in configs/runs."""
    return sorted(path.stem for path in (configs_dir() / "runs").glob("*.yaml"))


def _find_run(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in run_names():
        return configs_dir() / "runs" / f"{source}.yaml"
    if path.name != str(source) or path.suffix in (".yaml", ".yml"):
        raise ValueError(must_be("--config", "a file that exists", source))
    if str(source) in dotted_keys(Config):
        raise ValueError(must(str(source), f"have a value: {source}=VALUE"))
    raise ValueError(unknown_name("run", source, run_names(), or_else="a file"))
