"""Masked sub-models on flat weights, trained in place (docs/method.md#local-training).

A client's sub-model is the flat vector with zeros outside its mask; masked steps keep them at zero
(width methods train a narrower network instead, see sliced.py).
A gated bias (FedGMR's) counts only if one of its unit's incoming weights is kept: else it is held
at zero while training and returns unchanged. A mask of everything takes exactly the dense parent's
path.

With `through_threshold` gradients pass through the threshold that cut the mask (FIARSE, see
threshold.py).

Shapes: P prunable entries, K kept, D dense entries, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgmr_hpc.training.sgd import (
    Batch,
    LocalSgd,
    Loss,
    Net,
    SgdConfig,
    StepLosses,
    Trained,
    on_device,
    to_host,
)
from fedgmr_hpc.training.threshold import Threshold


@dataclass(frozen=True, slots=True)
class GatedBias:
    """A bias and the prunable weight [units, ...] that gates it, as spans of the flat vector."""

    bias: slice
    weight: slice
    units: int


class MaskedModel:
    """Loads a client's sub-model into a net, trains it, and hands its entries back.

    Args:
        through_threshold: spans of the prunable tensors, if gradients pass through the threshold
            of each.
        surrogate: whether those of kept weights change on the way.
    """

    def __init__(
        self,
        net: Net,
        num_prunable: int,
        gated: Iterable[GatedBias],
        through_threshold: Sequence[slice] = (),
        surrogate: bool = True,
    ) -> None:
        self.net, self.num_prunable, self.gated = net, num_prunable, tuple(gated)
        self.spans, self.surrogate = tuple(through_threshold), surrogate
        self.mask: Tensor | None = None  # [P + D] of 0 and 1, None for everything
        self._mask_memory: Tensor | None = None
        self._kept: Tensor | None = None  # natural positions of the loaded entries
        self._loaded: tuple[int, int] | None = None  # (mask id, K) of the loaded entries
        self._masked: Tensor | None = None  # natural positions at which the mask memory is 1
        self._masked_as: tuple[int, int] | None = None  # (mask id, K) of the mask memory
        self._held_back: list[tuple[slice, Tensor, Tensor]] = []
        self._threshold: Threshold | None = None  # of the entries loaded and trained
        self._dead: dict[tuple[int, int], list[Tensor]] = {}  # by (mask id, K)
        self._moved: dict[tuple[int, int], Tensor] = {}  # positions on the device, likewise

    def load(
        self,
        values: Tensor,
        dense: Tensor,
        positions: Tensor | None,
        *,
        mask_id: int = 0,
        density: float = 1.0,
    ) -> None:
        """Sets the net to a sub-model, wherever the arguments lie.

        Args:
            values: [K] kept entries.
            dense: [D] dense part.
            positions: int64 [K] natural positions of `values`, None for all P entries.
            mask_id: equal ids and K mean equal positions, so what follows from them is kept.
            density: that the sub-model was cut for; the mask says all about it here.
        """
        prunable = self.net.flat[: self.num_prunable]
        self.net.flat[self.num_prunable :] = dense
        key = (mask_id, len(values))
        if positions is None:
            prunable.copy_(values)
        else:
            positions = self._place(positions, key)
            if key != self._loaded and len(values) < self.num_prunable:
                _clear(prunable, self._kept)
            prunable.scatter_(0, positions, values.to(prunable.device))
        self._kept, self._loaded, self.mask, self._held_back = positions, key, None, []
        self._threshold = None
        if positions is not None and len(positions) < self.num_prunable:
            self._cut(positions, key)

    def _place(self, positions: Tensor, key: tuple[int, int]) -> Tensor:
        """The positions on the net's device, moved there once per mask."""
        if positions.device == self.net.flat.device:
            return positions
        _keep_mask(self._moved, key)
        if key not in self._moved:
            self._moved[key] = positions.to(self.net.flat.device)
        return self._moved[key]

    def _cut(self, positions: Tensor, key: tuple[int, int]) -> None:
        """Sets the mask, and holds back the biases of units that have lost all their weights."""
        if self._mask_memory is None:
            self._mask_memory = torch.ones_like(self.net.flat)
        self.mask = self._mask_memory
        if key != self._masked_as:
            _clear(self.mask[: self.num_prunable], self._masked)
            self.mask[: self.num_prunable].index_fill_(0, positions, 1.0)
            self._masked, self._masked_as = positions, key
        self.mask[self.num_prunable :] = 1.0
        for gate, is_dead in zip(self.gated, self._dead_units(key), strict=True):
            bias = self.net.flat[gate.bias]
            self._held_back.append((gate.bias, is_dead, bias[is_dead].clone()))
            self.mask[gate.bias][is_dead] = 0.0
            bias[is_dead] = 0.0

    def _dead_units(self, key: tuple[int, int]) -> list[Tensor]:
        """Per gated bias, which units have lost all their weights under the current mask."""
        assert self.mask is not None
        _keep_mask(self._dead, key)
        if key not in self._dead:
            weights = [self.mask[gate.weight].view(gate.units, -1) for gate in self.gated]
            self._dead[key] = [weight.amax(1) == 0 for weight in weights]
        return self._dead[key]

    def train(
        self,
        batches: Iterator[Batch],
        loss: Loss,
        *,
        learning_rate: float,
        sgd: SgdConfig,
        sum_grad_squares: bool = False,
        after_step: Callable[[], None] = lambda: None,
    ) -> Trained:
        """Runs one SGD step per batch; `after_step` lets the caller serve its links in between.

        On a CUDA device steps are only queued while `after_step` runs; losses are read at the end.
        """
        squares = torch.zeros_like(self.net.flat) if sum_grad_squares else None
        if self.spans and self.mask is not None:
            self._threshold = Threshold(self.net, self.mask, self.spans, self.surrogate)
        step = LocalSgd(self.net, loss, learning_rate, sgd, self.mask, squares, self._threshold)
        losses = StepLosses()
        for batch in on_device(batches, self.net.flat.device):
            losses.add(step, batch)
            after_step()
        return losses.trained(squares)

    @contextmanager
    def in_use(self) -> Iterator[Net]:
        """The net as the client uses it: without what has fallen below its threshold."""
        if self._threshold is None:
            yield self.net
            return
        self._threshold.hide()
        try:
            yield self.net
        finally:
            self._threshold.restore(())

    def entries(self, flat: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sub-model's entries (values [K], dense [D]) of the net or of another flat vector on
        its device, as copies in host memory.
        """
        source = self.net.flat if flat is None else flat
        dense = source[self.num_prunable :].clone()
        if flat is None:
            for bias, is_dead, value in self._held_back:
                own = dense[bias.start - self.num_prunable : bias.stop - self.num_prunable]
                own[is_dead] = value
        prunable = source[: self.num_prunable]
        kept = (
            prunable.clone() if self._kept is None else torch.index_select(prunable, 0, self._kept)
        )
        return to_host(kept), to_host(dense)


def _keep_mask(kept: dict[tuple[int, int], Any], key: tuple[int, int]) -> None:
    """Forgets what follows from other masks than that of `key`, (mask id, K)."""
    if any(mask_id != key[0] for mask_id, _ in kept):
        kept.clear()


def _clear(entries: Tensor, positions: Tensor | None) -> None:
    """Zeroes entries of which only those at `positions` (None: any) are not zero."""
    if positions is None or len(positions) > len(entries) // 8:
        entries.zero_()
    else:
        entries.index_fill_(0, positions, 0.0)
