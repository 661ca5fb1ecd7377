"""Plug-ins: Python files and modules whose import registers choices of a user's own.

A plug-in is named by a configuration (`plugins`), or comes with an installed package that has an
entry point in the group `fedgmr_hpc.plugins`, or is one of those of the site, which the variable
FEDGMR_PLUGINS names. Every process imports it before a configuration is checked. A run is known by
the content of the plug-ins that it uses: those that it names, and those of which it chooses
something.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import xxhash

from fedgmr_hpc.config.choices.failures import what_failed
from fedgmr_hpc.config.choices.registry import REGISTRIES, adopt, registering
from fedgmr_hpc.config.messages import must, must_be

GROUP = "fedgmr_hpc.plugins"
VARIABLE = "FEDGMR_PLUGINS"  # files and modules, with spaces between
_SCRIPT = "__main__"
_OF_A_SCRIPT = (
    "a script registered it itself; runs that can be replayed elsewhere have it from a file, "
    "named with --plugin"
)


@dataclass(frozen=True)
class Plugin:
    """An imported plug-in.

    Attributes:
        name: of its file without `.py`, or of its module.
        digest: xxh3 of its source, of a package of all its files.
    """

    name: str
    digest: str


_loaded: dict[str, Plugin] = {}  # by absolute path or module


def is_file(plugin: str) -> bool:
    """Return whether a plug-in is named by the path of a file."""
    return plugin.endswith(".py") or "/" in plugin


def is_plugin(word: str) -> bool:
    """Return whether a word that names a plug-in or a row names a plug-in: `x.py`, `x.y`."""
    is_row = word.endswith((".yaml", ".yml")) or "+" in word
    return word.endswith(".py") or ("." in word and not is_row)


def absolute(plugin: str, folder: Path) -> str:
    """Return the absolute path of a plug-in that is a file; a module's name stays as it is.

    Args:
        folder: where the file that names it lies; a file that is not there is looked for in the
            working directory.
    """
    if not is_file(plugin):
        return plugin
    path = Path(plugin).expanduser()
    found = folder / path
    return str((found if found.is_file() else path).resolve())


def plugins_in(values: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the plug-ins that the values of a file in `folder` name.

    Raises:
        ValueError: they are no list of texts.
    """
    found = values.get("plugins", ())
    if not isinstance(found, list | tuple) or not all(isinstance(each, str) for each in found):
        raise ValueError(must_be("plugins", "a list of files and modules", found))
    return [absolute(each, folder) for each in found]


def load_plugins(plugins: Sequence[str]) -> list[Plugin]:
    """Import plug-ins, each once while its content is the same; installed ones and those of the
    site, too.

    Returns:
        Those that are named.

    Raises:
        ValueError: one cannot be found or fails; one line, with its line where it has one.
    """
    _load_installed()
    for plugin in os.environ.get(VARIABLE, "").split():
        _load(VARIABLE, plugin)
    return [_load(f"plugins.{index}", plugin) for index, plugin in enumerate(plugins)]


@cache
def _load_installed() -> None:
    for point in entry_points(group=GROUP):
        _load(f"entry point {point.name} of {_package(point)}", point.module)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "a package"


def _load(key: str, plugin: str) -> Plugin:
    if not is_file(plugin):
        return _load_module(key, plugin)
    path = Path(plugin).expanduser().resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        need = "a file that can be read, or a module"
        because = f"{error.strerror}; if it was moved, name it with --plugin FILE"
        raise ValueError(must_be(key, need, plugin, because=because)) from None
    digest = xxhash.xxh3_64_hexdigest(source)
    before = _loaded.get(str(path))
    if before is None or before.digest != digest:
        _check_name(key, str(path), path.stem)
        _loaded.pop(str(path), None)
        _execute(path, source)
        _loaded[str(path)] = Plugin(path.stem, digest)
    return _loaded[str(path)]


def _check_name(key: str, plugin: str, name: str) -> None:
    """Refuse a second plug-in of a name: the two could not be told apart in a result. One whose
    file is not there any more was moved.
    """
    others = [
        each
        for each, found in _loaded.items()
        if found.name == name and each != plugin and (not is_file(each) or Path(each).is_file())
    ]
    if others:
        raise ValueError(must(key, "have a name of its own", plugin, because=f"so has {others[0]}"))


