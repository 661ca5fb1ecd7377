"""Stand-ins for FEMNIST and CIFAR-10 that need no files. They are NOT real data.

They have the shapes, sample counts and classes of the real data sets, so that speed, memory and
bytes can be measured without a download. Each class is a smooth random template; a sample is its
template, shifted by up to two pixels and half buried in uniform noise. Models can learn them, but
an accuracy reached on them says nothing about the real data set.

Shapes: N samples, C channels, H height, W width.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data import cifar10, femnist
from fedgmr_hpc.data.source import DatasetSource, Files, Plan, Traits, plan_build, register
from fedgmr_hpc.data.splits import Bytes, Split, Splits

NUM_WRITERS = 193  # of the 5 % LEAF sample the paper uses
SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
CHUNK = 4096  # samples drawn at a time


def _make_templates(rng: np.random.Generator, num_classes: int, shape: tuple[int, ...]) -> Bytes:
    """Draw coarse pictures [classes, shifts, C, H, W], enlarged four times, at every shift."""
    channels, height, width = shape
    coarse = rng.integers(0, 256, (num_classes, channels, height // 4, width // 4), dtype=np.uint8)
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return np.stack([np.roll(fine, shift, axis=(2, 3)) for shift in SHIFTS], axis=1)


def _deal_writers(rng: np.random.Generator, num_samples: int) -> NDArray[np.int32]:
    """Return the writer [N] of each sample, in blocks of unequal size as LEAF orders them."""
    share = rng.uniform(0.5, 1.5, NUM_WRITERS).cumsum()
    ends = np.floor(share / share[-1] * num_samples)
    return np.searchsorted(ends, np.arange(num_samples), side="right").astype(np.int32)


def _draw_split(
    templates: Bytes, num_samples: int, *, writers: bool, seed: int, step: int
) -> Split:
    rng = make_rng(seed, "synthetic", step=step)
    y = rng.integers(0, len(templates), num_samples)
    if writers:  # a writer's habit is one fixed shift
        group = _deal_writers(rng, num_samples)
        shift = group.astype(np.int64) % len(SHIFTS)
    else:
        group = np.zeros(num_samples, np.int32)
        shift = rng.integers(0, len(SHIFTS), num_samples)
    x = np.empty((num_samples, *templates.shape[2:]), np.uint8)
    for start in range(0, num_samples, CHUNK):
        part = slice(start, start + CHUNK)
        noise = rng.integers(0, 256, x[part].shape, dtype=np.uint8)
        x[part] = (templates[y[part], shift[part]] >> 1) + (noise >> 1)
    return Split(x, y, group)


def make_synthetic(
    num_classes: int,
    shape: tuple[int, ...],
    *,
    num_train: int,
    num_test: int,
    writers: bool,
    seed: int,
) -> Splits:
    """Draw a stand-in; both splits share the templates, every sample has its own noise.

    Args:
        num_classes: number of templates.
        shape: [C, H, W] of an image, height and width divisible by four.
        num_train: training samples.
        num_test: test samples.
        writers: whether samples belong to writers, each with a shift of its own.
        seed: fixes the stand-in.
    """
    templates = _make_templates(make_rng(seed, "synthetic"), num_classes, shape)
    train = _draw_split(templates, num_train, writers=writers, seed=seed, step=1)
    test = _draw_split(templates, num_test, writers=writers, seed=seed, step=2)
    return train, test


def _plan(
    data: DataConfig, files: Files, seed: int, *, traits: Traits, sizes: tuple[int, int]
) -> Plan:
    limits = zip(sizes, (data.max_train, data.max_test), strict=True)
    num_train, num_test = (min(full, limit or full) for full, limit in limits)
    return plan_build(
        data.name,
        traits,
        [data.name, num_train, num_test, seed],
        make_synthetic,
        num_classes=traits.num_classes,
        shape=traits.input_shape,
        num_train=num_train,
        num_test=num_test,
        writers=traits.has_groups,
        seed=seed,
    )


def _stand_in(name: str, traits: Traits, sizes: tuple[int, int]) -> DatasetSource:
    """Return the source of a stand-in with these numbers of training and test samples."""
    return DatasetSource(name, traits, partial(_plan, traits=traits, sizes=sizes))


register(_stand_in("synthetic_femnist", femnist.TRAITS, (35_948, 4_090)))
register(_stand_in("synthetic_cifar10", cifar10.TRAITS, (50_000, 10_000)))
