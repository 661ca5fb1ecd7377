"""What a data set must say of itself: its properties, its official files, and who reads them.

Each data set is a module that registers one `DatasetSource`, or several of one kind. Nothing is
downloaded: the source says where the official files lie under `data.root` and how to get them.

Shapes: N samples, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.config.choices.own_data import Augment
from fedgmr_hpc.config.choices.registry import DATASETS
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import make_cache_key, open_or_build
from fedgmr_hpc.data.splits import Longs, Split, Splits
from fedgmr_hpc.data.untrusted import refuse

Files = tuple[list[Path], list[Path]]  # train, test
UNKNOWN = 0  # classes of a data set whose files say how many there are
# left between the files of others by file managers, archives, notebooks and file systems
LITTER = ("__macosx", "lost+found", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin")


@dataclass(frozen=True)
class Traits:
    """What is known of a data set before its files are read.

    Attributes:
        num_classes: classes, or entries of the vocabulary; `UNKNOWN` until the samples are there.
        input_shape: [C, H, W] of an image, or the most tokens [T] of a sentence; empty until the
            samples are there.
        max_value: value of a pixel that is scaled to 1.
        mean: [C] subtracted from the scaled pixels.
        std: [C] by which the difference is divided.
        augment: how training images are changed at random.
        is_text: whether samples are sentences.
        top_k: how many guesses the data set's accuracy allows.
        has_groups: whether it is known which writer or user a sample is from.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    max_value: int = 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Augment = "none"
    is_text: bool = False
    top_k: int = 1
    has_groups: bool = False


def complete(traits: Traits, train: Split, test: Split) -> Traits:
    """Return traits with what only the samples say of themselves."""
    num_classes = traits.num_classes or 1 + max(int(train.y.max()), int(test.y.max()))
    shape = traits.input_shape or train.x.shape[1:]
    has_groups = traits.has_groups or bool(train.group.any())
    return replace(traits, num_classes=num_classes, input_shape=shape, has_groups=has_groups)


@dataclass(frozen=True)
class Plan:
    """How a configured data set is opened.

    Attributes:
        folder: name of its cache folder, which depends on all that its content depends on.
        open: opens the cache (folder, reader=), decoding the files first where necessary.
        traits: of the data set as configured, as far as they are known before it is open.
    """

    folder: str
    open: Callable[..., Splits]
    traits: Traits


@dataclass(frozen=True)
class DatasetSource:
    """One data set that a configuration can name.

    Attributes:
        name: value of `data.name`.
        traits: with the default configuration.
        plan: makes the plan from the configuration, the official files and the seed.
        find_files: lists the official files under a root, in reading order and whether they exist
            or not; a pattern stands for a list that is empty. None where no files are needed.
        instructions: where the files are published, and where to put them under ROOT.
        is_there: whether one of the listed paths exists, as a file or a folder.
    """

    name: str
    traits: Traits
    plan: Callable[[DataConfig, Files, int], Plan]
    find_files: Callable[[Path], Files] | None = None
    instructions: str = ""
    is_there: Callable[[Path], bool] = Path.is_file


def register(source: DatasetSource) -> None:
    """Register a built-in data set under its name, which choices/registry.py knows."""
    DATASETS.add(source.name, source, DATASETS.homes[source.name])


def plan_build(
    name: str, traits: Traits, facts: Sequence[object], build: Callable[..., Splits], **choices: Any
) -> Plan:
    """Plan a data set that is decoded in memory by `build(**choices)`.

    Args:
        name: of the data set.
        traits: of the data set.
        facts: what its content depends on.
        build: decodes the training and test split.
        choices: arguments of `build`.
    """
    folder = f"{name}-{make_cache_key(facts)}"
    return Plan(folder, partial(open_or_build, build=partial(build, **choices)), traits)


def is_data(name: str) -> bool:
    """Return False for hidden files and folders, such as ._NAME of macOS archives, and litter."""
    return not name.startswith(".") and name.lower() not in LITTER


def check_labels(
    path: Path | str, labels: Longs, *, num_classes: int, where: str, first: int = 0
) -> None:
    """Refuse a file with a label outside first..first+num_classes-1.

    Args:
        path: the file.
        labels: [N] its labels.
        num_classes: of the data set.
        where: what a label's position counts, such as "record".
        first: label of the first class.
    """
    bad = np.flatnonzero((labels < first) | (labels >= first + num_classes))
    if len(bad):
        found = f"{where} {bad[0]} has label {labels[bad[0]]}"
        refuse(path, found, f"{first}..{first + num_classes - 1}")


def whole_numbers(values: list[Any]) -> Longs | None:
    """Return the values as an array [N], or None if one of them is no integer of 64 bits."""
    if not all(type(value) is int and abs(value) < 2**63 for value in values):
        return None
    return np.array(values, dtype=np.int64)
