"""Any `torch.nn.Module` as a network that computes from one flat vector of weights.

The module is built once, then its tensors are laid into the vector: they stay the objects that the
module and others hold, so a pass is the module's own and costs what that costs.

Shapes: B batch, T tokens, P prunable entries, D dense entries, S statistics of static batch norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedgmr_hpc.models.layout import BatchNorm, Layout
from fedgmr_hpc.models.modules.streams import drawing_from
from fedgmr_hpc.models.modules.tensors import batch_norms, state_buffers

EVALUATION_SEED = 0  # of what a module draws in evaluation


class ModuleNet:
    """A module whose tensors are views of one flat vector; it has what `FlatNet` has.

    Args:
        module: as its factory has made it; it belongs to this network from now on.
        layout: of its tensors.
        device: where the vector lies; samples must lie there too.
        batch_norm: whether batch norms track their running statistics in training, or `statistics`
            has them, which training leaves alone.

    Attributes:
        flat: [P + D], training writes tracked running statistics there too.
        statistics: [S] of static batch norms, to be set or measured before an evaluation.
        generator: from which the module draws in training; callers seed it.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        device: torch.device | str = "cpu",
        batch_norm: BatchNorm = "tracked",
    ) -> None:
        self.module, self.layout = module.to(device), layout
        self.flat, self.statistics, self._parameters = lay_in(self.module, layout, device)
        self.generator = torch.Generator(device)
        self._evaluating = torch.Generator(device)
        self._norms = list(batch_norms(module).values())
        self._is_static = batch_norm == "static"
        self._buffers = _owned(module)
        if self._is_static:
            _track(self._norms, False)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return views of a flat vector [P + D], shaped and ordered as `trainable()`."""
        return [flat[e.span].view(e.shape) for e in self.layout.trainable]

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters in layout order; they share memory with `flat`."""
        return self._parameters

    def __call__(self, images: Tensor, training: bool = False) -> Tensor:
        """Compute logits [B, classes], or [B, T, vocabulary] for int64 tokens [B, T].

        Args:
            images: [B, ...] samples.
            training: let the module train: use dropout and batch statistics.
        """
        if self.module.training != training:
            self.module.train(training)
        if not training:
            return self._evaluate(images)
        with drawing_from(self.generator):
            logits: Tensor = self.module(images)
        self._keep_buffers()
        return logits

    def _evaluate(self, images: Tensor) -> Tensor:
        self._evaluating.manual_seed(EVALUATION_SEED)
        with drawing_from(self._evaluating), _no_negative_variance(self._norms):
            logits: Tensor = self.module(images)
        return logits

    @torch.no_grad()
    def _keep_buffers(self) -> None:
        """Write buffers that the module has replaced, rather than written, into the vector."""
        for owner, name, buffer in self._buffers:
            new = owner._buffers[name]
            if new is not buffer and new is not None:
                buffer.copy_(new)
                owner._buffers[name] = buffer

    @torch.inference_mode()
    def measure(self, images: Tensor) -> Tensor:
        """Set the statistics of static batch norms to those of one batch.

        Every norm normalises the batch by its own statistics, as later layers will see it.

        Returns:
            A copy of the statistics [S]: means and unbiased variances.
        """
        self.module.eval()
        self.statistics.zero_()
        momenta = [norm.momentum for norm in self._norms]
        _track(self._norms, True)
        for norm in self._norms:
            norm.training, norm.momentum = True, 1.0
        self._evaluating.manual_seed(EVALUATION_SEED)
        try:
            with drawing_from(self._evaluating):
                self.module(images)
        finally:
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.training, norm.momentum = False, momentum
            _track(self._norms, not self._is_static)
        return self.statistics.clone()


@torch.no_grad()
def lay_in(
    module: nn.Module, layout: Layout, device: torch.device | str
) -> tuple[Tensor, Tensor, list[nn.Parameter]]:
    """Make the tensors of a module views of new memory, which has their values.

    Returns:
        The vector [P + D], the statistics [S], and the parameters in layout order.
    """
    memory = torch.empty(layout.num_weights + layout.num_statistics, device=device)
    tensors = named_tensors(module)
    for entry in (*layout.entries, *layout.statistics):
        tensor = tensors[entry.name]
        view = memory[entry.span].view(entry.shape)
        tensor.data = view.copy_(tensor)
    parameters = [tensors[entry.name] for entry in layout.trainable]
    flat, statistics = memory[: layout.num_weights], memory[layout.num_weights :]
    return flat, statistics, [each for each in parameters if isinstance(each, nn.Parameter)]


def named_tensors(module: nn.Module) -> Mapping[str, Tensor]:
    """Return parameters and buffers by name, shared ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _owned(module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """List the buffers of the vector with the modules that have them."""
    found = {id(buffer) for buffer in state_buffers(module).values()}
    return [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and id(buffer) in found
    ]


def _track(norms: list[_BatchNorm], tracks: bool) -> None:
    """Let batch norms keep running statistics in training; without, they use the batch's alone."""
    for norm in norms:
        norm.track_running_stats = tracks


@contextmanager
def _no_negative_variance(norms: list[_BatchNorm]) -> Iterator[None]:
    """A server rule that adds changes can leave a running variance below zero: 0 stands for it."""
    variances = [norm._buffers["running_var"] for norm in norms]
    for norm, variance in zip(norms, variances, strict=True):
        assert variance is not None
        norm._buffers["running_var"] = variance.clamp_min(0)
    try:
        yield
    finally:
        for norm, variance in zip(norms, variances, strict=True):
            norm._buffers["running_var"] = variance
