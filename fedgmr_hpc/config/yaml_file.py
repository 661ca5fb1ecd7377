"""Read and write YAML, the format of all configuration files and of values on the command line.

Plain scalars mean what YAML 1.2 says: numbers are decimal, `true` and `false` are the only truth
values, `null`, `~` and nothing are null; anything else is text, such as 010, 0x10, 1_000, 12:30:00,
on, no and 2024-05-01. Keys are text, too. Repeated keys and tags are refused, and so is what takes
more memory than it seems to: deep nesting, and anchors that are repeated too often.

The files that come with the package lie inside it where a wheel was installed, `fedgmr_hpc/configs`
and `fedgmr_hpc/slurm`, and beside it in a checkout.
"""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from fedgmr_hpc.config.messages import must

PACKAGE = Path(__file__).resolve().parent.parent
MAX_DEPTH = 20
MAX_COPIES = 10_000  # values that aliases repeat, all together
_TAG = "tag:yaml.org,2002:"
_SCALARS = {  # at most 99 digits, since Python converts long integers slowly or not at all
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?(0|[1-9][0-9]{0,98})"),
    "float": re.compile(
        r"[-+]?((0|[1-9][0-9]{0,98})(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,9})?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}


class YamlError(ValueError):
    """A text that is not YAML, or not the part of it that is read here; says where."""


class _Loader(yaml.SafeLoader):
    """Read plain scalars, and refuse what is not wanted, as the module says."""

    yaml_implicit_resolvers: dict[Any, Any] = {
        None: [(f"{_TAG}{kind}", re.compile(rf"(?:{p.pattern})\Z")) for kind, p in _SCALARS.items()]
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = self._num_copies = 0
        self._sizes: dict[str, int] = {}  # of anchors, in nodes

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node; see `yaml.composer`."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._count_copies(event)
        elif event.tag not in (None, f"{_TAG}str"):
            raise _refusal(event, f"values must have no tags (got {event.tag})")
        before, self._num_nodes = self._num_nodes, self._num_nodes + 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refusal(event, f"values must be nested at most {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor and not isinstance(event, yaml.AliasEvent):
            self._sizes[event.anchor] = self._num_nodes - before
        return node

    def _count_copies(self, event: yaml.AliasEvent) -> None:
        """Count what an alias repeats; an anchor around it has no size yet."""
        if event.anchor in self.anchors and event.anchor not in self._sizes:
            raise _refusal(event, f"*{event.anchor} must not stand inside itself")
        size = self._sizes.get(str(event.anchor), 0)
        self._num_nodes += size
        self._num_copies += size
        if self._num_copies > MAX_COPIES:
            raise _refusal(event, f"aliases must repeat at most {MAX_COPIES} values")

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys are text, each of them once."""
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refusal(key_node, "a key must be a word (got a list or a mapping)")
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in found:
                text = f"{key} must be set only once (first set in line {lines[key]})"
                raise _refusal(key_node, text)
            found[key] = self.construct_object(value_node, deep=deep)
            lines[key] = line
        return found

    def construct_yaml_int(self, node: Any) -> int:
        """Construct a decimal number."""
        return int(node.value)

    def construct_yaml_float(self, node: Any) -> float:
        """Construct a decimal number, .inf or .nan."""
        text = node.value.lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_yaml_float)


class _Dumper(yaml.SafeDumper):
    """Quote text that YAML 1.1 or 1.2 would read as something else."""

    yaml_implicit_resolvers: dict[Any, Any] = {
        **yaml.SafeDumper.yaml_implicit_resolvers,
        **_Loader.yaml_implicit_resolvers,
    }


def _refusal(at: Any, text: str) -> YamlError:
    return YamlError(f"line {at.start_mark.line + 1}: {text}")


def parse(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        YamlError: It is not YAML, or refused; in one line.
    """
    return copy.deepcopy(_parse(text))


@lru_cache(maxsize=512)  # a study reads the same rows for each of its cells
def _parse(text: str) -> Any:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except YamlError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # \U99999999 is a ValueError
        raise YamlError(f"not YAML: {' '.join(str(error).split())}") from None


def parse_scalar(text: str) -> Any:
    """Return what a plain scalar means: null, a truth value, a number, or its own text."""
    text = text.strip()
    return text if text and not any(p.fullmatch(text) for p in _SCALARS.values()) else parse(text)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file holds an empty one.

    Raises:
        YamlError: It cannot be read, or holds something else; begins with the path.
    """
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except YamlError as error:
        raise YamlError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise YamlError(f"{path}: cannot be read: {why}") from None
    if not isinstance(values, (dict, type(None))):
        raise YamlError(must(str(path), "hold a mapping of keys", values))
    return values or {}


def dump(values: Any, flow: bool | None = None) -> str:
    """Return a text from which `parse` makes equal values.

    Args:
        flow: Whether to write lists and mappings in one line; None for the innermost ones.
    """
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=flow)
    return text


def configs_dir() -> Path:
    """Return the folder of the shipped runs, methods, wrappers, studies and sites."""
    return _find("configs")


def scripts_dir() -> Path:
    """Return the folder of the job scripts for Slurm.

    Raises:
        ValueError: The installation has none.
    """
    folder = _find("slurm")
    if not (folder / "common.sh").is_file():
        raise ValueError(f"job scripts must be at {folder} (install the wheel, or a checkout)")
    return folder


def _find(name: str) -> Path:
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
