"""Data that needs no files: scikit-learn's real digits, and stand-ins that are NOT real data.

The stand-ins have the shapes, counts and classes of FEMNIST and CIFAR-10, so that speed, memory and
bytes can be measured without a download. Each class is a smooth random template; a sample is its
template, shifted by up to two pixels, half buried in uniform noise. They can be learnt, but an
accuracy reached on them says nothing about the real data set. Shapes: N samples, C channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.data.formats import Bytes, Split

NUM_WRITERS = 193  # of the 5 % LEAF sample the paper uses
SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
DIGITS_STEP = 1001  # keeps the stream apart from the attempts of make_partition
DIGITS_TEST_FRAC = 0.2
CHUNK = 4096


def read_digits() -> tuple[Split, Split]:
    """1,797 real handwritten digits, 8x8 pixels of 0..16, split 80/20 within each class."""
    # slow to import and optional, so only to fill the cache
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    digits = load_digits()
    x = digits.images.astype(np.uint8)[:, None]
    y = digits.target.astype(np.int64)
    is_test = np.zeros(len(y), dtype=bool)
    for label in range(10):
        own = np.flatnonzero(y == label)
        rng = make_rng(0, "partition", client=label, step=DIGITS_STEP)
        is_test[rng.permutation(own)[: round(DIGITS_TEST_FRAC * len(own))]] = True
    group = np.zeros(len(y), np.int32)
    train, test = (Split(x[part], y[part], group[part]) for part in (~is_test, is_test))
    return train, test


def _make_templates(rng: np.random.Generator, num_classes: int, shape: tuple[int, ...]) -> Bytes:
    """[classes,shifts,C,H,W] coarse random pictures, enlarged four times, at every shift."""
    channels, height, width = shape
    coarse = rng.integers(0, 256, (num_classes, channels, height // 4, width // 4), dtype=np.uint8)
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return np.stack([np.roll(fine, shift, axis=(2, 3)) for shift in SHIFTS], axis=1)


def _deal_writers(rng: np.random.Generator, num_samples: int) -> NDArray[np.int32]:
    """[N] writers in blocks of unequal size, as LEAF orders them."""
    share = rng.uniform(0.5, 1.5, NUM_WRITERS).cumsum()
    ends = np.floor(share / share[-1] * num_samples)
    return np.searchsorted(ends, np.arange(num_samples), side="right").astype(np.int32)


def _draw_split(
    templates: Bytes, num_samples: int, *, writers: bool, seed: int, step: int
) -> Split:
    rng = make_rng(seed, "synthetic", step=step)
    y = rng.integers(0, len(templates), num_samples)
    if writers:  # each writer has a habit: a fixed shift
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
) -> tuple[Split, Split]:
    """A stand-in of the given shape: templates shared by train and test, noise fresh per sample."""
    templates = _make_templates(make_rng(seed, "synthetic"), num_classes, shape)
    train = _draw_split(templates, num_train, writers=writers, seed=seed, step=1)
    test = _draw_split(templates, num_test, writers=writers, seed=seed, step=2)
    return train, test
