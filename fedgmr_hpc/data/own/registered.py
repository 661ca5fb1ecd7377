"""A data set from a function that a plug-in has registered.

Its arrays are made once and kept in the cache, whose name depends on the source of the function and
of its plug-in, on its traits, and on the files that lie in the root: on their names, sizes and
times.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.choices.own_data import Arrays, OwnData
from fedgmr_hpc.config.choices.plugins import used_digests
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import file_facts
from fedgmr_hpc.data.own.arrays import make_splits
from fedgmr_hpc.data.source import UNKNOWN, DatasetSource, Files, Plan, Traits, is_data, plan_build
from fedgmr_hpc.data.splits import Splits
from fedgmr_hpc.data.untrusted import BadFile, brief, refuse


def source_of(name: str, own: OwnData) -> DatasetSource:
    """Return the source of a registered data set; it needs no official files."""
    traits = Traits(
        num_classes=own.num_classes or UNKNOWN,
        input_shape=own.input_shape or (),
        max_value=own.max_value,
        mean=own.mean,
        std=own.std,
        augment=own.augment,
        top_k=own.top_k,
    )
    return DatasetSource(name, traits, partial(_plan, own=own, traits=traits))


def _plan(data: DataConfig, files: Files, seed: int, *, own: OwnData, traits: Traits) -> Plan:
    root = None if data.root is None else Path(data.root).expanduser()
    plugin = used_digests({"data": {"name": data.name}}, ())  # of a package, all its modules
    sources = [
        _source_digest(data.name, own),
        *(f"{name} {digest}" for name, digest in plugin.items()),
    ]
    facts = [data.name, *sources, *own.facts(), *(root_facts(root) if root else ())]
    return plan_build(data.name, traits, facts, _build, own=own, of=data.name, root=root)


def _source_digest(name: str, own: OwnData) -> str:
    """Return a digest of the file that defines the function, or of the function in a notebook.

    Raises:
        BadFile: its source cannot be read, as where it was typed at a prompt.
    """
    load = inspect.unwrap(own.load)  # what a decorator has wrapped
    try:
        source = Path(inspect.getfile(load)).read_bytes()
    except (OSError, TypeError):
        try:
            source = inspect.getsource(load).encode()
        except (OSError, TypeError):
            what = f"the function of data.name {name!r}"
            because = "its source tells whether the cache is still right"
            raise BadFile(must_be(what, "in a file, or a notebook", because=because)) from None
    return hashlib.sha256(source).hexdigest()


def root_facts(root: Path) -> list[str]:
    """Return name, size and time of the root, or of what lies in it but not deeper."""
    entries = [root / name for name in sorted(os.listdir(root))] if root.is_dir() else [root]
    return file_facts(path for path in entries if is_data(path.name))


def _build(own: OwnData, of: str, root: Path | None) -> Splits:
    where = f"data.name {of}"
    arrays = _call(where, own, root)
    if not isinstance(arrays, tuple) or len(arrays) not in (4, 5):
        what = f"{len(arrays)} values" if isinstance(arrays, tuple) else type(arrays).__name__
        refuse(where, f"its function returned {what}", ", ".join(Arrays._fields))
    train, test = make_splits(where, Arrays(*arrays))
    if own.input_shape not in (None, train.x.shape[1:]):
        refuse(where, f"images of {list(train.x.shape[1:])}", f"input_shape {own.input_shape}")
    top = max(int(train.y.max()), int(test.y.max()))
    if own.num_classes is not None and top >= own.num_classes:
        refuse(where, f"label {top}", f"0..{own.num_classes - 1}, as num_classes says")
    if len(own.mean) not in (1, train.x.shape[1]):
        refuse(where, f"{train.x.shape[1]} channels", f"{len(own.mean)}, as mean says")
    if (brightest := int(max(train.x.max(), test.x.max()))) > own.max_value:
        refuse(where, f"a pixel of {brightest}", f"at most {own.max_value}, as max_value says")
    return train, test


def _call(where: str, own: OwnData, root: Path | None) -> tuple[Any, ...]:
    """Call the function; whatever it raises is one line that names its file and line."""
    try:
        return own.load(root)
    except Exception as error:
        frames = list(_own_lines(own, error))
        place = f", {frames[-1]}" if frames else ""
        kind = type(error).__name__
        raise BadFile(f"{where}{place}: {kind}: {brief(error)}") from error


def _own_lines(own: OwnData, error: Exception) -> Iterator[str]:
    """Yield the lines of the function's file that were on the way to the error."""
    load = inspect.unwrap(own.load)
    file = load.__code__.co_filename if hasattr(load, "__code__") else ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == file:
            yield f"{file}:{frame.lineno}"
