"""A model that computes from one flat vector of weights, at full width or narrower.

Shapes: B batch, T tokens, P prunable entries, D dense entries, S statistics of static norms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedgmr_hpc.config.choices.registry import MODELS
from fedgmr_hpc.fl.widths import kept_units
from fedgmr_hpc.models.layers import Forward, NormUse
from fedgmr_hpc.models.layout import BatchNorm, Entry, Kind

if TYPE_CHECKING:
    from fedgmr_hpc.models.architecture import Architecture


class FlatNet:
    """A model whose tensors are views of one flat vector: writing the vector is loading the model.

    Args:
        model: its description, or the name of one in `MODELS`.
        device: where the vector lies; samples must lie there too.
        kind: how sub-models are cut, on which the layout depends.
        density: of the narrower network that this is; below 1 only for width kinds.
        scaler: in training divide each layer's output by its kept share of units, as HeteroFL does,
            so that a narrow layer's output is of the size of the whole one's.
        batch_norm: whether batch norms track their running statistics in training, or `statistics`
            has them, which training leaves alone.

    Attributes:
        layout: names, shapes and offsets in `flat`.
        flat: [P + D], training writes tracked running statistics there too.
        statistics: [S] of static batch norms, to be set or measured before an evaluation.
        tensors: the views by name; those that train are parameters.
        generator: from which dropout draws; callers seed it.

    Raises:
        ValueError: an unknown model or kind, or no network of that kind has that density.
    """

    def __init__(
        self,
        model: str | Architecture,
        device: torch.device | str = "cpu",
        kind: Kind = "importance",
        density: float = 1.0,
        scaler: bool = False,
        batch_norm: BatchNorm = "tracked",
    ) -> None:
        described = MODELS[model] if isinstance(model, str) else model
        self.layout = described.layout(kind, density, batch_norm)
        sizes = self.layout.num_weights, self.layout.num_statistics
        memory = torch.zeros(sum(sizes), device=device)
        self.flat, self.statistics = memory[: sizes[0]], memory[sizes[0] :]
        entries = (*self.layout.entries, *self.layout.statistics)
        self.tensors = {e.name: view_of(memory, e) for e in entries}
        self.generator = torch.Generator(device)
        self._logits = described.logits
        shares = _kept_shares(described, density) if scaler else {}
        common = self.generator, shares
        self._evaluating = Forward(self.tensors, False, *common)
        self._measuring = Forward(self.tensors, False, *common, "measured")
        norms: NormUse = "batch" if batch_norm == "static" else "tracked"
        self._training = Forward(self.tensors, True, *common, norms)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return views of a flat vector [P + D], shaped and ordered as `trainable()`."""
        return [flat[e.span].view(e.shape) for e in self.layout.trainable]

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters in layout order; they share memory with `flat`."""
        return [tensor for tensor in self.tensors.values() if isinstance(tensor, nn.Parameter)]

    def __call__(self, images: Tensor, training: bool = False) -> Tensor:
        """Compute logits.

        Args:
            images: [B, channels, height, width], or int64 tokens [B, T] in their place.
            training: use dropout and batch statistics, and update tracked running ones.

        Returns:
            Logits [B, classes], or [B, T, vocabulary] for tokens.
        """
        return self._logits(self._training if training else self._evaluating, images)

    @torch.inference_mode()
    def measure(self, images: Tensor) -> Tensor:
        """Set the statistics of static batch norms to those of one batch.

        Every norm normalises the batch by its own statistics, as later layers will see it.

        Returns:
            A copy of the statistics [S]: means and unbiased variances.
        """
        # momentum 1 replaces them, but 0 times a value that is not finite would stay
        self.statistics.zero_()
        self._logits(self._measuring, images)
        return self.statistics.clone()


def view_of(flat: Tensor, entry: Entry) -> Tensor:
    """Return the tensor in a flat vector, as a parameter if it trains."""
    view = flat[entry.span].view(entry.shape)
    return nn.Parameter(view) if entry.trainable else view


def _kept_shares(model: Architecture, density: float) -> dict[str, float]:
    """Return the kept share of output units of each layer that loses some."""
    outputs = {layer.name: layer.out for layer in model.layers}
    shares = {name: kept_units(out, density) / out.units for name, out in outputs.items()}
    return {name: share for name, share in shares.items() if share < 1}
