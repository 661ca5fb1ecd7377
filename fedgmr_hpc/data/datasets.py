"""Data sets ready for training: decoded once, memory-mapped, normalised a batch at a time.

Shapes: N samples, B batch, C channels, H height, W width, T tokens. Pixels are bytes on disk and
become float32 only in `Dataset.images`. FEMNIST and digits are scaled to 0..1 and nothing else;
CIFAR-10 and ImageNet-100 are also normalised per channel and, in training, cropped and mirrored
(FedGMR experiments, data section).
The two `synthetic_` names are stand-ins, see synthetic.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.augment import augment_images, crop_and_resize
from fedgmr_hpc.data.cache import Reader, file_facts, make_cache_key, open_or_build, open_or_fill
from fedgmr_hpc.data.digests import fingerprint
from fedgmr_hpc.data.formats import Longs, Split, read_cifar, read_leaf
from fedgmr_hpc.data.imagenet import fill_imagenet, list_imagenet
from fedgmr_hpc.data.layouts import check_complete
from fedgmr_hpc.data.stackoverflow import (
    FIRST_WORD,
    MAX_TOKENS,
    NUM_TOKENS,
    first_target,
    read_stackoverflow,
)
from fedgmr_hpc.data.synthetic import make_synthetic, read_digits

Augment = Literal["none", "crop_flip", "resized_crop"]
SUBSET_SEED = 0  # one subset, and one stand-in, for every seed of a study
SUBSET_STEP = 1000  # keeps the stream apart from the attempts of make_partition
NOT_SCORED = -1  # the label of a token that neither loss nor accuracy counts


@dataclass(frozen=True)
class Kind:
    """What is known of a data set; of ImageNet-100, classes and shape follow from the files."""

    num_classes: int
    input_shape: tuple[int, ...]  # C,H,W; or the most tokens
    max_value: int = 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Augment = "none"
    synthetic_sizes: tuple[int, int] | None = None  # train, test
    is_text: bool = False
    top_k: int = 1
    has_groups: bool = False  # it says which writer or user a sample is of


_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_CIFAR_SHAPE = (3, 32, 32)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = {
    "digits": Kind(10, (1, 8, 8), max_value=16),
    "femnist": Kind(62, (1, 28, 28), has_groups=True),
    "cifar10": Kind(10, _CIFAR_SHAPE, 255, _CIFAR_MEAN, _CIFAR_STD, "crop_flip"),
    "imagenet100": Kind(100, (3, 168, 168), 255, _IMAGENET_MEAN, _IMAGENET_STD, "resized_crop"),
    "stackoverflow": Kind(NUM_TOKENS, (MAX_TOKENS,), is_text=True, top_k=5, has_groups=True),
    "synthetic_femnist": Kind(62, (1, 28, 28), synthetic_sizes=(35_948, 4_090), has_groups=True),
    "synthetic_cifar10": Kind(
        10, _CIFAR_SHAPE, 255, _CIFAR_MEAN, _CIFAR_STD, "crop_flip", (50_000, 10_000)
    ),
}
DATASET_NAMES = tuple(KINDS)


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set; its methods take one of its splits and sample numbers within it."""

    name: str
    train: Split
    test: Split
    kind: Kind
    first_target: int = FIRST_WORD  # smallest token that is scored

    @cached_property
    def fingerprint(self) -> str:
        """xxh3 of all samples, labels and groups, the same from a cache or not (digests.py)."""
        return fingerprint(self.train, self.test)

    @property
    def num_classes(self) -> int:
        """Classes, or entries of the vocabulary."""
        return self.kind.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """C,H,W of an image, or the most tokens of a sentence."""
        return self.kind.input_shape

    @property
    def augment(self) -> Augment:
        """How training images are changed at random."""
        return self.kind.augment

    @property
    def is_text(self) -> bool:
        """Whether samples are sentences."""
        return self.kind.is_text

    @property
    def top_k(self) -> int:
        """How many guesses the data set's accuracy allows."""
        return self.kind.top_k

    def batch(
        self, split: Split, index: Longs, rng: np.random.Generator | None = None
    ) -> tuple[Floats | Longs, Longs]:
        """Images float32 [B,C,H,W] and classes int64 [B], or `tokens`."""
        if self.is_text:
            return self.tokens(split, index)
        return self.images(split, index, rng), self.labels(split, index)

    @cached_property
    def _scale_shift(self) -> tuple[Floats, Floats]:
        """[C,1,1] each: (x / max - mean) / std as one product and one sum."""
        kind = self.kind
        mean, std = (np.array(values)[:, None, None] for values in (kind.mean, kind.std))
        return (1 / (kind.max_value * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def images(self, split: Split, index: Longs, rng: np.random.Generator | None = None) -> Floats:
        """float32 [B,C,H,W], normalised; a given rng also applies the data set's augmentation."""
        x = split.take(index)
        if rng is not None and self.augment != "none":
            x = _AUGMENT[self.augment](x, rng)
        scale, shift = self._scale_shift
        out: Floats = np.multiply(x, scale, dtype=np.float32)
        if shift.any():
            out += shift
        return out

    def labels(self, split: Split, index: Longs) -> Longs:
        """int64 [B]."""
        return split.y[index]

    def tokens(self, split: Split, index: Longs) -> tuple[Longs, Longs]:
        """Tokens 1..T and 2..T+1 of sentences, int64 [B,T] each; T is that of the longest one.

        Targets that are pads, or unknown words that are not scored, are -1.
        """
        x = split.take(index)
        x = x[:, : np.flatnonzero(x.any(axis=0))[-1] + 1].astype(np.int64)
        targets = x[:, 1:]
        return x[:, :-1].copy(), np.where(targets < self.first_target, NOT_SCORED, targets)

    def num_scored(self, split: Split, index: Longs) -> int:
        """What loss and accuracy are over: these samples, or their scored target tokens."""
        return int(split.y[index].sum()) if self.is_text else len(index)


_AUGMENT = {"crop_flip": augment_images, "resized_crop": crop_and_resize}


def load_dataset(data: DataConfig, *, seed: int, checks_all: bool = True) -> Dataset:
    """The data set of a configuration, from its cache, which is filled from the files when needed.

    `data.max_train` and `data.max_test` keep a random subset fixed by the seed, in the original
    order; a stand-in is drawn, and ImageNet-100 decoded, at that size.

    Args:
        checks_all: read and check the whole cache at once; else every sample when it is read.

    Raises:
        ValueError: files are missing or damaged, or the cache cannot be written or believed.
    """
    plan, reader = plan_dataset(data, seed=seed), Reader(data.cache_owner, checks_all)
    train, test = plan.open(Path(data.cache).expanduser() / plan.folder, reader=reader)
    return Dataset(
        name=data.name,
        train=_keep_some(train, data.max_train, client=0, seed=seed),
        test=_keep_some(test, data.max_test, client=1, seed=seed),
        kind=plan.kind,
        first_target=first_target(data.unknown_words),
    )


@dataclass(frozen=True)
class Plan:
    """The name of a cache folder, how to open or fill it, and what is then in it."""

    folder: str
    open: Callable[..., tuple[Split, Split]]  # (folder, reader=) of cache.py
    kind: Kind


def plan_dataset(data: DataConfig, *, seed: int) -> Plan:
    """Where the cache of a configuration's data set lies.

    Raises:
        ValueError: its files are missing, or cannot be looked at.
    """
    try:
        return _plan(data, seed)
    except OSError as error:
        line = must_be("data.root", "a readable folder", data.root, because=str(error))
        raise ValueError(line) from None


def _plan(data: DataConfig, seed: int) -> Plan:
    kind = KINDS[data.name]
    if kind.synthetic_sizes:
        return _plan_synthetic(data, kind, seed)
    if data.name == "digits":
        return _plan_build("digits", ["digits"], read_digits)
    train, test = check_complete(data.name, data.root)
    if data.name == "imagenet100":
        return _plan_imagenet(data, kind, train[0], seed)
    if data.name == "stackoverflow":
        keys = "max_train_users", "max_test_users", "max_user_samples", "unknown_words"
        choices = {key: getattr(data, key) for key in keys}
        read = partial(read_stackoverflow, train[0], test[0], **choices)
        facts = [*file_facts(train + test), *choices.values()]
        return _plan_build(data.name, facts, read)
    reader = read_leaf if data.name == "femnist" else read_cifar
    return _plan_build(data.name, file_facts(train + test), partial(reader, train, test))


def _plan_build(
    name: str, facts: Sequence[object], build: Callable[[], tuple[Split, Split]]
) -> Plan:
    folder = f"{name}-{make_cache_key(facts)}"
    return Plan(folder, partial(open_or_build, build=build), KINDS[name])


def _plan_synthetic(data: DataConfig, kind: Kind, seed: int) -> Plan:
    pairs = zip(kind.synthetic_sizes or (), (data.max_train, data.max_test), strict=True)
    num_train, num_test = (min(full, limit or full) for full, limit in pairs)
    build = partial(
        make_synthetic,
        kind.num_classes,
        kind.input_shape,
        num_train=num_train,
        num_test=num_test,
        writers=data.name == "synthetic_femnist",
        seed=seed,
    )
    return _plan_build(data.name, [data.name, num_train, num_test, seed], build)


def _plan_imagenet(data: DataConfig, kind: Kind, train_folder: Path, seed: int) -> Plan:
    source = list_imagenet(
        train_folder.parent,
        class_list=data.class_list,
        edge=data.image_size,
        max_train=data.max_train,
        max_test=data.max_test,
        seed=seed,
    )
    shape = (3, data.image_size, data.image_size)
    return Plan(
        folder=f"imagenet100-{make_cache_key(source.facts())}",
        open=partial(open_or_fill, fill=partial(fill_imagenet, source)),
        kind=replace(kind, num_classes=len(source.classes), input_shape=shape),
    )


def _keep_some(split: Split, limit: int | None, *, client: int, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    rng = make_rng(seed, "partition", client=client, step=SUBSET_STEP)
    kept = np.sort(rng.choice(len(split), limit, replace=False))
    y, group = split.y[kept], split.group[kept]
    for array in (y, group, kept):
        array.flags.writeable = False
    return replace(split, y=y, group=group, rows=kept)
