"""Quarantine: which updates must not be merged, because one of them can ruin the model.

An update is at fault if an entry is NaN or infinite, and, with `aggregation.max_norm_ratio`, if its
root mean square is more than that many times the one of the current model's same entries. The
paper has neither; without a fault nothing changes.

Shapes: K kept entries, D dense entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.fl.aggregation.threads import Threads
from fedgmr_hpc.fl.updates import Update

PIECE = 1 << 20  # entries that are looked at together


def is_finite(values: Floats) -> bool:
    """Return whether no entry is NaN or infinite.

    One pass at memory speed: no square is negative, so a NaN or infinity cannot vanish from their
    sum. Squares of large finite entries overflow too; only then every entry is looked at.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(values, values)):
            return True
    return bool(np.isfinite(values).all())


def has_finite_entries(update: Update, threads: Threads) -> bool:
    """Return whether all that would be merged, or added to the scores, is finite."""
    parts = (update.values, update.dense, update.grad_squares)
    return all(all(threads.map(is_finite, _pieces(part))) for part in parts if part is not None)


def _pieces(part: Floats) -> list[Floats]:
    return [part[at : at + PIECE] for at in range(0, len(part), PIECE)]


def root_mean_square(parts: Sequence[Floats]) -> float:
    """Return the root mean square of all entries, summed in double precision, which float32
    values cannot overflow.
    """
    total = sum(float(np.einsum("i,i->", part, part, dtype=np.float64)) for part in parts)
    return math.sqrt(total / max(1, sum(len(part) for part in parts)))


def norm_fault(update: Sequence[Floats], model: Sequence[Floats], max_ratio: float) -> str | None:
    """Return why an update is far out, or None. A model that is zero says nothing about it.

    Args:
        update: [K] values and [D] dense part.
        model: the same entries of the current model.
    """
    own, usual = root_mean_square(update), root_mean_square(model)
    if usual == 0 or not own > max_ratio * usual:
        return None
    return (
        f"its root mean square {own:.3g} is more than aggregation.max_norm_ratio = {max_ratio:g} "
        f"times the model's {usual:.3g}"
    )
