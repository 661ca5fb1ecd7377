"""Sub-models of the width methods: a narrower network, trained as such.

The entries that a width keeps are, in their natural order, the flat vector of the narrower network,
so loading is a permutation and costs what the sub-model weighs. With ordered dropout each local
step takes its gradient from a still narrower part, which is a network of its own. It remains a step
of the client's whole sub-model: entries outside the part have gradient zero, so momentum and weight
decay still move them, as `torch.optim.SGD` does in FjORD's code (docs/method.md#fjord).

Shapes: P prunable entries, K kept, D dense entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from fedgmr_hpc.fl.widths import Axis, inner_entries
from fedgmr_hpc.training.sgd import (
    Batch,
    Change,
    LocalSgd,
    Loss,
    Net,
    SgdConfig,
    StepMemory,
    Trained,
    differentiate,
    take_steps,
    to_host,
)

MAX_NETS = 32  # networks kept; the bandwidth balance makes new densities at every refresh
SoftLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, teacher's logits, labels -> losses


class NarrowModel:
    """A client's narrower network: loads it, trains it, and returns its entries.

    Args:
        make_net: builds the network of a density, which is kept for later use.
        tensors: axes of every tensor of the whole network, in the order of its flat vector.
        num_prunable: P.

    Attributes:
        net: the network that was loaded last.
        density: its density.
        mask: none, as everything of that network trains.
        run_step: takes a step and returns the mean loss of its batch.
    """

    net: Net
    mask = None
    run_step: Callable[[LocalSgd, Batch], Tensor] = staticmethod(LocalSgd.run)

    def __init__(
        self,
        make_net: Callable[[float], Net],
        tensors: Sequence[Sequence[Axis]],
        num_prunable: int,
    ) -> None:
        self._make_net, self.tensors, self.num_prunable = make_net, tensors, num_prunable
        self._nets: dict[float, Net] = {}
        self.step_memory = StepMemory()
        self._orders: dict[tuple[int, int], Tensor] = {}  # by (mask id, K)
        self._inner: dict[tuple[float, float], Tensor] = {}  # by (density, outer)
        self._order: Tensor | None = None  # of the loaded values by natural position
        self.density, self._num_kept = 1.0, 0

    def load(
        self,
        values: Tensor,
        dense: Tensor,
        positions: Tensor | None,
        *,
        mask_id: int = 0,
        density: float = 1.0,
    ) -> None:
        """Set the network of a density to a sub-model; the arguments may lie on any device.

        Args:
            values: [K] kept entries.
            dense: [D] dense part.
            positions: int64 [K] natural positions of `values`; None if they ascend.
            mask_id: with K it identifies `positions`, so that work on them is not repeated.
            density: which network.
        """
        if len(self._nets) > MAX_NETS:
            self._nets.clear()
            self._inner.clear()
        self.net, self.density = self._net(density), density
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
        """Return which of the values comes first, second, ... by natural position [K]."""
        if any(known != mask_id for known, _ in self._orders):
            self._orders.clear()
        key = (mask_id, len(positions))
        if key not in self._orders:
            # scatter and compress instead of sorting: linear in P
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
        sgd: SgdConfig,
        change: Change | None = None,
        after_step: Callable[[], None] = lambda: None,
        densities: Sequence[float] = (),
        soft_loss: SoftLoss | None = None,
    ) -> Trained:
        """Take one SGD step per batch.

        Args:
            batches: one for each step.
            loss: loss of each item.
            learning_rate: of all steps.
            sgd: the optimiser's other settings.
            change: what the objective makes of gradients; None for what they are.
            after_step: lets the caller serve its links.
            densities: of the part that each step trains, at most that of the sub-model; empty to
                train the whole sub-model.
            soft_loss: loss towards a teacher, for self-distillation: every step then trains the
                whole sub-model by `loss`, and the part by its loss towards the whole sub-model's
                answer. None for none.
        """
        if densities:
            widths = iter(densities)
            step: LocalSgd = OrderedDropoutSgd(
                self, loss, learning_rate, sgd, widths, soft_loss, change
            )
        else:
            step = LocalSgd(
                self.net, loss, learning_rate, sgd, change=change, memory=self.step_memory
            )
        return take_steps(step, batches, after_step, self.run_step)

    def inner(self, density: float) -> tuple[Net, Tensor]:
        """Return a narrower network, with the weights and the random stream of the loaded one.

        Returns:
            The network, and its positions in the flat vector of the loaded one.
        """
        net, at = self._net(density), self._inner_index(density)
        torch.index_select(self.net.flat, 0, at, out=net.flat)
        net.generator.set_state(self.net.generator.get_state())  # one stream for all widths
        return net, at

    def _inner_index(self, density: float) -> Tensor:
        key = (density, self.density)
        if key not in self._inner:
            index = torch.from_numpy(inner_entries(self.tensors, *key))
            self._inner[key] = index.to(self.net.flat.device)
        return self._inner[key]

    def in_use(self) -> AbstractContextManager[Net]:
        """Provide the network as the client uses it, which is as it is."""
        return nullcontext(self.net)

    def spread(self, values: Tensor, dense: Tensor) -> Tensor:
        """Return a flat vector of the loaded network with entries laid out as the loaded ones.

        Args:
            values: [K] in the order in which the sub-model was loaded.
            dense: [D].
        """
        ordered = values if self._order is None else values[self._order]
        return torch.cat([ordered, dense]).to(self.net.flat.device)

    def entries(self, flat: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Copy the sub-model's entries to the host: values [K] as loaded, dense part [D].

        Args:
            flat: another vector of the loaded network to take them from; None for its weights.
        """
        source = self.net.flat if flat is None else flat
        kept = to_host(source[: self._num_kept].clone())
        values = kept if self._order is None else torch.empty_like(kept)
        if self._order is not None:
            values[self._order] = kept
        return values, to_host(source[self._num_kept :].clone())


