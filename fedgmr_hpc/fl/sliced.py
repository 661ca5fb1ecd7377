"""Sub-models of the width methods: a narrower network, trained as such (spec sections 7.3 and 7.4).

The entries that a width keeps are, in their natural order, the flat vector of the narrower network,
so loading is a permutation and costs what the sub-model costs. With ordered dropout each local step
trains a still narrower part, on its own network, and puts it back.

Shapes: P prunable entries, K kept, D dense entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fedgmr_hpc.fl.sgd import (
    Batch,
    Done,
    Loss,
    Net,
    SgdChoices,
    Step,
    Trained,
    on_device,
    to_host,
)
from fedgmr_hpc.fl.widths import Axis, inner_entries

MAX_NETS = 32  # kept at a time; balancing makes new densities at every refresh


class SlicedModel:
    """Loads a client's narrower network, trains it, and hands its entries back.

    Args:
        make_net: the network of a density, kept for the next time.
        tensors: axes of every tensor of the whole network, in the order of its flat vector.
        num_prunable: P.

    Attributes:
        net: the network loaded last.
    """

    net: Net

    def __init__(
        self,
        make_net: Callable[[float], Net],
        tensors: Sequence[Sequence[Axis]],
        num_prunable: int,
    ) -> None:
        self._make_net, self.tensors, self.num_prunable = make_net, tensors, num_prunable
        self._nets: dict[float, Net] = {}
        self._orders: dict[tuple[int, int], Tensor] = {}  # by (mask id, K)
        self._inner: dict[tuple[float, float], Tensor] = {}  # by (density, outer)
        self._order: Tensor | None = None  # of the loaded values by natural position
        self._density, self._num_kept = 1.0, 0

    def load(
        self,
        values: Tensor,
        dense: Tensor,
        positions: Tensor | None,
        *,
        mask_id: int = 0,
        density: float = 1.0,
    ) -> None:
        """Sets the network of this density to a sub-model, wherever the arguments lie.

        Args:
            values: [K] kept entries.
            dense: [D] dense part.
            positions: int64 [K] natural positions of `values`, None if they ascend.
            mask_id: equal ids and K mean equal positions.
        """
        if len(self._nets) > MAX_NETS:
            self._nets.clear()
            self._inner.clear()
        self.net, self._density = self._net(density), density
        self._num_kept = len(values)
        self._order = None if positions is None else self._find_order(positions, mask_id)
        ordered = values if self._order is None else values[self._order]
        self.net.flat[: len(values)] = ordered.to(self.net.flat.device)
        self.net.flat[len(values) :] = dense.to(self.net.flat.device)

    def _net(self, density: float) -> Net:
        if density not in self._nets:
            self._nets[density] = self._make_net(density)
        return self._nets[density]

    def _find_order(self, positions: Tensor, mask_id: int) -> Tensor:
        """[K] which of the values comes first, second, ... by natural position."""
        if any(known != mask_id for known, _ in self._orders):
            self._orders.clear()
        key = (mask_id, len(positions))
        if key not in self._orders:
            rank = torch.full((self.num_prunable,), -1)
            rank[positions] = torch.arange(len(positions))
            self._orders[key] = rank[rank >= 0]
        return self._orders[key]

    def train(
        self,
        batches: Iterator[Batch],
        loss: Loss,
        *,
        learning_rate: float,
        choices: SgdChoices,
        after_step: Callable[[], None] = lambda: None,
        densities: Sequence[float] = (),
    ) -> Trained:
        """Runs one SGD step per batch; `after_step` lets the caller serve its links in between.

        Args:
            densities: of each step, at most that of the sub-model; empty for that of the sub-model.
        """
        momentum = torch.zeros_like(self.net.flat) if choices.momentum else None
        done, device = Done(), self.net.flat.device
        for number, batch in enumerate(on_device(batches, device)):
            density = densities[number] if densities else self._density
            if density == self._density:
                step = Step(self.net, loss, learning_rate, choices, momentum=momentum)
                done.add(step, batch)
            else:
                self._train_inner(done, batch, density, loss, learning_rate, choices, momentum)
            after_step()
        return done.trained()

    def _train_inner(
        self,
        done: Done,
        batch: Batch,
        density: float,
        loss: Loss,
        learning_rate: float,
        choices: SgdChoices,
        momentum: Tensor | None,
    ) -> None:
        """One step on a narrower part of the loaded network; the rest keeps value and momentum."""
        inner, at = self._net(density), self._inner_index(density)
        inner.flat.copy_(self.net.flat[at])
        inner.generator.set_state(self.net.generator.get_state())  # one stream for all widths
        own = None if momentum is None else momentum[at]
        done.add(Step(inner, loss, learning_rate, choices, momentum=own), batch)
        self.net.generator.set_state(inner.generator.get_state())
        self.net.flat[at] = inner.flat
        if momentum is not None and own is not None:
            momentum[at] = own

    def _inner_index(self, density: float) -> Tensor:
        key = (density, self._density)
        if key not in self._inner:
            index = torch.from_numpy(inner_entries(self.tensors, *key))
            self._inner[key] = index.to(self.net.flat.device)
        return self._inner[key]

    def in_use(self) -> AbstractContextManager[Net]:
        """The net as the client uses it."""
        return nullcontext(self.net)

    def entries(self) -> tuple[Tensor, Tensor]:
        """The sub-model's entries (values [K], dense [D]) as copies in host memory."""
        kept = to_host(self.net.flat[: self._num_kept].clone())
        values = kept if self._order is None else torch.empty_like(kept)
        if self._order is not None:
            values[self._order] = kept
        return values, to_host(self.net.flat[self._num_kept :].clone())
