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

from fedgmr_hpc.models.losses import mean_of_scored
from fedgmr_hpc.training.threshold import Threshold

NORM_EPSILON = 1e-6  # added to a gradient's norm before a limit is divided by it
Batch = tuple[Tensor, Tensor]  # samples [B, ...], labels [B, ...]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> loss of each item
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
        losses: mean loss of each step's batch [steps], on the net's device.
        counts: samples of each step.
        grad_squares: [P + D] summed squared gradients, on the net's device, valid until the next
            training; None if not wanted.
    """

    losses: Tensor
    counts: Sequence[int]
    grad_squares: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """Samples of all steps."""
        return sum(self.counts)

    @property
    def mean_loss(self) -> float:
        """The mean over all samples of all steps; this waits for the current stream alone."""
        pairs = zip(self.losses.tolist(), self.counts, strict=True)
        return float(sum(mean * n for mean, n in pairs) / self.num_samples)


class StepMemory:
    """Vectors that steps write besides the weights, allocated once for all nets of a sub-model."""

    def __init__(self) -> None:
        self._vectors: dict[str, Tensor] = {}

    def zeros(self, name: str, like: Tensor) -> Tensor:
        """Return a vector of zeros; it is the caller's until the next call of that name."""
        if name not in self._vectors or len(self._vectors[name]) < len(like):
            self._vectors[name] = torch.empty_like(like)
        return self._vectors[name][: len(like)].zero_()


class LocalSgd:
    """The local SGD steps of one dispatch.

    One instance serves one dispatch, from the weights that the client received to its last step, so
    momentum starts at zero (docs/method.md#local-training).

    Args:
        net: holds the weights that the client received.
        loss: loss of each item.
        learning_rate: of all steps.
        sgd: the optimiser's other settings.
        mask: [P + D] of 0 and 1; only entries at 1 move, and the others' weights are 0. None for
            all.
        squares: [P + D] to which squared gradients on the mask are added; None if not wanted.
        threshold: what gradients pass through; None for masks without one.
        change: what the objective makes of the gradients; None for what they are.
        memory: that the steps of all dispatches share; None for one of their own.

    Attributes:
        written: the vectors [P + D] that steps write.
        why_plain: why they cannot be recorded and replayed (step_graphs.py); "" where they can.
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
        memory: StepMemory | None = None,
    ) -> None:
        self.net, self.loss, self.threshold, self.change = net, loss, threshold, change
        memory = memory or StepMemory()
        self.sgd = sgd
        self.parameters: list[Tensor] = [*net.trainable()]
        # where a step reads it on the device, so that one recorded for another rate can be replayed
        self.learning_rate = memory.zeros("learning_rate", net.flat[:1])[0].fill_(learning_rate)
        momentum = memory.zeros("momentum", net.flat) if sgd.momentum else None
        self.masks, self.momenta, self.squares = (
            [] if flat is None else net.split(flat) for flat in (mask, momentum, squares)
        )
        self.written = [each for each in (net.flat, momentum, squares) if each is not None]
        only_moves = sgd == SgdConfig() and squares is None and change is None
        # on a CPU masking and moving in one pass takes four fifths of the time of two
        self._rate_at_once = learning_rate if only_moves and net.flat.device.type == "cpu" else None

    @property
    def why_plain(self) -> str:
        if self.change is not None:
            return "an objective changes gradients"
        return "gradients pass through a threshold" if self.threshold is not None else ""

    def run(self, batch: Batch) -> Tensor:
        """Take one step; return the batch's mean loss without waiting for the device."""
        gradients, mean = self.gradients(*batch)
        with torch.no_grad():
            if self.masks and self._rate_at_once is not None:
                rate = self._rate_at_once
                torch._foreach_addcmul_(self.parameters, gradients, self.masks, value=-rate)
                return mean
            self._mask(gradients)
            if self.squares:
                torch._foreach_addcmul_(self.squares, gradients, gradients)
            if self.change is not None:
                gradients = _own(self.change(gradients), gradients)
                self._mask(gradients)
            self._clip(gradients)
            self._move(gradients)
        return mean

    def gradients(self, samples: Tensor, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the gradients of the mean loss, one per parameter, and that loss."""
        if self.threshold is not None:
            self.threshold.hide()
        gradients, mean, _ = differentiate(self.net, self.loss, samples, labels)
        if self.threshold is not None:
            gradients = self.threshold.restore(gradients)
        return gradients, mean

    def _mask(self, gradients: list[Tensor]) -> None:
        if self.masks:
            torch._foreach_mul_(gradients, self.masks)

    def _clip(self, gradients: list[Tensor]) -> None:
        """Scale all gradients by one factor so that together they stay within the limit."""
        limit = self.sgd.clip_norm
        if limit is None:
            return
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (limit / (norm + NORM_EPSILON)).clamp(max=1))

    def _move(self, gradients: list[Tensor]) -> None:
        """Update momenta and weights, each read and written once."""
        torch._fused_sgd_(
            self.parameters,
            gradients,
            self.momenta,
            weight_decay=self.sgd.weight_decay,
            momentum=self.sgd.momentum,
            lr=self.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


def _own(changed: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return what an objective has made of gradients, as tensors that a step may write to."""
    pairs = zip(changed, gradients, strict=True)
    return [
        new if new is old else new.clone(memory_format=torch.contiguous_format)
        for new, old in pairs
    ]


def differentiate(
    net: Net, loss: Loss, samples: Tensor, labels: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Differentiate the mean loss of one training pass.

    Returns:
        The gradients, one per parameter and laid out like it, 0 of those that the pass has not
        used; they are the caller's to write to. The mean loss. The logits.
    """
    parameters = net.trainable()
    logits = net(samples, training=True)
    mean = mean_of_scored(loss(logits, labels), labels)
    # unlike autograd.grad, this gives every parameter a gradient of its own, laid out like it
    mean.backward(inputs=parameters)  # type: ignore[no-untyped-call]
    return [_take_gradient(each) for each in parameters], mean.detach(), logits.detach()


def _take_gradient(parameter: torch.nn.Parameter) -> Tensor:
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def take_steps(
    step: LocalSgd,
    batches: Iterable[Batch],
    after_step: Callable[[], None] = lambda: None,
    run: Callable[[LocalSgd, Batch], Tensor] = LocalSgd.run,
    squares: Tensor | None = None,
) -> Trained:
    """Take a step on each batch, without waiting for the device.

    Args:
        step: to be taken again and again.
        batches: one for each.
        after_step: called after each; on a CUDA device steps are only queued by then.
        run: takes one step and returns the mean loss of its batch.
        squares: what `Trained` is to have.
    """
    means, counts = [], []
    for batch in on_device(batches, step.net.flat.device):
        means.append(run(step, batch))
        counts.append(len(batch[1]))
        after_step()
    return Trained(torch.stack(means), counts, squares)


@torch.inference_mode()
def evaluate(net: Net, batches: Iterable[Batch], loss: Loss, hits: Hits) -> tuple[int, float]:
    """Count the hits and sum the loss over the batches' scored items."""
    device = net.flat.device
    num_hits = torch.zeros((), dtype=torch.int64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for samples, labels in on_device(batches, device):
        logits = net(samples)
        num_hits += hits(logits, labels)
        loss_sum += loss(logits, labels).sum(dtype=torch.float64)  # 0 of what is not scored
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
