"""The version that a rank has received, increment by increment, and trains on.

Shapes: P prunable entries, K kept entries, D dense entries.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedgmr_hpc.config.errors import WireError
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.wire.frames import Frame


class ReceivedModel:
    """The version this rank trains on: packed values, and the positions of the masks they belong
    to.
    """

    def __init__(self, num_prunable: int) -> None:
        self.packed = np.empty(num_prunable, np.float32)
        self.positions = np.empty(num_prunable, np.int64)
        self.dense = np.empty(0, np.float32)
        self.version = self.mask_id = -1
        self.ends: list[int] = []  # packed end of each level received of this version
        self.known_ends: list[int] = []  # packed end of each level whose positions are known

    def accept(self, frame: Frame) -> None:
        """Take the next increment; levels come in ascending order, level 0 begins a version.

        Raises:
            WireError: an increment is missing, or its positions were never sent.
        """
        if frame.level == 0:
            self.version, self.ends, self.dense = frame.base_version, [], frame.dense
        if frame.mask_id != self.mask_id:
            self.mask_id, self.known_ends = frame.mask_id, []
            self.positions = np.empty_like(self.positions)  # the sub-model still uses the old ones
        if frame.base_version != self.version or frame.level != len(self.ends):
            raise WireError(
                f"increment {frame.level} of version {frame.base_version} arrived, "
                f"expected {len(self.ends)} of {self.version}",
                stage="decode",
            )
        start = self.ends[-1] if self.ends else 0
        stop = start + len(frame.values)
        self.packed[start:stop] = frame.values
        self.ends.append(stop)
        if frame.positions is not None:
            self.positions[start:stop] = frame.positions
            self.known_ends[frame.level :] = [stop]
        if self.known_ends[: len(self.ends)] != self.ends:
            raise WireError(f"increment {frame.level} came without positions", stage="decode")

    def sub_model(self, num_kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(values [K], dense [D], positions [K] or None when all entries are in natural order)."""
        values, positions = torch.from_numpy(self.packed[:num_kept]), self.kept(num_kept)
        at = None if positions is None else torch.from_numpy(positions)
        return values, torch.from_numpy(self.dense), at

    def kept(self, num_kept: int) -> NDArray[np.int64] | None:
        """Natural positions [K] of the first entries, None when all are in natural order."""
        return None if self.ends[0] == len(self.packed) else self.positions[:num_kept]

    def subtract(self, values: Floats, dense: Floats, num_changed: tuple[int, int]) -> None:
        """Take this version from what was trained on it, in place.

        Args:
            values: [K]; dense: [D].
            num_changed: how many of the prunable and of the dense entries, natural order, turn into
                changes; the others keep their values.
        """
        num, num_dense = num_changed
        kept = self.kept(len(values))
        at = slice(num) if kept is None else kept < num
        values[at] -= self.packed[: len(values)][at]
        dense[:num_dense] -= self.dense[:num_dense]
