"""Readers of the official file formats: LEAF JSON (FEMNIST), CIFAR-10's binary and pickled batches.

Shapes: N samples, C channels, H height, W width. Every reader gives uint8 images [N,C,H,W], int64
labels [N] and int32 writers [N] (0 where the data set names no writers), or raises one ValueError
that names the file, what was found and what is expected. FEMNIST is stored inverted, as
round(255 (1 - x)), so that the background is 0 (FedGMR experiments, data section).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.data.digests import Guard
from fedgmr_hpc.data.foreign import reading, refuse

Bytes = NDArray[np.uint8]
Longs = NDArray[np.int64]

LEAF_PIXELS = 784
LEAF_CLASSES = 62
CIFAR_PIXELS = 3072
CIFAR_RECORD_BYTES = 1 + CIFAR_PIXELS
CIFAR_CLASSES = 10


@dataclass(frozen=True, eq=False)
class Split:
    """Samples of one split. The arrays are read-only; `x` of `load_dataset` is memory-mapped.

    In a subset, `rows` are the rows of `x` that belong to it, so that `x` need not be copied.
    What comes from a cache has a `guard` that knows how its rows must read.
    """

    x: Bytes | NDArray[np.uint16]  # images [N,C,H,W], or tokens [N,L] padded with 0
    y: Longs  # [N] class, or number of scored target tokens
    group: NDArray[np.int32]  # [N] writer or user
    rows: Longs | None = None  # [N]
    guard: Guard | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Longs) -> NDArray[Any]:
        """[B,...] copies of the samples at these positions.

        Raises:
            RunError: one is not what was decoded.
        """
        rows = index if self.rows is None else self.rows[index]
        x = self.x[rows]
        if self.guard is not None:
            self.guard.check(x, rows)
        return x


def _check_labels(path: Path, labels: Longs, *, num_classes: int, where: str) -> None:
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        found = f"{where} {bad[0]} has label {labels[bad[0]]}"
        refuse(path, found, f"0..{num_classes - 1}")


def _whole_numbers(values: list[Any]) -> Longs | None:
    """[N], or None where one of the values is no integer of 64 bits."""
    if not all(type(value) is int and abs(value) < 2**63 for value in values):
        return None
    return np.array(values, dtype=np.int64)


# LEAF JSON


@dataclass(frozen=True, eq=False)
class _Writer:
    """One entry of `user_data`; a bad one carries what is wrong until its user's name is known."""

    x: Bytes  # [N,784]
    y: Longs  # [N]
    found: str = ""
    expected: str = ""


def _bad_writer(found: str, expected: str) -> _Writer:
    return _Writer(np.empty((0, LEAF_PIXELS), np.uint8), np.empty(0, np.int64), found, expected)


def _leaf_pixels(rows: list[Any]) -> Bytes | _Writer:
    """[N,784] inverted bytes of the parsed float rows, or what is wrong with them."""
    expected = f"{LEAF_PIXELS} numbers in 0..1"
    for number, row in enumerate(rows):
        length = len(row) if isinstance(row, list) else "no"
        if length != LEAF_PIXELS:
            return _bad_writer(f"sample {number} has {length} pixels", expected)
    try:
        x = np.array(rows, dtype=np.float32).reshape(len(rows), LEAF_PIXELS)
    except (TypeError, ValueError):
        return _bad_writer("x holds something that is not a number", expected)
    outside = np.argwhere(~((x >= 0) & (x <= 1)))  # written so that NaN counts as outside
    if len(outside):
        row, column = outside[0]
        return _bad_writer(f"sample {row} has pixel value {x[row, column]:g}", expected)
    return np.rint(255 * (1 - x)).astype(np.uint8)


