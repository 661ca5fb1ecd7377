"""The changes that were drawn for images, and the last steps to a batch, on any torch device.

All of it is exact: bytes are moved, resized in whole numbers, and normalised by one product and one
sum a pixel, each rounded once. So the bits are those of the host (`on_host`), on any device. No
operation waits for the device.

Shapes: B batch, C channels, H height, W width, T tokens, n draws; images are bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgmr_hpc.data.batches.draws import CROP_PAD
from fedgmr_hpc.models import NOT_SCORED

WEIGHT_BITS = 14  # of the weights of neighbours, as in torch's interpolation of bytes on CPUs


def shift_and_mirror(x: Tensor, draws: Tensor) -> Tensor:
    """Shift each image of [B, C, H, W] over zeros and mirror it as drawn, [B, 3]."""
    height, width = x.shape[2:]
    top, left, mirrored = draws.unbind(1)
    wide = F.pad(x, (CROP_PAD,) * 4)
    windows = wide.unfold(2, height, 1).unfold(3, width, 1)
    return _mirror(windows[torch.arange(len(x), device=x.device), :, top, left], mirrored)


def crop_and_resize(x: Tensor, draws: Tensor) -> Tensor:
    """Crop a box from each image of [B, C, H, W], enlarge and mirror it as drawn, [B, 5].

    Columns come first and are rounded to bytes, then rows, as in torch's interpolation on CPUs.
    """
    top, left, rows, columns, mirrored = draws.unbind(1)
    out = _resize(_resize(x.int(), 3, left, columns), 2, top, rows)
    return _mirror(out.to(torch.uint8), mirrored)


def _resize(x: Tensor, dim: int, start: Tensor, size: Tensor) -> Tensor:
    """Enlarge the span of `size` [B] pixels from `start` [B] on along one axis of int32 images."""
    length = x.shape[dim]
    shape = [len(x), 1, 1, 1]
    shape[dim] = length
    neighbours, weights = _interpolation(length, x.device)
    first, second = (start[:, None] + neighbours[:, size - 1]).view(2, *shape)
    a, b = weights[:, size - 1].view(2, *shape)
    near, far = x.gather(dim, first.expand(x.shape)), x.gather(dim, second.expand(x.shape))
    out: Tensor = (near * a + far * b + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS
    return out


@lru_cache
def _interpolation(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tabulate bilinear interpolation of 1..`length` pixels to `length` pixels.

    Returns:
        Positions of both neighbours, int64 [2, length, length], by size - 1 and resulting pixel,
        and their weights, int32 likewise, in units of 2^-14.
    """
    sizes = np.arange(1, length + 1)[:, None]
    centre = np.maximum(sizes / length * (np.arange(length) + 0.5) - 0.5, 0)
    first = np.minimum(np.floor(centre), sizes - 1)
    share = centre - first
    neighbours = np.stack([first, np.minimum(first + 1, sizes - 1)]).astype(np.int64)
    weights = np.floor(np.stack([1 - share, share]) * (1 << WEIGHT_BITS) + 0.5).astype(np.int32)
    return torch.from_numpy(neighbours).to(device), torch.from_numpy(weights).to(device)


def _mirror(x: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored.bool()[:, None, None, None], x.flip(3), x)


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "crop_flip": shift_and_mirror,
    "resized_crop": crop_and_resize,
}


def normalise(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Return bytes [B, C, H, W] as float32, times `scale` and plus `shift`, [C, 1, 1] each."""
    out = x.float().mul_(scale)
    return out if shift is None else out.add_(shift)


def inputs_and_targets(sentences: Tensor, length: int, first_target: int) -> tuple[Tensor, Tensor]:
    """Return tokens 1..T and 2..T+1 of sentences, int64 [B, T] each, of which T + 1 = `length`.

    Args:
        sentences: [B, L] of 16 bits, padded with 0, signed or not.
        length: of the longest sentence.
        first_target: smallest token that is scored; the target is -1 for others.
    """
    x = sentences[:, :length].long() & 0xFFFF
    targets = x[:, 1:]
    return x[:, :-1].contiguous(), torch.where(targets < first_target, NOT_SCORED, targets)
