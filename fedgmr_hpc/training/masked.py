"""Masked sub-models on flat weights, trained in place (docs/method.md#local-training).

A client's sub-model is the flat vector with zeros outside its mask, and masked steps keep them at
zero. (Width methods train a narrower network instead, see narrow.py.) A gated bias counts only if
one of its unit's incoming weights is kept; otherwise it is held at zero while training and returns
unchanged. A mask that keeps everything takes exactly the path of the dense model, to the same bits.

With `through_threshold`, gradients pass through the threshold that cut the mask (FIARSE, see
threshold.py).

The masks of one refresh are nested, so (mask id, K) identifies one: what follows from a mask alone
is computed once per mask and forgotten at the next refresh.

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
    Change,
    LocalSgd,
    Loss,
    Net,
    SgdConfig,
    StepMemory,
    Trained,
    take_steps,
    to_host,
)
from fedgmr_hpc.training.threshold import Kept, Threshold, kept_of


@dataclass(frozen=True, slots=True)
class GatedBias:
    """A bias that counts only while a weight of its unit is kept.

    Attributes:
        bias: its span in the flat vector.
        weight: span of the prunable weight [units, ...] that gates it.
        units: output units of the layer.
    """

    bias: slice
    weight: slice
    units: int


class MaskedModel:
    """A client's masked sub-model: loads it into a network, trains it, and returns its entries.

    Args:
        net: the whole network.
        num_prunable: P.
        gated: biases that count only while a weight of their unit is kept.
        through_threshold: spans of the prunable tensors, if gradients pass through the threshold
            of each; empty otherwise.
        surrogate: whether the threshold changes the gradients of kept weights.

    Attributes:
        mask: [P + D] of 0 and 1; None for everything.
        run_step: takes a step and returns the mean loss of its batch.
    """

    run_step: Callable[[LocalSgd, Batch], Tensor] = staticmethod(LocalSgd.run)

    def __init__(
        self,
        net: Net,
        num_prunable: int,
        gated: Iterable[GatedBias],
        through_threshold: Sequence[slice] = (),
        surrogate: bool = True,
    ) -> None:
        self.net, self.num_prunable, self.gated = net, num_prunable, tuple(gated)
        self.spans, self.surrogate = list(through_threshold), surrogate
        self.mask: Tensor | None = None
        self._front = num_prunable  # entries before the dense part
        self._step_memory = StepMemory()
        self._mask_memory: Tensor | None = None
        self._kept: Tensor | None = None  # natural positions of the loaded entries
        self._key = (0, 0)  # (mask id, K) of the sub-model
        self._loaded: tuple[int, int] | None = None  # (mask id, K) of the entries in `net`
        self._masked: Tensor | None = None  # natural positions at which the mask memory is 1
        self._masked_as: tuple[int, int] | None = None  # (mask id, K) of the mask memory
        self._held_back: list[tuple[slice, Tensor, Tensor]] = []
        self._threshold: Threshold | None = None  # of the entries loaded and trained
        self._dead: dict[tuple[int, int], list[Tensor]] = {}  # by (mask id, K)
        self._moved: dict[tuple[int, int], Tensor] = {}  # positions on the device, likewise
        self._by_span: dict[tuple[int, int], list[Kept]] = {}  # kept positions, likewise

    def load(
        self,
        values: Tensor,
        dense: Tensor,
        positions: Tensor | None,
        *,
        mask_id: int = 0,
        density: float = 1.0,
    ) -> None:
        """Set the network to a sub-model; the arguments may lie on any device.

        Args:
            values: [K] kept entries.
            dense: [D] dense part.
            positions: int64 [K] natural positions of `values`; None for all P entries.
            mask_id: with K it identifies `positions`, so that work on them is not repeated.
            density: ignored, since the mask says it all; `NarrowModel` needs it.
        """
        self._front = self.num_prunable
        prunable = self.net.flat[: self._front]
        self.net.flat[self._front :] = dense
        key = (mask_id, len(values))
        if positions is None:
            prunable.copy_(values)
        else:
            positions = self._place(positions, key)
            # the same mask overwrites all its entries, and outside it there are zeros already
            if key != self._loaded and len(values) < self.num_prunable:
                _clear(prunable, None if self._loaded is None else self._kept)
            prunable.scatter_(0, positions, values.to(prunable.device))
        self._kept, self.mask, self._held_back = positions, None, []
        self._key = self._loaded = key
        self._threshold = None
        if positions is not None and len(positions) < self.num_prunable:
            self._cut(positions, key)

    def _place(self, positions: Tensor, key: tuple[int, int]) -> Tensor:
        """Return the positions on the network's device, moving them once per mask."""
        if positions.device == self.net.flat.device:
            return positions
        keep_mask(self._moved, key)
        if key not in self._moved:
            self._moved[key] = positions.to(self.net.flat.device)
        return self._moved[key]

    def _cut(self, positions: Tensor, key: tuple[int, int]) -> None:
        """Set the mask, and hold back the biases of units that have lost all their weights."""
        if self._mask_memory is None:
            self._mask_memory = torch.ones_like(self.net.flat)
        self.mask = self._mask_memory
        if key != self._masked_as:
            _clear(self.mask[: self.num_prunable], self._masked)
            self.mask[: self.num_prunable].index_fill_(0, positions, 1.0)
            self._masked, self._masked_as = positions, key
        self.mask[self.num_prunable :] = 1.0
        for gate, is_dead in zip(self.gated, self._dead_units(key), strict=True):
            self._hold_back(gate.bias, is_dead)

    def _hold_back(self, span: slice, is_dead: Tensor) -> None:
        """Train with zero in place of some of the biases at `span`, which return unchanged."""
        assert self.mask is not None
        bias = self.net.flat[span]
        # by marks: to index by them, a GPU's host has to wait for their number
        self._held_back.append((span, is_dead, bias.clone()))
        self.mask[span].masked_fill_(is_dead, 0.0)
        bias.masked_fill_(is_dead, 0.0)

    def _dead_units(self, key: tuple[int, int]) -> list[Tensor]:
        """Tell for each gated bias which units have lost all their weights under the mask."""
        assert self.mask is not None
        keep_mask(self._dead, key)
        if key not in self._dead:
            weights = [self.mask[gate.weight].view(gate.units, -1) for gate in self.gated]
            self._dead[key] = [weight.amax(1) == 0 for weight in weights]
        return self._dead[key]

    def _kept_by_span(self) -> list[Kept]:
        """Return the kept positions of each prunable tensor, found once per mask."""
        assert self.mask is not None
        keep_mask(self._by_span, self._key)
        if self._key not in self._by_span:
            self._by_span[self._key] = kept_of(self.mask, self.spans)
        return self._by_span[self._key]

    def train(
        self,
        batches: Iterator[Batch],
        loss: Loss,
        *,
        learning_rate: float,
        sgd: SgdConfig,
        sum_grad_squares: bool = False,
        change: Change | None = None,
        after_step: Callable[[], None] = lambda: None,
    ) -> Trained:
        """Take one SGD step per batch.

        Args:
            batches: one for each step.
            loss: loss of each item.
            learning_rate: of all steps.
            sgd: the optimiser's other settings.
            sum_grad_squares: whether to sum squared gradients, for score `g`.
            change: what the objective makes of gradients; None for what they are.
            after_step: lets the caller serve its links; on a CUDA device steps are only queued by
                then.
        """
        squares = self._step_memory.zeros("squares", self.net.flat) if sum_grad_squares else None
        if self.spans and self.mask is not None:
            kept = self._kept_by_span()
            self._threshold = Threshold(self.net, self.spans, kept, self.surrogate)
        step = LocalSgd(
            self.net,
            loss,
            learning_rate,
            sgd,
            self.mask,
            squares,
            self._threshold,
            change,
            self._step_memory,
        )
        return take_steps(step, batches, after_step, self.run_step, squares)

    def spread(self, values: Tensor, dense: Tensor) -> Tensor:
        """Return a flat vector [P + D] with entries laid out as the loaded ones, zeros elsewhere.

        Args:
            values: [K] in the order in which the sub-model was loaded.
            dense: [D].
        """
        flat = torch.zeros_like(self.net.flat)
        flat[self.num_prunable :] = dense
        prunable = flat[: self.num_prunable]
        if self._kept is None:
            prunable.copy_(values)
        else:
            prunable.scatter_(0, self._kept, values.to(flat.device))
        return flat

    @contextmanager
    def in_use(self) -> Iterator[Net]:
        """Provide the network as the client uses it: without weights below their threshold."""
        if self._threshold is None:
            yield self.net
            return
        self._threshold.hide()
        try:
            yield self.net
        finally:
            self._threshold.restore(())

    def entries(self, flat: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Copy the sub-model's entries to host memory.

        Args:
            flat: another vector like the network's weights to take them from; None for them.

        Returns:
            The values [K] in the order in which they were loaded, and the dense part [D].
        """
        source = self.net.flat if flat is None else flat
        dense = source[self._front :].clone()
        if flat is None:
            for bias, is_dead, value in self._held_back:
                own = dense[bias.start - self._front : bias.stop - self._front]
                torch.where(is_dead, value, own, out=own)
        prunable = source[: self._front]
        kept = (
            prunable.clone() if self._kept is None else torch.index_select(prunable, 0, self._kept)
        )
        return to_host(kept), to_host(dense)


def keep_mask(kept: dict[tuple[int, int], Any], key: tuple[int, int]) -> None:
    """Forget what was kept for other masks than that of `key`, which is (mask id, K)."""
    if any(mask_id != key[0] for mask_id, _ in kept):
        kept.clear()


def _clear(entries: Tensor, positions: Tensor | None) -> None:
    """Zero all entries, given that only those at `positions` (None: any) are not zero yet."""
    # filling by index is slower per entry than clearing a contiguous range
    if positions is None or len(positions) > len(entries) // 8:
        entries.zero_()
    else:
        entries.index_fill_(0, positions, 0.0)
