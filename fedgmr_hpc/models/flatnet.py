"""A model that computes from one flat vector of weights, at full width or narrower.

Shapes: B batch, T tokens, P prunable entries, D dense entries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedgmr_hpc.fl.widths import kept_units
from fedgmr_hpc.models.layers import Forward
from fedgmr_hpc.models.layout import Entry, Kind
from fedgmr_hpc.models.registry import architecture, make_layout


class FlatNet:
    """A model whose tensors are views of one flat vector: writing the vector is loading the model.

    Args:
        model: a name in `MODELS`.
        device: where the vector lies; samples must lie there too.
        kind: how sub-models are cut, on which the layout depends.
        density: of the narrower network that this is; below 1 only for width kinds.
        scaler: divide each layer's output by its kept share of units, as HeteroFL does in training,
            so that a narrow layer's output is of the size of the whole one's; in evaluation too,
            since the running statistics are those of scaled outputs.

    Attributes:
        layout: names, shapes and offsets in `flat`.
        flat: [P + D], training writes running statistics there too.
        tensors: the views by name; those that train are parameters.
        generator: from which dropout draws; callers seed it.

    Raises:
        ValueError: an unknown model or kind, or no network of that kind has that density.
    """

    def __init__(
        self,
        model: str,
        device: torch.device | str = "cpu",
        kind: Kind = "importance",
        density: float = 1.0,
        scaler: bool = False,
    ) -> None:
        self.layout = make_layout(model, kind, density)
        self.flat = torch.zeros(self.layout.num_weights, device=device)
        self.tensors = {e.name: _view(self.flat, e) for e in self.layout.entries}
        self.generator = torch.Generator(device)
        self._logits = architecture(model).logits
        shares = _kept_shares(model, density) if scaler else {}
        self._passes = {
            training: Forward(self.tensors, training, self.generator, shares)
            for training in (False, True)
        }

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector [P + D], shaped as and in the order of `trainable()`."""
        return [flat[e.span].view(e.shape) for e in self.layout.trainable]

    def trainable(self) -> list[nn.Parameter]:
        """The parameters in layout order; they share memory with `flat`."""
        return [tensor for tensor in self.tensors.values() if isinstance(tensor, nn.Parameter)]

    def __call__(self, images: Tensor, training: bool = False) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width], or [B, T, vocabulary] of
        int64 tokens [B, T] in their place.

        Args:
            training: use dropout and batch statistics, and update the running ones.
        """
        return self._logits(self._passes[training], images)


def _view(flat: Tensor, entry: Entry) -> Tensor:
    view = flat[entry.span].view(entry.shape)
    return nn.Parameter(view) if entry.trainable else view


def _kept_shares(model: str, density: float) -> dict[str, float]:
    """Kept share of the output units of each layer that loses some."""
    outputs = {layer.name: layer.out for layer in architecture(model).layers}
    shares = {name: kept_units(out, density) / out.units for name, out in outputs.items()}
    return {name: share for name, share in shares.items() if share < 1}
