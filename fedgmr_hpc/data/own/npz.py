"""A user's own arrays: one .npz file, as numpy.savez or savez_compressed writes it.

It has x_train, y_train, x_test, y_test and, where it is known who made a sample, group_train;
arrays.py says what they must be like. Images are read a few at a time and appended to the cache, so
that they need not fit into memory. Python objects in the file are never unpickled.

Shapes: N samples.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import (
    Meter,
    RowFile,
    check_room,
    file_facts,
    make_cache_key,
    open_or_fill,
)
from fedgmr_hpc.data.own.arrays import (
    ImageLayout,
    check_classes,
    check_tests,
    find_layout,
    number_groups,
    same_shape,
)
from fedgmr_hpc.data.source import UNKNOWN, DatasetSource, Files, Plan, Traits, is_data, register
from fedgmr_hpc.data.untrusted import reading, refuse

TRAITS = Traits(UNKNOWN, ())
PARTS = ("train", "test")
NEEDED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = "group_train"
EXPECTED = "an .npz file of numpy.savez"
MAX_SMALL_BYTES = 1 << 30  # of an array that is read at once: labels or groups
CHUNK_BYTES = 1 << 25  # of images that are read at once
INSTRUCTIONS = """\
npz is for arrays of your own: one file made by
  numpy.savez("mine.npz", x_train=..., y_train=..., x_test=..., y_test=..., group_train=...)
which ROOT names, or which is the only one in ROOT. Images are [N,H,W], [N,H,W,C] or [N,C,H,W],
uint8 or floats from 0 to 1; labels are integers from 0 on; group_train, who made each training
sample, may be left out."""


def find_files(root: Path) -> Files:
    """Return the file that the root is, or the only one in it; else a pattern that says so."""
    if root.is_file() or root.suffix == ".npz":
        return [root], []
    found = sorted(path for path in root.glob("*.npz") if is_data(path.name))
    if len(found) > 1:
        return [root / f"*.npz (one, not {len(found)}; data.root may name one)"], []
    return found or [root / "*.npz"], []


@dataclass(frozen=True)
class _Member:
    """One array of the file, not yet read.

    Attributes:
        path: the .npz file.
        name: of the array.
        shape: of the array.
        dtype: of its values.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, num: int, first: int = 0) -> Iterator[NDArray[Any]]:
        """Yield the rows from `first` on, `num` at a time.

        Raises:
            BadFile: the file is damaged.
        """
        with self._reading(), zipfile.ZipFile(self.path) as archive:
            with archive.open(f"{self.name}.npy") as file:
                _read_header(file)
                file.seek(file.tell() + first * self.row_bytes)
                for start in range(first, self.shape[0], num):
                    count = min(num, self.shape[0] - start)
                    raw = file.read(count * self.row_bytes)
                    yield np.frombuffer(raw, self.dtype).reshape(count, *self.shape[1:])

    def _reading(self) -> Any:
        return reading(f"{self.path}: {self.name}", EXPECTED)

    def read(self) -> NDArray[Any]:
        """Return the whole array."""
        if (size := self.row_bytes * self.shape[0]) > MAX_SMALL_BYTES:
            refuse(self.path, f"{self.name} has {size} bytes", f"at most {MAX_SMALL_BYTES}")
        return next(self.rows(max(1, self.shape[0])), np.empty(self.shape, self.dtype))


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    if npy.read_magic(file) != (1, 0):  # others are for records of very many fields
        raise ValueError("its header is longer than that of numbers")
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = npy.read_array_header_1_0(file)
    return header


def _list_members(path: Path) -> dict[str, _Member]:
    """Return the arrays of the file by name, having looked at their headers only."""
    with reading(path, EXPECTED), zipfile.ZipFile(path) as archive:
        infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        there, known = ", ".join(infos) or "nothing", ", ".join((*NEEDED, OPTIONAL))
        for name in NEEDED:
            if name not in infos:
                refuse(path, f"has no array {name} (it has {there})", known)
        for name in infos:
            if name not in (*NEEDED, OPTIONAL):
                refuse(path, f"has an array {name}, which has no meaning here", known)
        return {name: _look_at(path, name, archive, info) for name, info in infos.items()}


def _look_at(path: Path, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    with reading(f"{path}: {name}", EXPECTED), archive.open(info) as file:
        shape, is_fortran, dtype = _read_header(file)
        begin = file.tell()
    if dtype.hasobject:
        refuse(path, f"{name} holds Python objects", "numbers, which need no pickle")
    if not shape:
        refuse(path, f"{name} is a single value", "an array")
    if is_fortran and len(shape) > 1:
        refuse(path, f"{name} is in Fortran order", "C order: save numpy.ascontiguousarray of it")
    size = begin + math.prod(shape) * dtype.itemsize
    if info.file_size != size:
        refuse(path, f"{name} has {info.file_size} bytes", f"{size}, as its header says")
    return _Member(path, name, shape, dtype)


def fill_npz(path: Path, folder: Path, alive: Callable[[str], None]) -> None:
    """Write the arrays of the cache, keeping intact images that `folder` already holds.

    Args:
        path: the .npz file.
        folder: private folder of the cache under construction.
        alive: told now and then how far the work is.

    Raises:
        BadFile: the file is damaged, or an array is not as it must be.
    """
    members = _list_members(path)
    images = {part: members[f"x_{part}"] for part in PARTS}
    layouts = {part: find_layout(str(path), x.name, x.shape, x.dtype) for part, x in images.items()}
    same_shape(str(path), layouts["train"], layouts["test"])
    _write_labels(path, members, folder)
    shape = layouts["train"].shape
    files = {part: RowFile(folder, part, (x.shape[0], *shape)) for part, x in images.items()}
    total, done = sum(x.shape[0] for x in images.values()), sum(f.done for f in files.values())
    check_room(folder.parent, (total - done) * math.prod(shape))
    meter = Meter("npz", total, done=done, alive=alive)
    try:
        for part, file in files.items():
            _append(file, images[part], layouts[part], meter)
    finally:
        meter.close()


def _write_labels(path: Path, members: dict[str, _Member], folder: Path) -> None:
    where, num = str(path), {part: members[f"x_{part}"].shape[0] for part in PARTS}
    labels = {
        part: check_classes(where, f"y_{part}", members[f"y_{part}"].read(), num[part])
        for part in PARTS
    }
    check_tests(where, labels["train"], labels["test"])
    group = members[OPTIONAL].read() if OPTIONAL in members else None
    groups = {
        "train": number_groups(where, group, num["train"]),
        "test": np.zeros(num["test"], np.int32),
    }
    for part in PARTS:
        np.save(folder / f"{part}_y.npy", labels[part])
        np.save(folder / f"{part}_group.npy", groups[part])


def _append(file: RowFile, x: _Member, layout: ImageLayout, meter: Meter) -> None:
    """Append the images that are not there yet, some at a time."""
    at, num = file.done, max(1, CHUNK_BYTES // max(1, x.row_bytes))
    with file:
        for rows in x.rows(num, first=at):
            for image in layout.as_bytes(rows, str(x.path), x.name, first=at):
                file.append(image)
            at += len(rows)
            meter.add(len(rows))
            file.flush()


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    (path,), _ = files
    return Plan(
        folder=f"npz-{make_cache_key(['npz', *file_facts([path])])}",
        open=partial(open_or_fill, fill=partial(fill_npz, path)),
        traits=TRAITS,
    )


register(DatasetSource("npz", TRAITS, _plan, find_files, INSTRUCTIONS))
