"""The changes that were drawn for images, carried out in host memory.

On a CPU this is faster than the operations of `on_device`, which give the same pixels: 1.6 ms
against 3.8 ms of a core for 20 shifted images of 168 pixels, 3.5 ms against 28 ms for crops.

Shapes: B batch, C channels, H height, W width; images are bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view

from fedgmr_hpc.data.batches.draws import CROP_PAD
from fedgmr_hpc.data.splits import Bytes, Longs


def shift_and_mirror(x: Bytes, draws: Longs) -> Bytes:
    """Shift each image of [B, C, H, W] by up to 4 pixels over zeros, and mirror those drawn.

    Args:
        x: the images.
        draws: [B, 3] top, left and mirrored.
    """
    num, channels, height, width = x.shape
    pad = CROP_PAD
    wide = np.zeros((num, channels, height + 2 * pad, width + 2 * pad), np.uint8)
    wide[:, :, pad : pad + height, pad : pad + width] = x
    windows = sliding_window_view(wide, (height, width), axis=(2, 3))
    out = windows[np.arange(num), :, draws[:, 0], draws[:, 1]]
    mirrored = np.flatnonzero(draws[:, 2])
    out[mirrored] = out[mirrored, :, :, ::-1]
    return out


def crop_and_resize(x: Bytes, draws: Longs) -> Bytes:
    """Crop a box from each image of [B, C, H, W], enlarge it to [H, W], mirror those drawn.

    Since boxes are never larger than the result, plain bilinear interpolation needs no smoothing.

    Args:
        x: the images.
        draws: [B, 5] top, left, rows, columns and mirrored.
    """
    size, out = x.shape[2:], np.empty_like(x)
    for image, target, (top, left, rows, columns, mirrored) in zip(
        torch.from_numpy(x), out, draws.tolist(), strict=True
    ):
        box = image[None, :, top : top + rows, left : left + columns]
        resized = F.interpolate(box, size=size, mode="bilinear").numpy()[0]
        target[:] = resized[:, :, ::-1] if mirrored else resized
    return out


CHANGES: dict[str, Callable[[Bytes, Longs], Bytes]] = {
    "crop_flip": shift_and_mirror,
    "resized_crop": crop_and_resize,
}
