"""Make a configuration of defaults, a method's row, YAML files and overrides, in this order.

Everything wrong is reported at once, in one line for each mistake (messages.py). `describe_keys`
prints the reference of the keys.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedgmr_hpc.config.choices.named_content import with_content, with_paths_from, without_content
from fedgmr_hpc.config.choices.open_section import (
    OpenSection,
    fields_of,
    owners_of,
    with_option_defaults,
    without_unchosen,
)
from fedgmr_hpc.config.choices.plugins import (
    absolute,
    load_plugins,
    other_plugins,
    plugins_in,
    used_digests,
)
from fedgmr_hpc.config.choices.registry import REGISTRIES, Registry
from fedgmr_hpc.config.choices.section import Section
from fedgmr_hpc.config.identity import flat
from fedgmr_hpc.config.messages import did_you_mean, must, must_be, unknown_name
from fedgmr_hpc.config.methods import is_row_file, load_method, merged, plugins_of, row_file_from
from fedgmr_hpc.config.overrides import Overrides, leaves, only, override
from fedgmr_hpc.config.rules import broken_rules
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.validation import dotted_keys, mistakes
from fedgmr_hpc.config.yaml_file import configs_dir, dump, read_mapping

Source = str | PathLike[str] | Mapping[str, Any]


def load_config(
    source: Source | Sequence[Source] | None = None,
    overrides: Overrides = (),
    *more: Overrides,
    **keys: Any,
) -> Config:
    """Load and check the configuration of a run.

    Args:
        source: A YAML file, the name of one in configs/runs, or its content, whose keys may be
            dotted; or several of them, each laid over those before it. None for `digits`.
        overrides: `dotted.key=value` words, or a mapping of dotted or nested keys (overrides.py);
            at most one for a key.
        more: Further overrides, which replace those before.
        keys: The last ones: `seed=1, run={"max_rounds": 100}`.

    Raises:
        ValueError: With one line for every wrong key or value.

    Example:
        >>> load_config("digits", ["method=heterofl", "run.max_rounds=100"]).run.max_rounds
        100
        >>> load_config("digits", {"run.max_rounds": 100}, seed=1).seed
        1
    """
    values: dict[str, Any] = {}
    plugins: list[str] = []
    for each in _listed(source):
        own: dict[str, Any] = {}
        if isinstance(each, Mapping):
            override(own, copy.deepcopy(each))
        else:
            own = _read_run(each)
        plugins = _with_plugins(plugins, _plugins_in(own))
        values = merged(values, own)
    for given in (overrides, *more, keys):
        layer = list(given) if isinstance(given, Iterator) else given  # it is read several times
        plugins = _with_plugins(plugins, _plugins_in(_named_in(layer)))
        load_plugins(plugins)  # the overrides may set their options
        override(values, layer)
        values = without_unchosen(Config, values, _kept(values, leaves(layer)))
        values = without_content(values, leaves(layer))
    return make_config(values | ({"plugins": plugins} if plugins else {}))


def _named_in(layer: Overrides) -> dict[str, Any]:
    return leaves(only("plugins", layer)) | leaves(only("method", layer))


def _with_plugins(plugins: list[str], more: list[str]) -> list[str]:
    """Return plug-ins, later files in place of earlier ones of the same name: they were moved."""
    names = {Path(each).name for each in more}
    return list(dict.fromkeys([*(p for p in plugins if Path(p).name not in names), *more]))


def _kept(values: Mapping[str, Any], layer: Mapping[str, Any]) -> set[str]:
    """Return the keys that stay where a layer makes another choice: those that it sets itself, and
    those of sections in which it makes none.
    """
    changed = {registry.key.partition(".")[0] for registry in REGISTRIES if registry.key in layer}
    return {*layer, *(key for key in flat(values) if key.partition(".")[0] not in changed)}


def _plugins_in(values: Mapping[str, Any]) -> list[str]:
    """Return the plug-ins that values name, or the file of their row does.

    Raises:
        ValueError: they are no list of texts.
    """
    own = plugins_in(values, Path())
    return list(dict.fromkeys([*own, *plugins_of(values.get("method"))]))


def _read_run(source: str | PathLike[str]) -> dict[str, Any]:
    """Return what a file says; the paths in it of plug-ins, of a row and of what decides what the
    run does are taken from its folder.
    """
    path = _find_run(source)
    values = with_paths_from(path.parent, read_mapping(path))
    if isinstance(values.get("plugins"), list):
        named = values["plugins"]
        values["plugins"] = [
            absolute(each, path.parent) if isinstance(each, str) else each for each in named
        ]
    method = values.get("method")
    if isinstance(method, str) and is_row_file(method):
        values["method"] = row_file_from(path.parent, method)
    return values


def _listed(source: Source | Sequence[Source] | None) -> Sequence[Source]:
    """Return all sources; the run `digits` where there is none.

    Raises:
        ValueError: One is no source.
    """
    single = (str, PathLike, Mapping)
    given = [source] if source is None or isinstance(source, single) else source
    if not isinstance(given, Sequence) or not all(
        isinstance(each, single) for each in given if each
    ):
        need = "a name, a path, a mapping, or a list of these"
        raise ValueError(must_be("a configuration", need, source))
    return [each for each in given if each is not None] or ["digits"]


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
    plugins = _plugins_in(own)
    own |= {"plugins": plugins} if plugins else {}
    named = load_plugins(plugins)
    default = Config.model_fields["method"].default
    try:
        method = load_method(own.get("method", default), own.get("methods", {}))
        own |= {"method": method.name, "methods": method.own_rows}
    except ValueError as error:
        wrong.append(str(error))
        own = {key: value for key, value in own.items() if key not in ("method", "methods")}
        method = load_method(default)
    whole = without_unchosen(Config, merged(method.axes, own), flat(own))
    own = with_content(with_option_defaults(Config, whole))
    wrong += _set_digests(own, used_digests(own, named))
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


def _set_digests(values: dict[str, Any], found: dict[str, str]) -> list[str]:
    """Fill in the digests of plug-ins; return a line for each that was to be another one."""
    wanted = values.get("plugin_digests") or found
    values["plugin_digests"] = found
    if not isinstance(wanted, Mapping):
        return [must_be("plugin_digests", "a mapping from names to digests", wanted)]
    return other_plugins(wanted, found)


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
            whole words, in meanings; or a choice, for its key and its options. Empty for every
            key.

    Raises:
        ValueError: Nothing is found.
    """
    fields = list(_walk_fields(Config, ""))
    found = [field for field in fields if not text or f"{field[0]}.".startswith(f"{text}.")]
    if not found:
        word = re.compile(rf"\b{re.escape(text)}\b", re.IGNORECASE)
        named = [field for field in fields if text.lower() in field[0]]
        meant = [field for field in fields if word.search(field[3]) or text in _words(field[2])]
        found = named + [field for field in meant if field not in named]
    if not found:
        near = did_you_mean(text, dotted_keys(Config))
        raise ValueError(f"no key has {text} in its name or meaning{near}")
    return "\n".join(line for field in found for line in _describe_field(*field))


