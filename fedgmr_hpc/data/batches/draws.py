"""What is drawn for a batch: its samples, and how each image is changed at random.

CIFAR-10 is shifted and mirrored, ImageNet-100 cropped at random sizes and mirrored
(docs/method.md#data-sets). Draws are a function of the given stream alone, and made on the host
wherever the batch is made.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedgmr_hpc.config.choices.own_data import Augment
from fedgmr_hpc.data.splits import Longs

CROP_PAD = 4
AREA_FRAC = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)  # width over height
NUM_TRIES = 10


@dataclass(frozen=True, eq=False, slots=True)
class BatchSpec:
    """What decides the content of a batch.

    Attributes:
        index: [B] positions of its samples in their split.
        draws: [B, n] what `draw_changes` has drawn for each image; None for images as they are.
    """

    index: Longs
    draws: Longs | None = None


def draw_changes(
    augment: Augment, num: int, height: int, width: int, rng: np.random.Generator
) -> Longs | None:
    """Draw how B = `num` images of [H, W] are changed.

    Returns:
        For `crop_flip` [B, 3]: top, left, mirrored or not. For `resized_crop` [B, 5]: top, left,
        rows, columns, mirrored or not. For `none` None.
    """
    if augment == "none":
        return None
    if augment == "crop_flip":
        return _draw_shifts(num, rng)
    return _draw_crops(num, height, width, rng)


def _draw_shifts(num: int, rng: np.random.Generator) -> Longs:
    """Draw where images begin within a margin of `CROP_PAD` zeros on all sides."""
    top, left = rng.integers(0, 2 * CROP_PAD + 1, (2, num))
    return np.stack([top, left, rng.integers(0, 2, num)], axis=1)


def _draw_crops(num: int, height: int, width: int, rng: np.random.Generator) -> Longs:
    """Draw boxes of 0.08 to 1 of the area whose width over height is between 3/4 and 4/3.

    Of ten boxes drawn for each image the first that fits is taken, else the whole image.
    """
    area = height * width * rng.uniform(*AREA_FRAC, (NUM_TRIES, num))
    ratio = np.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), (NUM_TRIES, num)))
    rows, columns = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (rows >= 1) & (rows <= height) & (columns >= 1) & (columns <= width)
    first, each = fits.argmax(axis=0), np.arange(num)
    fits_at_all = fits[first, each]
    rows = np.where(fits_at_all, rows[first, each], height).astype(np.int64)
    columns = np.where(fits_at_all, columns[first, each], width).astype(np.int64)
    place = rng.uniform(size=(2, num))
    top, left = (place * np.stack([height - rows + 1, width - columns + 1])).astype(np.int64)
    return np.stack([top, left, rows, columns, rng.integers(0, 2, (num,))], axis=1)
