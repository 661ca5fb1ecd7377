"""Local steps and evaluation on a net's flat vector (docs/method.md#local-training).

The net may lie on any torch device: what comes in is moved there, what `to_host` gives lies in host
memory, and no step waits for the device. On the CPU nothing is copied for that.

Deviations from the released code (docs/method.md#deviations, 28 and 29): gradients are masked,
momentum is reset on receipt, weight decay multiplies the weight, no clipping unless the row asks
for it.

Shapes: P prunable entries, D dense entries, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedgmr_hpc.training.threshold import Threshold

NORM_EPSILON = 1e-6  # added to a gradient's norm before a limit is divided by it
Batch = tuple[Tensor, Tensor]  # samples [B, ...], labels [B, ...]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> loss of each scored item
Hits = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> how many scored items are hit


class Net(Protocol):
    """A model whose trainable tensors share memory with one flat vector [P + D]; a pass for
    training updates tracked running statistics there, and draws from `generator`. Static norms have
    their statistics [S] apart; `measure` gives those of a batch of samples."""

    flat: Tensor
    statistics: Tensor
    generator: torch.Generator

    def __call__(self, images: Tensor, training: bool = False) -> Tensor: ...
    def measure(self, images: Tensor) -> Tensor: ...
    def trainable(self) -> list[torch.nn.Parameter]: ...
    def split(self, flat: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True, slots=True)
class SgdConfig:
    """Local SGD; `momentum` is heavy-ball without dampening, `clip_norm` the greatest norm of the
    gradient of all parameters together (None for no limit), before weight decay is added."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves besides the weights in `net.flat`."""

    mean_loss: float
    num_samples: int
    grad_squares: Tensor | None  # [P + D], on the net's device


class LocalSgd:
    """The local SGD steps of one dispatch.

    It is made when the net holds what the client was sent and lives until the client's last step,
    so what belongs to the dispatch as a whole (momentum, a pull towards the weights that were sent)
    is kept here.

    Args:
        mask: [P + D] of 0 and 1; only entries at 1 move. None for all.
        squares: [P + D] sums squared gradients on the mask, None if they are not wanted.
        threshold: what gradients pass through.
    """

    def __init__(
        self,
        net: Net,
        loss: Loss,
        learning_rate: float,
        sgd: SgdConfig,
        mask: Tensor | None = None,
        squares: Tensor | None = None,
        threshold: Threshold | None = None,
    ) -> None:
        self.net, self.loss, self.threshold = net, loss, threshold
        self.learning_rate, self.sgd = learning_rate, sgd
        self.parameters = net.trainable()
        momentum = torch.zeros_like(net.flat) if sgd.momentum else None
        self.masks, self.momenta, self.squares = (
            [*([None] * len(self.parameters) if flat is None else net.split(flat))]
            for flat in (mask, momentum, squares)
        )

    def run(self, batch: Batch) -> Tensor:
        """Steps on a batch; returns its mean loss, which is not waited for."""
        gradients, mean = self.gradients(*batch)
        with torch.no_grad():
            self._sum_squares(gradients)
            for row in zip(
                self.parameters, self._clipped(gradients), self.masks, self.momenta, strict=True
            ):
                self._move(*row)
        return mean

    def gradients(self, samples: Tensor, labels: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Of the mean loss, one for each parameter; and that loss."""
        if self.threshold is not None:
            self.threshold.hide()
        gradients, mean, _ = differentiate(self.net, self.loss, samples, labels)
        if self.threshold is not None:
            gradients = self.threshold.restore(gradients)
        return gradients, mean

    def _sum_squares(self, gradients: Sequence[Tensor]) -> None:
        for gradient, mask, squares in zip(gradients, self.masks, self.squares, strict=True):
            if squares is not None:
                kept = _masked(gradient, mask)
                squares.addcmul_(kept, kept)

    def _clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients, shortened together where those that count are longer than allowed."""
        limit = self.sgd.clip_norm
        if limit is None:
            return gradients
        kept = map(_masked, gradients, self.masks)
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in kept])
        factor = (limit / (torch.linalg.vector_norm(norms) + NORM_EPSILON)).clamp(max=1)
        return [gradient * factor for gradient in gradients]

    def _move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        mask: Tensor | None,
        momentum: Tensor | None,
    ) -> None:
        if self.sgd.weight_decay:
            gradient = gradient.add(parameter, alpha=self.sgd.weight_decay)
        if momentum is not None:
            gradient = momentum.mul_(self.sgd.momentum).add_(gradient)
        if mask is None:
            parameter.add_(gradient, alpha=-self.learning_rate)
        else:
            parameter.addcmul_(gradient, mask, value=-self.learning_rate)


def _masked(gradient: Tensor, mask: Tensor | None) -> Tensor:
    return gradient if mask is None else gradient * mask


def differentiate(
    net: Net, loss: Loss, samples: Tensor, labels: Tensor
) -> tuple[Sequence[Tensor], Tensor, Tensor]:
    """(gradients of the mean loss, one for each parameter; that loss; logits) of a pass for
    training."""
    logits = net(samples, training=True)
    mean = loss(logits, labels).mean()
    return torch.autograd.grad(mean, net.trainable()), mean.detach(), logits.detach()


class StepLosses:
    """Losses and sizes of the steps so far; losses are read off the device at the end."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.counts: list[int] = []

    def add(self, step: LocalSgd, batch: Batch) -> None:
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


def measure_statistics(net: Net, batches: Iterable[Batch]) -> Tensor:
    """[S] means over batches, each of which normalises itself, of their means and unbiased
    variances; float32 in host memory."""
    parts = [net.measure(samples) for samples, _ in on_device(batches, net.flat.device)]
    return mean_statistics([to_host(part) for part in parts])


def mean_statistics(parts: Sequence[Tensor]) -> Tensor:
    """[S] mean over batches in their order, summed in double precision."""
    return torch.stack(list(parts)).double().mean(0).float()


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
