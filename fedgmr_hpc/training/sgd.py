"""Local steps and evaluation on a net's flat vector (docs/method.md#local-training).

The net may lie on any torch device. Batches are moved there, `to_host` brings results back, and no
step waits for the device; on the CPU nothing is copied for this.

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
Change = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # of gradients, one per parameter


class Net(Protocol):
    """A model whose trainable tensors share memory with one flat vector.

    A training pass updates tracked running statistics in that vector and draws from `generator`.

    Attributes:
        flat: [P + D] the model's weights.
        statistics: [S] of static batch norms, which training leaves alone.
        generator: random stream of dropout.
    """

    flat: Tensor
    statistics: Tensor
    generator: torch.Generator

    def __call__(self, images: Tensor, training: bool = False) -> Tensor: ...
    def measure(self, images: Tensor) -> Tensor: ...
    def trainable(self) -> list[torch.nn.Parameter]: ...
    def split(self, flat: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True, slots=True)
class SgdConfig:
    """Settings of local SGD, but for the learning rate.

    Attributes:
        momentum: of the heavy ball, without dampening.
        weight_decay: factor of the weights that is added to the gradient.
        clip_norm: greatest norm of the gradient of all parameters together, before weight decay is
            added; None for no limit.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of a client's training, besides the weights in `net.flat`.

    Attributes:
        mean_loss: over all samples of all steps.
        num_samples: samples of all steps.
        grad_squares: [P + D] summed squared gradients, on the net's device; None if not wanted.
    """

    mean_loss: float
    num_samples: int
    grad_squares: Tensor | None


class LocalSgd:
    """The local SGD steps of one dispatch.

    One instance serves one dispatch, from the weights that the client received to its last step, so
    momentum starts at zero (docs/method.md#local-training).

    Args:
        net: holds the weights that the client received.
        loss: loss of each scored item.
        learning_rate: of all steps.
        sgd: the optimiser's other settings.
        mask: [P + D] of 0 and 1; only entries at 1 move. None for all.
        squares: [P + D] to which squared gradients on the mask are added; None if not wanted.
        threshold: what gradients pass through; None for masks without one.
        change: what the objective makes of the gradients; None for what they are.
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
        change: Change | None = None,
    ) -> None:
        self.net, self.loss, self.threshold, self.change = net, loss, threshold, change
        self.learning_rate, self.sgd = learning_rate, sgd
        self.parameters = net.trainable()
        momentum = torch.zeros_like(net.flat) if sgd.momentum else None
        self.masks, self.momenta, self.squares = (
            [*([None] * len(self.parameters) if flat is None else net.split(flat))]
            for flat in (mask, momentum, squares)
        )

    def run(self, batch: Batch) -> Tensor:
        """Take one step; return the batch's mean loss without waiting for the device."""
        gradients, mean = self.gradients(*batch)
        with torch.no_grad():
            self._sum_squares(gradients)
            if self.change is not None:
                gradients = self.change(gradients)
            for row in zip(
                self.parameters, self._clipped(gradients), self.masks, self.momenta, strict=True
            ):
                self._move(*row)
        return mean

    def gradients(self, samples: Tensor, labels: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Return the gradients of the mean loss, one per parameter, and that loss."""
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
        """Scale all gradients by one factor so that their kept entries stay within the limit."""
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
    """Differentiate the mean loss of one training pass.

    Returns:
        The gradients, one per parameter, 0 of those that the pass has not used; the mean loss; the
        logits.
    """
    logits = net(samples, training=True)
    mean = loss(logits, labels).mean()
    gradients = torch.autograd.grad(mean, net.trainable(), materialize_grads=True)
    return gradients, mean.detach(), logits.detach()


class StepLosses:
    """Losses and batch sizes of the steps so far.

    Losses stay on the device until the end: reading one would wait for all queued work.
    """

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.counts: list[int] = []

    def add(self, step: LocalSgd, batch: Batch) -> None:
        """Take one more step."""
        self.means.append(step.run(batch))
        self.counts.append(len(batch[1]))

    def trained(self, squares: Tensor | None = None) -> Trained:
        """Return the outcome of all steps."""
        pairs = zip(torch.stack(self.means).tolist(), self.counts, strict=True)
        num_samples = sum(self.counts)
        return Trained(sum(mean * n for mean, n in pairs) / num_samples, num_samples, squares)


@torch.inference_mode()
def evaluate(net: Net, batches: Iterable[Batch], loss: Loss, hits: Hits) -> tuple[int, float]:
    """Count the hits and sum the loss over the batches' scored items."""
    device = net.flat.device
    num_hits = torch.zeros((), dtype=torch.int64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for samples, labels in on_device(batches, device):
        logits = net(samples)
        num_hits += hits(logits, labels)
        loss_sum += loss(logits, labels).sum(dtype=torch.float64)
    return int(num_hits), float(loss_sum)


def measure_statistics(net: Net, batches: Iterable[Batch]) -> Tensor:
    """Measure the statistics [S] of static batch norms, as float32 in host memory.

    They are means and unbiased variances, each averaged over batches that normalise themselves.
    """
    parts = [net.measure(samples) for samples, _ in on_device(batches, net.flat.device)]
    return mean_statistics([to_host(part) for part in parts])


def mean_statistics(parts: Sequence[Tensor]) -> Tensor:
    """Average statistics [S] of batches in their order, in double precision.

    The order is fixed, so the result has the same bits on any number of ranks.
    """
    return torch.stack(list(parts)).double().mean(0).float()


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to `device`; those that lie there already are not copied."""
    for images, labels in batches:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def to_host(entries: Tensor) -> Tensor:
    """Return entries in host memory, copied from a CUDA device through pinned memory."""
    if entries.device.type != "cuda":
        return entries.cpu()
    host = torch.empty(entries.shape, dtype=entries.dtype, pin_memory=True)
    host.copy_(entries, non_blocking=True)
    torch.cuda.current_stream(entries.device).synchronize()
    return host
