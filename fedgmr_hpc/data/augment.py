"""Random augmentation of training images, a function of the given stream alone.

CIFAR-10 is shifted and mirrored, ImageNet-100 cropped at random sizes and mirrored
(docs/method.md#data-sets).

Shapes: B batch, C channels, H height, W width; images are bytes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view

from fedgmr_hpc.data.splits import Bytes

CROP_PAD = 4
AREA_FRAC = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)  # width over height
NUM_TRIES = 10


def augment_images(x: Bytes, rng: np.random.Generator) -> Bytes:
    """Shift each image of [B, C, H, W] by up to 4 pixels over zeros, and mirror half of them."""
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


def crop_and_resize(x: Bytes, rng: np.random.Generator) -> Bytes:
    """Crop a random box from each image of [B, C, H, W], enlarge it to [H, W], mirror half of them.

    Boxes have 0.08 to 1 of the area, and width over height is between 3/4 and 4/3. Since boxes are
    never larger than the result, plain bilinear interpolation needs no smoothing.
    """
    num, _, height, width = x.shape
    boxes = _draw_boxes(num, height, width, rng)
    mirrored = rng.integers(0, 2, (num,))
    out = np.empty_like(x)
    for at, (top, left, rows, columns) in enumerate(boxes):
        box = torch.from_numpy(x[at])[None, :, top : top + rows, left : left + columns]
        resized = F.interpolate(box, size=(height, width), mode="bilinear").numpy()[0]
        out[at] = resized[:, :, ::-1] if mirrored[at] else resized
    return out


def _draw_boxes(num: int, height: int, width: int, rng: np.random.Generator) -> list[list[int]]:
    """Draw boxes [B, 4]: top, left, rows and columns.

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
    boxes: list[list[int]] = np.stack([top, left, rows, columns], axis=1).tolist()
    return boxes
