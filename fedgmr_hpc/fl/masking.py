"""How a run's masks are cut: the sub-model axis of its method's row (docs/method.md#sub-models).

Shapes: P prunable entries, K kept entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedgmr_hpc.config.axes import WIDTH_KINDS, SubmodelConfig
from fedgmr_hpc.config.records import Floats, fields_of
from fedgmr_hpc.fl.scores import Scorer
from fedgmr_hpc.fl.submodels import (
    Keys,
    MaskSet,
    PrunableLayer,
    cut_masks,
    full_masks,
    magnitude_masks,
    rank_entries,
    read_masks,
    width_masks,
)


class Masking:
    """Cuts one mask set after the other.

    Args:
        ladder: densities for which the same masks are cut beside, to be looked at; empty for none.

    Attributes:
        newest: the masks cut last.
        ladder: the same, cut for the densities of the ladder; None without them.
    """

    def __init__(
        self,
        config: SubmodelConfig,
        layers: Sequence[PrunableLayer],
        ladder: Sequence[float] = (),
    ) -> None:
        if not config.use_costs:
            layers = [replace(layer, cost=1.0, is_relative=False) for layer in layers]
        self.config, self.layers = config, tuple(layers)
        self.newest = full_masks(self.layers[-1].stop)
        self.ladder: MaskSet | None = None
        self._ladder_densities = () if self.is_full else tuple(ladder)
        self._keys: Keys | None = None  # of the current version, between ranking and cutting
        self._last_refresh: Floats | None = None  # [P] natural, where a score needs it
        self._grad_squares: Floats | None = None  # [P] natural, where a score needs them
        self._scorer = Scorer(config)

    @property
    def is_full(self) -> bool:
        """Whether every client has the whole model, which no mask changes."""
        return self.config.kind == "full"

    def add_grad_squares(self, squares: Floats, masks: MaskSet, num_samples: int) -> None:
        """Add a client's squared gradients [K] on its masks to the sums."""
        if self._grad_squares is None:
            self._grad_squares = np.zeros(masks.size, np.float32)
        at = slice(0, len(squares)) if masks.perm is None else masks.perm[: len(squares)]
        self._grad_squares[at] += squares * np.float32(num_samples)

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back, but for the newest masks; not between ranking and
        cutting.
        """
        assert self._keys is None
        return {
            "last_refresh": self._last_refresh,
            "grad_squares": self._grad_squares,
            "ladder": None if self.ladder is None else fields_of(self.ladder),
        }

    def restore(self, state: dict[str, Any], newest: MaskSet) -> None:
        """Go back to a saved state."""
        self.newest = newest
        self._last_refresh, self._grad_squares = state["last_refresh"], state["grad_squares"]
        ladder = state.get("ladder")  # which older checkpoints lack
        self.ladder = None if ladder is None else read_masks(ladder)

    def rank(self, packed: Floats) -> None:
        """Rank the entries of a version that is to be cut next; densities do not enter, so it can
        be done ahead of `cut`.

        Args:
            packed: [P] its weights in the order of the newest masks.

        Raises:
            RunError: a weight or score is not finite.
        """
        if self.config.kind != "importance" or self._keys is not None:
            return
        natural = self.newest.unpack(packed)
        scores = self._scorer.score(natural, self._last_refresh, self._grad_squares)
        self._last_refresh = natural.copy() if "last_weights" in self._scorer.needs else None
        self._keys = rank_entries(
            natural,
            scores,
            self.layers,
            floor_frac=self.config.floor_frac,
        )
        if self._grad_squares is not None:
            self._grad_squares = np.zeros_like(self._grad_squares)

    def cut(self, packed: Floats, densities: Sequence[float], round_: int) -> MaskSet:
        """Cut, keep and return the masks of these densities.

        Args:
            packed: [P] current weights in the order of the newest masks.
            round_: by which `width_rolling` is rolled.

        Raises:
            RunError: a weight or score is not finite.
        """
        self.rank(packed)
        if self._ladder_densities:
            self.ladder = self._cut(packed, self._ladder_densities, round_, is_last=False)
        self.newest = self._cut(packed, densities, round_, is_last=True)
        self._keys = None
        return self.newest

    def _cut(
        self, packed: Floats, densities: Sequence[float], round_: int, *, is_last: bool
    ) -> MaskSet:
        """Return masks of the next number; the last ones take the memory of the ranking."""
        kind, mask_id = self.config.kind, self.newest.mask_id + 1
        if kind == "importance":
            assert self._keys is not None
            keys = self._keys if is_last else self._keys.copy()
            return cut_masks(keys, densities, mask_id=mask_id)
        if kind == "magnitude":
            natural = self.newest.unpack(packed)
            return magnitude_masks(natural, self.layers, densities, mask_id=mask_id)
        if kind in WIDTH_KINDS:
            offset = round_ if kind == "width_rolling" else 0
            return width_masks(self.layers, densities, offset=offset, mask_id=mask_id)
        return self.newest