def _pack_writer(pairs: list[tuple[str, Any]]) -> Any:
    """json object_pairs_hook: a writer's floats, 32 bytes each, become bytes as soon as parsed."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    x, y = entry.get("x"), entry.get("y")
    if not isinstance(x, list) and not isinstance(y, list):
        return entry
    if not isinstance(x, list) or not isinstance(y, list):
        lacking = "y" if isinstance(x, list) else "x"
        return _bad_writer(f'has no list "{lacking}"', '"x" and "y"')
    if len(x) != len(y):
        return _bad_writer(f"has {len(x)} images and {len(y)} labels", "as many of each")
    labels = _whole_numbers(y)
    if labels is None:
        return _bad_writer('"y" holds something that is not an integer', "class numbers")
    pixels = _leaf_pixels(x)
    return pixels if isinstance(pixels, _Writer) else _Writer(pixels, labels)


def _parse_shard(path: Path) -> dict[str, Any]:
    with reading(path, "a LEAF shard"), path.open(encoding="utf-8-sig") as handle:
        shard: dict[str, Any] = json.load(handle, object_pairs_hook=_pack_writer)
    for key, kind in (("users", list), ("num_samples", list), ("user_data", dict)):
        if not isinstance(shard, dict) or not isinstance(shard.get(key), kind):
            refuse(path, f'"{key}" is missing or no {kind.__name__}', "a LEAF shard")
    return shard


def _read_shard(path: Path) -> dict[str, _Writer]:
    """The writers of one shard in the order of `users`."""
    shard = _parse_shard(path)
    users, counts = shard["users"], shard["num_samples"]
    if len(users) != len(counts):
        refuse(path, f"{len(users)} users but {len(counts)} num_samples", "as many of each")
    writers: dict[str, _Writer] = {}
    for user, count in zip(users, counts, strict=True):
        writer = shard["user_data"].get(user) if isinstance(user, str) else None
        if not isinstance(writer, _Writer):
            refuse(path, f"user {user!r} has no x and y in user_data", 'lists "x" and "y"')
        if writer.found:
            refuse(path, f"user {user!r}: {writer.found}", writer.expected)
        if len(writer.y) != count:
            found = f"user {user!r} has {len(writer.y)} samples"
            refuse(path, found, f"num_samples {count}")
        _check_labels(path, writer.y, num_classes=LEAF_CLASSES, where=f"user {user!r}: sample")
        if user in writers:
            refuse(path, f"user {user!r} is listed twice", "each user once")
        writers[user] = writer
    if unlisted := shard["user_data"].keys() - writers.keys():
        refuse(path, f"user {min(unlisted)!r} of user_data is not in users", "all users listed")
    return writers


def _read_shards(paths: Sequence[Path]) -> dict[str, _Writer]:
    writers: dict[str, _Writer] = {}
    for path in paths:
        shard = _read_shard(path)
        repeated = sorted(shard.keys() & writers.keys())
        if repeated:
            refuse(path, f"user {repeated[0]!r} also stands in an earlier file", "each user once")
        writers |= shard
    if not sum(len(writer.y) for writer in writers.values()):
        refuse(paths[0].parent, "no samples in its files", "at least one")
    return writers


def _join_writers(writers: dict[str, _Writer], numbers: dict[str, int]) -> Split:
    sizes = [len(writer.y) for writer in writers.values()]
    return Split(
        x=np.concatenate([writer.x for writer in writers.values()]).reshape(-1, 1, 28, 28),
        y=np.concatenate([writer.y for writer in writers.values()]),
        group=np.repeat(np.array([numbers[user] for user in writers], np.int32), sizes),
    )


def read_leaf(train_files: Sequence[Path], test_files: Sequence[Path]) -> tuple[Split, Split]:
    """FEMNIST as LEAF writes it: writers numbered in file order, those met only in test last."""
    train, test = _read_shards(train_files), _read_shards(test_files)
    numbers = {user: number for number, user in enumerate(train | test)}
    return _join_writers(train, numbers), _join_writers(test, numbers)


# CIFAR-10


def _read_binary_batch(path: Path) -> tuple[Bytes, Longs]:
    with reading(path, "a CIFAR-10 binary batch"):
        raw = np.fromfile(path, dtype=np.uint8)
    if not raw.size or raw.size % CIFAR_RECORD_BYTES:
        expected = f"a positive whole number of {CIFAR_RECORD_BYTES}-byte records"
        refuse(path, f"{raw.size} bytes", f"{expected} (1 label + {CIFAR_PIXELS} pixels)")
    records = raw.reshape(-1, CIFAR_RECORD_BYTES)
    return records[:, 1:], records[:, 0].astype(np.int64)


class _PickledDtype:
    """Stands in for numpy.dtype while unpickling: remembers its code, ignores the rest."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """The byte order of single bytes says nothing."""


class _PickledArray:
    """Stands in for numpy.ndarray while unpickling: accepts bytes of dtype u1 only."""

    array: Bytes

    def __init__(self, *_: object) -> None:
        """The real shape and bytes arrive in the state."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or dtype.code not in ("u1", "|u1"):
            raise pickle.UnpicklingError("array is not of dtype uint8")
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """What Python 3 writes for bytes at protocol 2; any other codec is refused."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding} is not allowed")
    return text.encode("latin1")


class _BatchUnpickler(pickle._Unpickler):
    """Knows only the names that CIFAR-10 batches use, and gives harmless stand-ins for them.

    The unpickler in Python, since the one in C fills memory up to any number of a memo entry.
    """

    allowed: dict[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): _encode_latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}: not allowed")
        return self.allowed[module, name]


def _unpickle_batch(path: Path) -> dict[str, Any]:
    expected = "a CIFAR-10 python batch: a pickled dict with data and labels"
    with reading(path, expected), path.open("rb") as handle:
        batch = _BatchUnpickler(handle, encoding="latin1").load()
    if not isinstance(batch, dict):
        refuse(path, f"holds a {type(batch).__name__}", expected)
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: value
        for key, value in batch.items()
    }


def _read_pickled_batch(path: Path) -> tuple[Bytes, Longs]:
    batch = _unpickle_batch(path)
    pickled, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pickled, _PickledArray) or not hasattr(pickled, "array"):
        refuse(path, 'has no uint8 array "data"', f"[N,{CIFAR_PIXELS}] bytes")
    y = _whole_numbers(labels) if isinstance(labels, list) else None
    if y is None:
        refuse(path, 'has no list "labels" of integers', "one label per image")
    x = pickled.array
    if x.ndim != 2 or x.shape[1] != CIFAR_PIXELS or not len(x):
        refuse(path, f"data has shape {list(x.shape)}", f"[N,{CIFAR_PIXELS}], N at least 1")
    if len(y) != len(x):
        refuse(path, f"{len(x)} images and {len(y)} labels", "as many of each")
    return x, y


def _read_batches(paths: Sequence[Path]) -> Split:
    images, labels = [], []
    for path in paths:
        x, y = _read_binary_batch(path) if path.suffix == ".bin" else _read_pickled_batch(path)
        _check_labels(path, y, num_classes=CIFAR_CLASSES, where="record")
        images.append(x)
        labels.append(y)
    y = np.concatenate(labels)
    x = np.concatenate(images).reshape(-1, 3, 32, 32)
    return Split(x=x, y=y, group=np.zeros(len(y), np.int32))


def read_cifar(train_files: Sequence[Path], test_files: Sequence[Path]) -> tuple[Split, Split]:
    """CIFAR-10 of either layout; files ending in .bin are binary, others pickled."""
    return _read_batches(train_files), _read_batches(test_files)
