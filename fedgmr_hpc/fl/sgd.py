"""Local steps and evaluation on a net's flat vector (spec sections 1.3 and 5.2).

The net may lie on any torch device: what comes in is moved there, what `to_host` gives lies in host
memory, and no step waits for the device. On the CPU nothing is copied for that.

Deviations from the released code (spec section 11): gradients are masked (24), momentum is reset on
receipt (24), weight decay multiplies the weight (23), no clipping (23).

Shapes: P prunable entries, D dense entries, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedgmr_hpc.fl.threshold import Threshold

Batch = tuple[Tensor, Tensor]  # samples [B, ...], labels [B, ...]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> loss of each scored item
Hits = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> how many scored items are hit


class Net(Protocol):
    """A model whose trainable tensors share memory with one flat vector [P + D]; a pass for
    training updates running statistics there, and draws from `generator`."""

    flat: Tensor
    generator: torch.Generator

    def __call__(self, images: Tensor, training: bool = False) -> Tensor: ...
    def trainable(self) -> list[torch.nn.Parameter]: ...
    def split(self, flat: Tensor) -> list[Tensor]: ...


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


class Step:
    """One local SGD step after the other on a net.

    Args:
        mask: [P + D] of 0 and 1; only entries at 1 move. None for all.
        momentum: [P + D] state of the heavy ball, None without.
        squares: [P + D] sums squared gradients on the mask, None if they are not wanted.
        threshold: what gradients pass through.
    """

    def __init__(
        self,
        net: Net,
        loss: Loss,
        learning_rate: float,
        choices: SgdChoices,
        mask: Tensor | None = None,
        momentum: Tensor | None = None,
        squares: Tensor | None = None,
        threshold: Threshold | None = None,
    ) -> None:
        self.net, self.loss, self.threshold = net, loss, threshold
        self.learning_rate, self.choices = learning_rate, choices
        self.parameters = net.trainable()
        self.masks, self.momenta, self.squares = (
            [*([None] * len(self.parameters) if flat is None else net.split(flat))]
            for flat in (mask, momentum, squares)
        )

    def run(self, batch: Batch) -> Tensor:
        """Steps on a batch; returns its mean loss, which is not waited for."""
        gradients, mean = self._gradients(*batch)
        with torch.no_grad():
            for row in zip(
                self.parameters, gradients, self.masks, self.momenta, self.squares, strict=True
            ):
                self._move(*row)
        return mean

    def _gradients(self, samples: Tensor, labels: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        if self.threshold is not None:
            self.threshold.hide()
        mean = self.loss(self.net(samples, training=True), labels).mean()
        gradients: Sequence[Tensor] = torch.autograd.grad(mean, self.parameters)
        if self.threshold is not None:
            gradients = self.threshold.restore(gradients)
        return gradients, mean.detach()

    def _move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        mask: Tensor | None,
        momentum: Tensor | None,
        squares: Tensor | None,
    ) -> None:
        if squares is not None:
            kept = gradient if mask is None else gradient * mask
            squares.addcmul_(kept, kept)
        if self.choices.weight_decay:
            gradient = gradient.add(parameter, alpha=self.choices.weight_decay)
        if momentum is not None:
            gradient = momentum.mul_(self.choices.momentum).add_(gradient)
        if mask is None:
            parameter.add_(gradient, alpha=-self.learning_rate)
        else:
            parameter.addcmul_(gradient, mask, value=-self.learning_rate)


class Done:
    """Losses and sizes of the steps so far; losses are read off the device at the end."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.counts: list[int] = []

    def add(self, step: Step, batch: Batch) -> None:
        """Makes one more step."""
        self.means.append(step.run(batch))
        self.counts.append(len(batch[1]))

    def trained(self, squares: Tensor | None = None) -> Trained:
        """What training has left."""
        pairs = zip(torch.stack(self.means).tolist(), self.counts, strict=True)
        num_samples = sum(self.counts)
        return Trained(sum(mean * n for mean, n in pairs) / num_samples, num_samples, squares)


@torch.inference_mode()
def evaluate(net: Net, batches: Iterable[Batch], loss: Loss, hits: Hits) -> tuple[int, float]:
    """Hits and summed loss over the batches' scored items."""
    device = net.flat.device
    num_hits = torch.zeros((), dtype=torch.int64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for samples, labels in on_device(batches, device):
        logits = net(samples)
        num_hits += hits(logits, labels)
        loss_sum += loss(logits, labels).sum(dtype=torch.float64)
    return int(num_hits), float(loss_sum)


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`; those that lie there as they are."""
    for images, labels in batches:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def to_host(entries: Tensor) -> Tensor:
    """The entries in host memory: themselves, or from a CUDA device a copy in pinned memory."""
    if entries.device.type != "cuda":
        return entries.cpu()
    host = torch.empty(entries.shape, dtype=entries.dtype, pin_memory=True)
    host.copy_(entries, non_blocking=True)
    torch.cuda.current_stream(entries.device).synchronize()
    return host
