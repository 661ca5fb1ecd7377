"""Local training and evaluation on flat weights (spec sections 1.3, 2.3 and 5.2).

A client's sub-model is the flat vector with zeros outside its mask; masked steps keep them at zero.
A bias counts only if one of its unit's incoming weights is kept (bias gating, spec section 3.4): a
gated bias is held at zero while training and returns unchanged. A mask of everything takes exactly
the dense parent's path.

The net may lie on any torch device: what comes in is moved there, what `entries` gives lies in host
memory, and no step waits for the device. On the CPU nothing is copied for that.

Deviations from the released code (spec section 11): gradients are masked (24), momentum is reset on
receipt (24), weight decay multiplies the weight (23), no clipping (23).

Shapes: P prunable entries, K kept, D dense entries, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]  # images [B, ...], labels [B]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> per-sample loss [B]


class Net(Protocol):
    """A model whose trainable tensors share memory with one flat vector [P + D]."""

    flat: Tensor

    def __call__(self, images: Tensor) -> Tensor: ...
    def trainable(self) -> list[torch.nn.Parameter]: ...
    def split(self, flat: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True, slots=True)
class GatedBias:
    """A bias and the prunable weight [units, ...] that gates it, as spans of the flat vector."""

    bias: slice
    weight: slice
    units: int


@dataclass(frozen=True, slots=True)
class SgdChoices:
    """Local SGD; `momentum` is heavy-ball without dampening."""

    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves besides the weights in `net.flat`."""

    mean_loss: float
    num_samples: int
    grad_squares: Tensor | None  # [P + D], on the net's device


class SubModel:
    """Loads a client's sub-model into a net, trains it, and hands its entries back."""

    def __init__(self, net: Net, num_prunable: int, gated: Iterable[GatedBias]) -> None:
        self.net, self.num_prunable, self.gated = net, num_prunable, tuple(gated)
        self.mask: Tensor | None = None  # [P + D] of 0 and 1, None for everything
        self._mask_memory: Tensor | None = None
        self._kept: Tensor | None = None  # natural positions of the loaded entries
        self._loaded: tuple[int, int] | None = None  # (mask id, K) of the loaded entries
        self._masked: Tensor | None = None  # natural positions at which the mask memory is 1
        self._masked_as: tuple[int, int] | None = None  # (mask id, K) of the mask memory
        self._held_back: list[tuple[slice, Tensor, Tensor]] = []
        self._dead: dict[tuple[int, int], list[Tensor]] = {}  # by (mask id, K)
        self._moved: dict[tuple[int, int], Tensor] = {}  # positions on the device, likewise

    def load(
        self, values: Tensor, dense: Tensor, positions: Tensor | None, *, mask_id: int = 0
    ) -> None:
        """Sets the net to a sub-model, wherever the arguments lie.

        Args:
            values: [K] kept entries.
            dense: [D] dense part.
            positions: int64 [K] natural positions of `values`, None for all P entries.
            mask_id: equal ids and K mean equal positions, so what follows from them is kept.
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
        choices: SgdChoices,
        sum_grad_squares: bool = False,
        after_step: Callable[[], None] = lambda: None,
    ) -> Trained:
        """Runs one SGD step per batch; `after_step` lets the caller serve its links in between.

        On a CUDA device steps are only queued while `after_step` runs; losses are read at the end.
        """
        parameters = self.net.trainable()
        masks: list[Tensor | None] = [None] * len(parameters)
        if self.mask is not None:
            masks = [*self.net.split(self.mask)]
        squares = torch.zeros_like(self.net.flat) if sum_grad_squares else None
        momenta = [torch.zeros_like(p) for p in parameters] if choices.momentum else None
        means, counts = [], []
        for images, labels in _on_device(batches, self.net.flat.device):
            mean = loss(self.net(images), labels).mean()
            gradients = torch.autograd.grad(mean, parameters)
            with torch.no_grad():
                if squares is not None:
                    _add_squares(self.net.split(squares), gradients, masks)
                _step(parameters, gradients, masks, momenta, learning_rate, choices)
            means.append(mean.detach())
            counts.append(len(labels))
            after_step()
        return Trained(_mean_loss(means, counts), sum(counts), squares)

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
        return _to_host(kept), _to_host(dense)


def _on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`; those that lie there as they are."""
    for images, labels in batches:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _to_host(entries: Tensor) -> Tensor:
    """The entries in host memory: themselves, or from a CUDA device a copy in pinned memory."""
    if entries.device.type != "cuda":
        return entries.cpu()
    host = torch.empty(entries.shape, dtype=entries.dtype, pin_memory=True)
    host.copy_(entries, non_blocking=True)
    torch.cuda.current_stream(entries.device).synchronize()
    return host


def _mean_loss(means: list[Tensor], counts: list[int]) -> float:
    """The mean over all samples, of the means and sizes of their batches."""
    total = 0.0
    for mean, count in zip(torch.stack(means).tolist(), counts, strict=True):
        total += mean * count
    return total / sum(counts)


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


def _step(
    parameters: list[torch.nn.Parameter],
    gradients: tuple[Tensor, ...],
    masks: list[Tensor | None],
    momenta: list[Tensor] | None,
    learning_rate: float,
    choices: SgdChoices,
) -> None:
    for index, (parameter, gradient, mask) in enumerate(
        zip(parameters, gradients, masks, strict=True)
    ):
        if choices.weight_decay:
            gradient = gradient.add(parameter, alpha=choices.weight_decay)
        if momenta is not None:
            gradient = momenta[index].mul_(choices.momentum).add_(gradient)
        if mask is None:
            parameter.add_(gradient, alpha=-learning_rate)
        else:
            parameter.addcmul_(gradient, mask, value=-learning_rate)


def _add_squares(
    sums: list[Tensor], gradients: tuple[Tensor, ...], masks: list[Tensor | None]
) -> None:
    for total, gradient, mask in zip(sums, gradients, masks, strict=True):
        kept = gradient if mask is None else gradient * mask
        total.addcmul_(kept, kept)


@torch.inference_mode()
def evaluate(net: Net, batches: Iterable[Batch], loss: Loss) -> tuple[int, float]:
    """Correct predictions and summed loss over the batches."""
    device = net.flat.device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for images, labels in _on_device(batches, device):
        logits = net(images)
        correct += (logits.argmax(1) == labels).sum()
        loss_sum += loss(logits, labels).sum(dtype=torch.float64)
    return int(correct), float(loss_sum)
