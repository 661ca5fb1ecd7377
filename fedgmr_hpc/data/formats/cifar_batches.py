"""The binary and the pickled batches of CIFAR's authors (Krizhevsky, 2009).

The pickled batches are read without executing anything from them.

Shapes: N samples.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.data.source import Files, check_labels, whole_numbers
from fedgmr_hpc.data.splits import Bytes, Longs, Split, Splits
from fedgmr_hpc.data.untrusted import reading, refuse

SHAPE = (3, 32, 32)
NUM_PIXELS = 3072


@dataclass(frozen=True)
class Batches:
    """How the batches of one data set are written.

    Attributes:
        name: of the data set, for messages.
        num_classes: of its labels.
        label_bytes: before the pixels of a binary record; the last one is the label.
        label_key: of the labels in a pickled batch.
    """

    name: str
    num_classes: int
    label_bytes: int
    label_key: str

    @property
    def record_bytes(self) -> int:
        """Bytes of a binary record."""
        return self.label_bytes + NUM_PIXELS

    def describe_record(self) -> str:
        """Say what a binary record consists of."""
        labels = f"{self.label_bytes} label{'s' if self.label_bytes > 1 else ''}"
        return f"({labels} + {NUM_PIXELS} pixels)"


def _read_binary_batch(path: Path, kind: Batches) -> tuple[Bytes, Longs]:
    with reading(path, f"a {kind.name} binary batch"):
        raw = np.fromfile(path, dtype=np.uint8)
    if not raw.size or raw.size % kind.record_bytes:
        expected = f"a positive whole number of {kind.record_bytes}-byte records"
        refuse(path, f"{raw.size} bytes", f"{expected} {kind.describe_record()}")
    records = raw.reshape(-1, kind.record_bytes)
    return records[:, kind.label_bytes :], records[:, kind.label_bytes - 1].astype(np.int64)


class _PickledDtype:
    """Stand-in for numpy.dtype while unpickling; remembers the type code, ignores the rest."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore the state: single bytes have no byte order."""


class _PickledArray:
    """Stand-in for numpy.ndarray while unpickling; accepts bytes of dtype u1 only."""

    array: Bytes

    def __init__(self, *_: object) -> None:
        """Ignore the arguments: the real shape and bytes arrive with the state."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(dtype, _PickledDtype) or dtype.code not in ("u1", "|u1"):
            raise pickle.UnpicklingError("array is not of dtype uint8")
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        self.array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """Decode what Python 3 writes for bytes at protocol 2; refuse any other codec."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding} is not allowed")
    return text.encode("latin1")


class _BatchUnpickler(pickle._Unpickler):
    """Unpickler that knows only the names in CIFAR batches and maps them to harmless stand-ins.

    It derives from the unpickler written in Python, because the one in C allocates memory for any
    memo index that a damaged file names.
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


def _unpickle_batch(path: Path, kind: Batches) -> dict[str, Any]:
    expected = f"a {kind.name} python batch: a pickled dict with data and {kind.label_key}"
    with reading(path, expected), path.open("rb") as handle:
        batch = _BatchUnpickler(handle, encoding="latin1").load()
    if not isinstance(batch, dict):
        refuse(path, f"holds a {type(batch).__name__}", expected)
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: value
        for key, value in batch.items()
    }


def _read_pickled_batch(path: Path, kind: Batches) -> tuple[Bytes, Longs]:
    batch = _unpickle_batch(path, kind)
    pickled, labels = batch.get("data"), batch.get(kind.label_key)
    if not isinstance(pickled, _PickledArray) or not hasattr(pickled, "array"):
        refuse(path, 'has no uint8 array "data"', f"[N,{NUM_PIXELS}] bytes")
    y = whole_numbers(labels) if isinstance(labels, list) else None
    if y is None:
        refuse(path, f'has no list "{kind.label_key}" of integers', "one label per image")
    x = pickled.array
    if x.ndim != 2 or x.shape[1] != NUM_PIXELS or not len(x):
        refuse(path, f"data has shape {list(x.shape)}", f"[N,{NUM_PIXELS}], N at least 1")
    if len(y) != len(x):
        refuse(path, f"{len(x)} images and {len(y)} labels", "as many of each")
    return x, y


def read_cifar(kind: Batches, train_files: Sequence[Path], test_files: Sequence[Path]) -> Splits:
    """Read both splits; files that end in .bin are binary batches, others pickled ones.

    Raises:
        BadFile: a file is damaged.
    """
    return _read_batches(train_files, kind), _read_batches(test_files, kind)


def _read_batches(paths: Sequence[Path], kind: Batches) -> Split:
    images, labels = [], []
    for path in paths:
        read = _read_binary_batch if path.suffix == ".bin" else _read_pickled_batch
        x, y = read(path, kind)
        check_labels(path, y, num_classes=kind.num_classes, where="record")
        images.append(x)
        labels.append(y)
    y = np.concatenate(labels)
    x = np.concatenate(images).reshape(-1, *SHAPE)
    return Split(x=x, y=y, group=np.zeros(len(y), np.int32))


def find_batches(
    root: Path, folders: dict[str, str], train: Sequence[str], test: Sequence[str]
) -> Files:
    """List the files of the first layout of which one is there, else those of the first one.

    Args:
        root: the folder of the layouts' folders, or one of these itself.
        folders: name of each layout's folder, and the ending of its files.
        train: names of the training files without their ending.
        test: names of the test files.
    """
    places = [(root / folder, suffix) for folder, suffix in folders.items()]
    places += [(root, suffix) for suffix in folders.values()]
    layouts = [
        (
            [folder / f"{name}{suffix}" for name in train],
            [folder / f"{name}{suffix}" for name in test],
        )
        for folder, suffix in places
    ]
    found = (files for files in layouts if any(path.is_file() for path in files[0] + files[1]))
    return next(found, layouts[0])