def _execute(path: Path, source: bytes) -> None:
    name = f"fedgmr_plugin_{path.stem}"
    loader = SourceFileLoader(name, str(path))  # whatever the file is called
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # which dataclasses and pydantic look into
    try:
        with registering(path.stem), redirect_stdout(sys.stderr):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ValueError(_failure(str(path), error)) from error


def _load_module(key: str, name: str) -> Plugin:
    if name in _loaded:
        return _loaded[name]
    try:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"there is no module {name}", name=name)
        _check_name(key, name, name)
        if name in sys.modules:
            adopt(name)
        else:
            with registering(name), redirect_stdout(sys.stderr):
                importlib.import_module(name)
        digest = _digest(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and name.startswith(str(error.name)):
            need = "a module that can be imported, or the path of a file"
            raise ValueError(must_be(key, need, name, because=str(error))) from None
        raise ValueError(_failure(name, error)) from error
    _loaded[name] = Plugin(name, digest)
    return _loaded[name]


def _failure(plugin: str, error: BaseException) -> str:
    """Say where a plug-in failed: in the line of it that was reached last."""
    place = plugin
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    elif frames := [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and frame.filename != __file__
    ]:
        own = [frame for frame in frames if frame.filename == plugin]
        place = f"{(own or frames)[-1].filename}:{(own or frames)[-1].lineno}"
    return f"plug-in {place}: {what_failed(error)}"


def _digest(name: str) -> str:
    """Return the xxh3 of a module's source; of one in a package, of all that the package has.

    Raises:
        ModuleNotFoundError: it has no source.
    """
    top = sys.modules[name.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(top, "__path__", [])]
    files = {str(path.relative_to(f)): path for f in folders for path in f.rglob("*.py")}
    if not files and getattr(top, "__file__", None) is None:
        raise ModuleNotFoundError(f"{name} has no source", name=name)
    hasher = xxhash.xxh3_64()
    for place, path in sorted((files or {"": Path(str(top.__file__))}).items()):
        hasher.update(f"{place}\0".encode() + path.read_bytes())
    return hasher.hexdigest()


def used_digests(values: Mapping[str, Any], named: Iterable[Plugin]) -> dict[str, str]:
    """Return the digests of the plug-ins that a configuration uses, by name.

    Args:
        values: its nested values.
        named: the plug-ins that it names.
    """
    found = {plugin.name: plugin.digest for plugin in named}
    by_name = {plugin.name: plugin.digest for plugin in _loaded.values()}
    for registry in REGISTRIES:
        section, _, key = registry.key.rpartition(".")
        around = values.get(section, {}) if section else values
        chosen = around.get(key) if isinstance(around, Mapping) else None
        if isinstance(chosen, str) and (origin := registry.origins.get(chosen)):
            found[origin] = by_name.get(origin) or _digest_of_script(registry[chosen])
    return dict(sorted(found.items()))


def _digest_of_script(entry: Any) -> str:
    """Return the digest of what a script or a notebook has registered itself."""
    try:
        source = Path(inspect.getfile(entry)).read_bytes()
    except (OSError, TypeError):
        try:
            source = inspect.getsource(entry).encode()
        except (OSError, TypeError):
            return "unknown"
    return xxhash.xxh3_64_hexdigest(source)


def other_plugins(then: Mapping[str, str], now: Mapping[str, str], when: str = "") -> list[str]:
    """Return a line for each plug-in that is not the one that a run began with.

    Args:
        then: digests by name, as `used_digests` returns them, when it began.
        now: those that it would go on with.
        when: what makes this matter, as of `messages.must`.
    """
    names = sorted(then.keys() | now.keys())
    return [_other(name, then, now, when) for name in names if then.get(name) != now.get(name)]


def _other(name: str, then: Mapping[str, str], now: Mapping[str, str], when: str) -> str:
    what = f"plugins: {_place(name)}"
    if name not in now:
        because = _OF_A_SCRIPT if name == _SCRIPT else "name its file with --plugin"
        need = "loaded, as when the run began"
        return must_be(what, need, when=when, found="not loaded", because=because)
    if name not in then:
        because = "leave it out, or start a new run"
        return must_be(what, "absent, as when the run began", when=when, because=because)
    need, found = "the file that the run began with", "one that has changed since"
    because = "use the unchanged file, or start a new run"
    return must_be(what, need, when=when, found=found, because=because)


def _place(name: str) -> str:
    """Return the name of a plug-in's file; of a module, its own."""
    files = [each for each, plugin in _loaded.items() if plugin.name == name and is_file(each)]
    return Path(files[-1]).name if files else name