def _describe_field(key: str, default: Any, allowed: str, about: str) -> Iterator[str]:
    yield f"{key} = {dump(default, flow=True).split(chr(10))[0]}"
    yield f"    {about}" + (f" [{allowed}]" if allowed else "")


def _words(allowed: str) -> list[str]:
    return re.split(r", |=", allowed)


def _walk_fields(section: type[Section], prefix: str) -> Iterator[tuple[str, Any, str, str]]:
    for name, field in fields_of(section).items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk_fields(field.annotation, f"{prefix}{name}.")
        else:
            values = getattr(field.annotation, "__args__", ())
            for registry in (each for each in field.metadata if isinstance(each, Registry)):
                values = registry.names
            allowed = ", ".join(values) if all(isinstance(v, str) for v in values) else ""
            if owners := owners_of(section, name) if issubclass(section, OpenSection) else []:
                allowed = "with " + " or ".join(f"{prefix}{key}={each}" for key, each in owners)
            about = " ".join((field.description or "").split())
            default = field.get_default(call_default_factory=True)
            yield prefix + name, "required" if field.is_required() else default, allowed, about


def run_names() -> list[str]:
    """Return the names of the runs in configs/runs."""
    return sorted(path.stem for path in (configs_dir() / "runs").glob("*.yaml"))


def _find_run(source: str | PathLike[str]) -> Path:
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
