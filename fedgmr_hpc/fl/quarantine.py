"""Quarantine: which updates must not be merged, because one of them can ruin the model.

An update is at fault if an entry is NaN or infinite, and, with `aggregation.max_norm_ratio`, if its
root mean square is more than that many times the one of the current model's same entries. The
paper has neither; without a fault nothing changes.

Shapes: K kept entries, D dense entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.fl.threads import Threads
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


def _are_finite(parts: Sequence[Floats], threads: Threads) -> bool:
    return all(all(threads.map(is_finite, _pieces(part))) for part in parts)


def _pieces(part: Floats) -> list[Floats]:
    return [part[at : at + PIECE] for at in range(0, len(part), PIECE)]


def root_mean_square(parts: Sequence[Floats]) -> float:
    """Return the root mean square of all entries, summed in double precision, which float32
    values cannot overflow: it is finite if they are.
    """
    total = sum(float(np.einsum("i,i->", part, part, dtype=np.float64)) for part in parts)
    return math.sqrt(total / max(1, sum(len(part) for part in parts)))


class UsualSizes:
    """Root mean squares of sub-models' entries in the current version, each taken once."""

    def __init__(self) -> None:
        self._version, self._found = -1, dict[tuple[int, int], float]()

    def of(
        self, version: int, sub_model: tuple[int, int], parts: Callable[[], Sequence[Floats]]
    ) -> float:
        """Return that of a sub-model (mask id, K), of which `parts` gives the entries."""
        if version != self._version:
            self._version, self._found = version, {}
        if sub_model not in self._found:
            self._found[sub_model] = root_mean_square(parts())
        return self._found[sub_model]


def find_fault(
    update: Update, max_ratio: float | None, usual: Callable[[], float], threads: Threads
) -> str | None:
    """Return why an update must not be merged, or None. Each entry is looked at once.

    Args:
        max_ratio: `aggregation.max_norm_ratio`.
        usual: tells the root mean square of the same entries of the current model. A model that
            is zero says nothing about an update.
    """
    parts = (update.values, update.dense)
    own = None if max_ratio is None else root_mean_square(parts)
    is_sound = _are_finite(parts, threads) if own is None else math.isfinite(own)
    squares = () if update.grad_squares is None else (update.grad_squares,)
    if not is_sound or not _are_finite(squares, threads):
        return "a value is not finite"
    if max_ratio is None or own is None or not 0 < max_ratio * (model := usual()) < own:
        return None
    return (
        f"its root mean square {own:.3g} is more than aggregation.max_norm_ratio = {max_ratio:g} "
        f"times the model's {model:.3g}"
    )
