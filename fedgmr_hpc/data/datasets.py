"""Data sets ready for training: decoded once, memory-mapped, normalised a batch at a time.

Shapes: N samples, B batch, C channels, H height, W width. Pixels are bytes on disk and become
float32 only in `Dataset.images`. FEMNIST and digits are scaled to 0..1 and nothing else; CIFAR-10
is also normalised per channel and, in training, cropped and flipped (FedGMR experiments, data
section).
The two `synthetic_` names are stand-ins, see synthetic.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedgmr_hpc.data.cache import file_facts, make_fingerprint, open_or_build
from fedgmr_hpc.data.formats import Bytes, Longs, Split, read_cifar, read_leaf
from fedgmr_hpc.data.layouts import LAYOUTS, check_complete, describe_missing
from fedgmr_hpc.data.synthetic import make_synthetic, read_digits
from fedgmr_hpc.records import Floats, make_rng

Augment = Literal["none", "crop_flip"]
CROP_PAD = 4
SUBSET_STEP = 1000  # keeps the stream apart from the attempts of make_partition


@dataclass(frozen=True)
class Kind:
    """What is known of a data set before any file is read."""

    num_classes: int
    input_shape: tuple[int, int, int]  # C,H,W
    max_value: int = 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Augment = "none"
    synthetic_sizes: tuple[int, int] | None = None  # train, test


_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_CIFAR_SHAPE = (3, 32, 32)
KINDS = {
    "digits": Kind(10, (1, 8, 8), max_value=16),
    "femnist": Kind(62, (1, 28, 28)),
    "cifar10": Kind(10, _CIFAR_SHAPE, 255, _CIFAR_MEAN, _CIFAR_STD, "crop_flip"),
    "synthetic_femnist": Kind(62, (1, 28, 28), synthetic_sizes=(35_948, 4_090)),
    "synthetic_cifar10": Kind(
        10, _CIFAR_SHAPE, 255, _CIFAR_MEAN, _CIFAR_STD, "crop_flip", (50_000, 10_000)
    ),
}
DATASET_NAMES = tuple(KINDS)


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set; `images` and `labels` take one of its splits and sample numbers within it."""

    name: str
    train: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, int, int]
    max_value: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment

    @cached_property
    def _scale_shift(self) -> tuple[Floats, Floats]:
        """[C,1,1] each: (x / max - mean) / std as one product and one sum."""
        mean, std = (np.array(values)[:, None, None] for values in (self.mean, self.std))
        return (1 / (self.max_value * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def images(self, split: Split, index: Longs, rng: np.random.Generator | None = None) -> Floats:
        """float32 [B,C,H,W], normalised; a given rng also applies the data set's augmentation."""
        x = split.x[index]
        if rng is not None and self.augment == "crop_flip":
            x = augment_images(x, rng)
        scale, shift = self._scale_shift
        out = np.multiply(x, scale, dtype=np.float32)
        if shift.any():
            out += shift
        return out

    def labels(self, split: Split, index: Longs) -> Longs:
        """int64 [B]."""
        return split.y[index]


def augment_images(x: Bytes, rng: np.random.Generator) -> Bytes:
    """Each image of [B,C,H,W] moved by up to 4 pixels over a zero border, half of them mirrored."""
    num, channels, height, width = x.shape
    pad = CROP_PAD
    wide = np.zeros((num, channels, height + 2 * pad, width + 2 * pad), np.uint8)
    wide[:, :, pad : pad + height, pad : pad + width] = x
    top, left = rng.integers(0, 2 * pad + 1, (2, num))
    mirrored = np.flatnonzero(rng.integers(0, 2, num))
    windows = sliding_window_view(wide, (height, width), axis=(2, 3))
    out = windows[np.arange(num), :, top, left]
    out[mirrored] = out[mirrored, :, :, ::-1]
    return out


def load_dataset(
    name: str,
    *,
    root: str | None,
    cache: str,
    max_train: int | None,
    max_test: int | None,
    seed: int,
) -> Dataset:
    """The data set `name`, from its cache under `cache`, which is filled from `root` when needed.

    `max_train` and `max_test` keep a random subset fixed by the seed, in the original order; a
    stand-in is drawn at that size.
    """
    kind = _find_kind(name)
    limits = {"data.max_train": max_train, "data.max_test": max_test}
    folder, build = _plan(name, root=root, limits=limits, seed=seed)
    train, test = open_or_build(Path(cache).expanduser() / folder, build)
    return Dataset(
        name=name,
        train=_keep_some(train, max_train, client=0, seed=seed),
        test=_keep_some(test, max_test, client=1, seed=seed),
        num_classes=kind.num_classes,
        input_shape=kind.input_shape,
        max_value=kind.max_value,
        mean=kind.mean,
        std=kind.std,
        augment=kind.augment,
    )


def _find_kind(name: str) -> Kind:
    if name not in KINDS:
        raise ValueError(f"data.name: got {name!r}, allowed: {', '.join(DATASET_NAMES)}")
    return KINDS[name]


Limits = dict[str, int | None]  # dotted key -> most samples of train and of test
_NO_LIMITS: Limits = {"data.max_train": None, "data.max_test": None}
Plan = tuple[str, Callable[[], tuple[Split, Split]]]  # name of the cache folder, how to fill it


def _plan(name: str, *, root: str | None, limits: Limits, seed: int) -> Plan:
    for key, limit in limits.items():
        if limit is not None and limit < 1:
            raise ValueError(f"{key}: got {limit}, allowed: at least 1, or null for all samples")
    if KINDS[name].synthetic_sizes:
        return _plan_synthetic(name, limits, seed)
    if name == "digits":
        return f"digits-{make_fingerprint(['digits'])}", read_digits
    train, test = check_complete(name, root)
    read = read_leaf if name == "femnist" else read_cifar
    return f"{name}-{make_fingerprint(file_facts(train + test))}", partial(read, train, test)


def _plan_synthetic(name: str, limits: Limits, seed: int) -> Plan:
    kind = KINDS[name]
    pairs = zip(kind.synthetic_sizes or (), limits.values(), strict=True)
    num_train, num_test = (min(full, limit or full) for full, limit in pairs)
    build = partial(
        make_synthetic,
        kind.num_classes,
        kind.input_shape,
        num_train=num_train,
        num_test=num_test,
        writers=name == "synthetic_femnist",
        seed=seed,
    )
    return f"{name}-{make_fingerprint([name, num_train, num_test, seed])}", build


def _keep_some(split: Split, limit: int | None, *, client: int, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    rng = make_rng(seed, "partition", client=client, step=SUBSET_STEP)
    kept = np.sort(rng.choice(len(split), limit, replace=False))
    arrays = split.x[kept], split.y[kept], split.group[kept]
    for array in arrays:
        array.flags.writeable = False
    return Split(*arrays)


def prepare(name: str, root: str | None, cache: str) -> str:
    """Text for a person: what is missing and where it goes, or what the now filled cache holds."""
    kind = _find_kind(name)
    missing = describe_missing(name, root)
    if missing:
        lines = [f"{name}: not complete, missing:", *(f"  {path}" for path in missing)]
        return "\n".join([*lines, LAYOUTS[name]])
    folder_name, build = _plan(name, root=root, limits=_NO_LIMITS, seed=0)
    folder = Path(cache).expanduser() / folder_name
    train, test = open_or_build(folder, build)
    shape = "x".join(map(str, kind.input_shape))
    size = sum(path.stat().st_size for path in folder.iterdir())
    lines = [
        f"{name}: ready, {kind.num_classes} classes, images {shape}",
        _describe_split("train", train),
        _describe_split("test", test),
        f"  cache: {folder}, {size / 1e6:.1f} MB",
    ]
    return "\n".join(lines)


def _describe_split(part: str, split: Split) -> str:
    text = f"  {part}: {len(split):,} samples of {len(np.unique(split.y))} classes"
    writers, sizes = np.unique(split.group, return_counts=True)
    if len(writers) == 1:
        return text
    spread = f"{sizes.min()} / {np.median(sizes):g} / {sizes.max()}"
    return f"{text}, {len(writers)} writers with {spread} samples each (min / median / max)"
