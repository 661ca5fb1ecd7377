"""What a plug-in has raised, in one line with its file and line number, and what it must not keep.

Nothing is put around what plug-ins bring, so their hooks cost nothing more: where an error comes
out, its traceback tells whose code it has passed through.
"""

from __future__ import annotations

import ast
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pydantic import PydanticUserError, ValidationError

from fedgmr_hpc.config.choices.registry import REGISTRIES
from fedgmr_hpc.config.errors import PluginError, RunError
from fedgmr_hpc.config.messages import must

_KEPT_IN = {  # what belongs to a run
    "aggregation.rule": "`numbers` or `vectors`",
    "restoration.trigger": "`refresh.state`",
    "admission.kind": "`window.state`",
    "clients.selection": "`draw.state`",
    "train.objective": "`steps.kept`, `steps.numbers` or `steps.own`",
}


@contextmanager
def naming_plugins(**where: Any) -> Iterator[None]:
    """Let what a plug-in raises meanwhile become a `PluginError` that names it. What a run itself
    says is left as it is, such as a refusal or that a rank is gone.

    Args:
        where: rank, client, version and stage, as far as they are known.

    Raises:
        PluginError: a plug-in has failed; its cause is what it has raised.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if text := plugin_failure(error):
            raise PluginError(text, **where) from error
        raise


def plugin_failure(error: BaseException) -> str | None:
    """Say which choice of a plug-in has raised an error, and in which line; None where no code of
    one was on the way to it.

    Example:
        "aggregation.rule 'bad' (mine.py:9): NameError: name 'x' is not defined"
    """
    found = []
    for registry in REGISTRIES:
        for name, origin in registry.origins.items():
            entry = inspect.unwrap(registry[name])
            if frames := [
                (frame, line)
                for frame, line in traceback.walk_tb(error.__traceback__)
                if _package(frame.f_globals) == _package({"__name__": entry.__module__})
            ]:
                is_certain = any(_is_of(frame, entry) for frame, _ in frames)
                found.append((is_certain, registry.key, name, origin, *frames[-1]))
    if not found:
        return None
    is_certain, key, name, origin, frame, line = max(found, key=lambda each: each[0])
    who = f"{key} {name!r}" if is_certain or len(found) == 1 else f"plug-in {origin}"
    return f"{who} ({frame.f_code.co_filename}:{line}): {what_failed(error, key)}"


def _package(names: dict[str, Any]) -> str:
    """Return the outermost package of a module that has these names."""
    return str(names.get("__name__")).partition(".")[0]


def _is_of(frame: FrameType, entry: Any) -> bool:
    """Return whether a frame is of a method of the class `entry`, or of this function."""
    is_function = frame.f_code is getattr(entry, "__code__", None)
    return is_function or type(frame.f_locals.get("self")) is entry


def what_failed(error: BaseException, key: str = "") -> str:
    """Say in one line what an error is of, and what it says; what to write instead where a field
    has no type, or where a class keeps something in itself.

    Args:
        key: of the choice that has raised it.
    """
    if isinstance(error, PydanticUserError):
        bare = re.search(r"`(\w+) = (.*?)`", error.message)
        if error.code == "model-field-missing-annotation" and bare:
            return f"{bare[1]} must have a type: write `{bare[1]}: {_type(bare[2])} = {bare[2]}`"
    if name := _assigned(error):
        keep = f"; keep it in {_KEPT_IN[key]}" if key in _KEPT_IN else ""
        because = f"one object may serve several runs{keep}"
        return must(f"self.{name}", "not be assigned", because=because)
    text = getattr(error, "msg", "") or getattr(error, "message", "") or error
    told = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
    return told + " ".join(str(text).split())


def _assigned(error: BaseException) -> str:
    """Return what was to be assigned to an object that pydantic does not let change, "" for any
    other error.
    """
    if isinstance(error, ValidationError):
        item = error.errors()[0]
        return str(item["loc"][0]) if item["type"] == "frozen_instance" else ""
    found = re.match(r"'(\w+)' is a ClassVar of ", str(error))
    return found[1] if found and isinstance(error, AttributeError) else ""


def check_state(what: str, state: Mapping[str, Any]) -> None:
    """Refuse what a plug-in keeps and a checkpoint does not give back alike.

    Args:
        what: whose it is, and how it calls it: `schedule Steady: refresh.state`.

    Raises:
        RunError: something is neither what JSON can hold nor a number or array of NumPy.
    """
    for key, value in state.items():
        if found := _not_kept({key: value}):
            need = "hold only what JSON can, and arrays of numbers"
            raise RunError(must(f"{what}[{key!r}]", need, found=found))


def _not_kept(value: Any) -> str:
    """Return what of a value a checkpoint would lose or change, "" for nothing."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return ""
    if type(value).__module__ == "numpy":
        return "" if value.dtype.kind in "biuf" else f"{value.dtype} of NumPy"
    if type(value) is list:
        return next(filter(None, map(_not_kept, value)), "")
    if type(value) is not dict:
        return f"a {type(value).__name__}"
    if wrong := [key for key in value if not isinstance(key, str)]:
        return f"the key {wrong[0]!r}, which is no text"
    return next(filter(None, map(_not_kept, value.values())), "")


def _type(value: str) -> str:
    """Return the type of a value as it is written."""
    try:
        return type(ast.literal_eval(value)).__name__
    except (SyntaxError, ValueError):
        return "TYPE"
