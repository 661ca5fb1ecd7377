"""CIFAR-10: the binary and the pickled batches of its authors (Krizhevsky, 2009).

Training images are moved and mirrored at random, and all are normalised by channel
(docs/method.md#data-sets). The pickled batches are read without executing anything from them.

Shapes: N samples.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import file_facts
from fedgmr_hpc.data.source import (
    DatasetSource,
    Files,
    Plan,
    Traits,
    check_labels,
    plan_build,
    whole_numbers,
)
from fedgmr_hpc.data.splits import Bytes, Longs, Split, Splits
from fedgmr_hpc.data.untrusted import reading, refuse

NUM_PIXELS = 3072
RECORD_BYTES = 1 + NUM_PIXELS
NUM_CLASSES = 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
TRAITS = Traits(NUM_CLASSES, (3, 32, 32), 255, MEAN, STD, "crop_flip")
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
FOLDERS = {"cifar-10-batches-bin": ".bin", "cifar-10-batches-py": ""}
INSTRUCTIONS = """\
CIFAR-10 is published at https://www.cs.toronto.edu/~kriz/cifar.html.
Unpack one of its two archives in ROOT:
  cifar-10-binary.tar.gz  -> ROOT/cifar-10-batches-bin/data_batch_1.bin ... _5.bin, test_batch.bin
  cifar-10-python.tar.gz  -> ROOT/cifar-10-batches-py/data_batch_1 ... _5, test_batch
(ROOT may also be that folder itself.)"""


def find_files(root: Path) -> Files:
    """List the files of the first layout of which one is there, else those of the binary one."""
    places = [(root / folder, suffix) for folder, suffix in FOLDERS.items()]
    places += [(root, suffix) for suffix in FOLDERS.values()]
    layouts = [
        ([folder / f"{name}{suffix}" for name in TRAIN_FILES], [folder / f"test_batch{suffix}"])
        for folder, suffix in places
    ]
    found = (files for files in layouts if any(path.is_file() for path in files[0] + files[1]))
    return next(found, layouts[0])


def _read_binary_batch(path: Path) -> tuple[Bytes, Longs]:
    with reading(path, "a CIFAR-10 binary batch"):
        raw = np.fromfile(path, dtype=np.uint8)
    if not raw.size or raw.size % RECORD_BYTES:
        expected = f"a positive whole number of {RECORD_BYTES}-byte records"
        refuse(path, f"{raw.size} bytes", f"{expected} (1 label + {NUM_PIXELS} pixels)")
    records = raw.reshape(-1, RECORD_BYTES)
    return records[:, 1:], records[:, 0].astype(np.int64)


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
    """Unpickler that knows only the names in CIFAR-10 batches and maps them to harmless stand-ins.

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
        refuse(path, 'has no uint8 array "data"', f"[N,{NUM_PIXELS}] bytes")
    y = whole_numbers(labels) if isinstance(labels, list) else None
    if y is None:
        refuse(path, 'has no list "labels" of integers', "one label per image")
    x = pickled.array
    if x.ndim != 2 or x.shape[1] != NUM_PIXELS or not len(x):
        refuse(path, f"data has shape {list(x.shape)}", f"[N,{NUM_PIXELS}], N at least 1")
    if len(y) != len(x):
        refuse(path, f"{len(x)} images and {len(y)} labels", "as many of each")
    return x, y


def _read_batches(paths: Sequence[Path]) -> Split:
    images, labels = [], []
    for path in paths:
        x, y = _read_binary_batch(path) if path.suffix == ".bin" else _read_pickled_batch(path)
        check_labels(path, y, num_classes=NUM_CLASSES, where="record")
        images.append(x)
        labels.append(y)
    y = np.concatenate(labels)
    x = np.concatenate(images).reshape(-1, 3, 32, 32)
    return Split(x=x, y=y, group=np.zeros(len(y), np.int32))


def read_cifar(train_files: Sequence[Path], test_files: Sequence[Path]) -> Splits:
    """Read CIFAR-10; files that end in .bin are binary batches, others pickled ones.

    Raises:
        BadFile: a file is damaged.
    """
    return _read_batches(train_files), _read_batches(test_files)


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    train, test = files
    facts = file_facts(train + test)
    return plan_build(data.name, TRAITS, facts, read_cifar, train_files=train, test_files=test)


CIFAR10 = DatasetSource("cifar10", TRAITS, _plan, find_files, INSTRUCTIONS)