class OrderedDropoutSgd(LocalSgd):
    """Steps of a loaded sub-model, each with the gradient of a part of it (ordered dropout).

    Args:
        model: the sub-model.
        loss: loss of each item.
        learning_rate: of all steps.
        sgd: the optimiser's other settings.
        densities: of the part, one for each step.
        soft_loss: loss towards a teacher, see `NarrowModel.train`.
        change: what the objective makes of the gradients of the whole sub-model.
    """

    def __init__(
        self,
        model: NarrowModel,
        loss: Loss,
        learning_rate: float,
        sgd: SgdConfig,
        densities: Iterator[float],
        soft_loss: SoftLoss | None = None,
        change: Change | None = None,
    ) -> None:
        self.memory = model.step_memory
        super().__init__(model.net, loss, learning_rate, sgd, change=change, memory=self.memory)
        self.model, self.densities, self.soft_loss = model, densities, soft_loss

    @property
    def why_plain(self) -> str:
        return "each step trains another width"

    def gradients(self, samples: Tensor, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the gradients of one step and its mean loss on the labels.

        Without distillation they are those of the part, zero outside it; with it, the sum of those
        of the whole sub-model and of the part, and the loss is that of the whole sub-model.
        """
        density = next(self.densities)
        if density == self.model.density:  # a model learns nothing from its own answer
            return super().gradients(samples, labels)
        if self.soft_loss is None:
            total = self.memory.zeros("gradient", self.net.flat)
            mean = self._add_part(total, density, self.loss, samples, labels)
            return self.net.split(total), mean
        whole, mean, logits = differentiate(self.net, self.loss, samples, labels)
        total = _lay_flat(self.net, whole, self.memory.zeros("gradient", self.net.flat))
        towards = partial(_towards, self.soft_loss, logits)
        self._add_part(total, density, towards, samples, labels)
        return self.net.split(total), mean

    def _add_part(
        self, total: Tensor, density: float, loss: Loss, samples: Tensor, labels: Tensor
    ) -> Tensor:
        """Add the part's gradients to those of the sub-model; return the part's mean loss."""
        part, at = self.model.inner(density)
        gradients, mean, _ = differentiate(part, loss, samples, labels)
        self.net.generator.set_state(part.generator.get_state())
        self.net.flat.index_copy_(0, at, part.flat)  # takes over the part's running statistics
        own = _lay_flat(part, gradients, self.memory.zeros("part", part.flat))
        total.index_add_(0, at, own)
        return mean


def _towards(soft_loss: SoftLoss, teacher: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return soft_loss(logits, teacher, labels)


def _lay_flat(net: Net, gradients: Sequence[Tensor], flat: Tensor) -> Tensor:
    """Lay gradients out in a vector [P + D] of zeros, which stay at running statistics."""
    torch._foreach_copy_(net.split(flat), list(gradients))
    return flat
