"""MNIST, Fashion-MNIST and EMNIST, from the idx files of their authors, plain or packed.

Pixels are scaled to 0..1; training images are not changed (docs/method.md#data-sets). EMNIST's
images lie on their side in its files and are set upright; its letters are numbered from 1 there and
from 0 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import file_facts
from fedgmr_hpc.data.formats.idx import read_split
from fedgmr_hpc.data.source import DatasetSource, Files, Plan, Traits, plan_build, register
from fedgmr_hpc.data.splits import Splits

EDGE = 28
TRAITS = Traits(10, (1, EDGE, EDGE))
EMNIST_CLASSES = {
    "balanced": 47,
    "bymerge": 47,
    "byclass": 62,
    "letters": 26,
    "digits": 10,
    "mnist": 10,
}
MNIST_INSTRUCTIONS = """\
MNIST is published at http://yann.lecun.com/exdb/mnist. Put its four files, plain or as .gz, in ROOT
or one of its folders mnist and MNIST/raw:
  train-images-idx3-ubyte, train-labels-idx1-ubyte
  t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"""
FASHION_INSTRUCTIONS = """\
Fashion-MNIST is published at https://github.com/zalandoresearch/fashion-mnist. Put its four files,
plain or as .gz, in ROOT or one of its folders fashion_mnist and FashionMNIST/raw:
  train-images-idx3-ubyte, train-labels-idx1-ubyte
  t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"""
EMNIST_INSTRUCTIONS = """\
EMNIST is published at https://www.nist.gov/itl/products-and-services/emnist-dataset. Unpack its
archive gzip.zip in ROOT or ROOT/emnist; the files of this split, plain or as .gz, are
  gzip/emnist-SPLIT-train-images-idx3-ubyte, emnist-SPLIT-train-labels-idx1-ubyte
  gzip/emnist-SPLIT-test-images-idx3-ubyte, emnist-SPLIT-test-labels-idx1-ubyte"""


@dataclass(frozen=True)
class Layout:
    """Where the files of a data set lie, and what they are called.

    Attributes:
        folders: below the root, in the order in which they are tried.
        parts: what the names of the training and of the test files begin with.
    """

    folders: tuple[str, ...]
    parts: tuple[str, str] = ("train", "t10k")

    def find(self, root: Path) -> Files:
        """List images and labels of each split, in the first folder that has one of them."""
        found = (self._list(root / folder) for folder in self.folders)
        there = (files for files in found if any(path.is_file() for path in files[0] + files[1]))
        return next(there, self._list(root / self.folders[0]))

    def _list(self, folder: Path) -> Files:
        train, test = (
            [_packed_or_not(folder / f"{part}-{what}") for what in ("images-idx3", "labels-idx1")]
            for part in self.parts
        )
        return train, test


def _packed_or_not(stem: Path) -> Path:
    """Return the file of this name, or its .gz where only that is there."""
    plain = stem.with_name(f"{stem.name}-ubyte")
    packed = plain.with_name(f"{plain.name}.gz")
    return packed if packed.is_file() and not plain.is_file() else plain


def read_mnist(train_files: Sequence[Path], test_files: Sequence[Path], **choices: Any) -> Splits:
    """Read both splits, images and labels each; the choices are those of `read_split`."""
    read = partial(read_split, edge=EDGE, **choices)
    return read(*train_files), read(*test_files)


def _plan(data: DataConfig, files: Files, seed: int, *, traits: Traits, **choices: Any) -> Plan:
    train, test = files
    facts, paths = file_facts(train + test), {"train_files": train, "test_files": test}
    choices |= {"num_classes": traits.num_classes}
    return plan_build(data.name, traits, facts, read_mnist, **paths, **choices)


def _source(name: str, folders: tuple[str, ...], instructions: str) -> DatasetSource:
    find = Layout(folders).find
    return DatasetSource(name, TRAITS, partial(_plan, traits=TRAITS), find, instructions)


def _emnist(split: str, num_classes: int) -> DatasetSource:
    layout = Layout(
        ("gzip", "emnist/gzip", "emnist", ".", "EMNIST/raw"),
        (f"emnist-{split}-train", f"emnist-{split}-test"),
    )
    traits = replace(TRAITS, num_classes=num_classes)
    first = 1 if split == "letters" else 0
    plan = partial(_plan, traits=traits, first_label=first, is_transposed=True)
    instructions = EMNIST_INSTRUCTIONS.replace("SPLIT", split)
    return DatasetSource(f"emnist_{split}", traits, plan, layout.find, instructions)


register(_source("mnist", ("mnist", "MNIST/raw", "."), MNIST_INSTRUCTIONS))
register(_source("fashion_mnist", ("fashion_mnist", "FashionMNIST/raw", "."), FASHION_INSTRUCTIONS))
for split, num_classes in EMNIST_CLASSES.items():
    register(_emnist(split, num_classes))
