"""Which of a client's samples validate, and in what order the others come in batches.

Shapes: C clients, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.randomness import make_rng

Longs = NDArray[np.int64]

CACHED_EPOCHS = 256  # of all clients a rank hosts


def cut_validation(
    parts: Sequence[Longs], *, frac: float, seed: int
) -> tuple[list[Longs], list[Longs]]:
    """Hold some of each client's samples back for validation.

    Args:
        parts: [C] samples of each client.
        frac: share of each part, rounded up; one sample always remains for training.
        seed: of the run.

    Returns:
        The training samples [C] and the validation samples [C] of each client, ascending.
    """
    if not 0 <= frac < 1:
        raise ValueError(must_be("data.validation_frac", "at least 0 and less than 1", frac))
    train, val = [], []
    for client, part in enumerate(parts):
        # rounded first, because 0.1 * 70 is a little above 7
        num_val = min(max(frac > 0, math.ceil(round(frac * len(part), 9))), len(part) - 1)
        order = make_rng(seed, "validation", client).permutation(len(part))
        val.append(part[np.sort(order[:num_val])])
        train.append(part[np.sort(order[num_val:])])
    return train, val


def batch_indices(num_samples: int, *, batch: int, step: int, seed: int, client: int) -> Longs:
    """Return the positions [B] of one local step in an endless sequence of permutations.

    There is one permutation per local epoch. Nothing is remembered between calls, so that any rank
    can take any step of any client.

    Args:
        num_samples: training samples of the client.
        batch: B.
        step: number of the local step since the run began.
        seed: of the run.
        client: whose samples they are.
    """
    if num_samples < 1 or batch < 1:
        found = f"{num_samples} and {batch}"
        raise ValueError(must_be("samples and batch", "at least 1", found=found))
    start, stop = step * batch, (step + 1) * batch
    pieces = []
    for epoch in range(start // num_samples, (stop - 1) // num_samples + 1):
        first = epoch * num_samples
        order = _epoch_order(num_samples, seed, client, epoch)
        pieces.append(order[max(start - first, 0) : stop - first])
    return np.concatenate(pieces)


@lru_cache(maxsize=CACHED_EPOCHS)
def _epoch_order(num_samples: int, seed: int, client: int, epoch: int) -> Longs:
    order = make_rng(seed, "batch", client, epoch).permutation(num_samples)
    order.flags.writeable = False  # shared by every later call
    return order


def class_counts(parts: Sequence[Longs], y: Longs, num_classes: int) -> Longs:
    """Count the samples of each class that each client holds [C, classes]."""
    return np.stack([np.bincount(y[part], minlength=num_classes) for part in parts])
