"""Models described layer by layer: what registry.py has of the models of the paper.

The description gives the flat layout, the initial weights and every narrower network.

Shapes: P prunable entries, D dense entries, S statistics of static batch norms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.models.flat_net import FlatNet
from fedgmr_hpc.models.layers import Forward, LayerSpec
from fedgmr_hpc.models.layout import BatchNorm, Kind, Layout, lay_out


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model: its layers in forward order and what they compute together.

    Attributes:
        input_shape: of one sample: [channels, height, width], or the most tokens [T].
        layers: with their tensors, and how these start.
        logits: computes logits from the layers' tensors and a batch of samples.
        wrong_shape: says what is wrong with samples of a shape; None if nothing is.
        has_relative_scores: whether importance is relative to a layer's mean, as it must be where
            embeddings start about a hundred times as large as the encoders' weights.
    """

    input_shape: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    logits: Callable[[Forward, Tensor], Tensor]
    wrong_shape: Callable[[tuple[int, ...]], str | None]
    has_relative_scores: bool = False

    @property
    def num_outputs(self) -> int:
        """How many classes or tokens it tells apart."""
        return self.layers[-1].out.units

    def count_outputs(self, input_shape: tuple[int, ...], is_text: bool = False) -> int:
        """Return how many classes or tokens it tells apart, whatever the samples are."""
        return self.num_outputs

    @property
    def has_norms(self) -> bool:
        """Whether it has normalisation layers."""
        return any("norm" in layer.name for layer in self.layers)

    @property
    def has_batch_norms(self) -> bool:
        """Whether it has norms with running statistics."""
        return any(not tensor.trainable for layer in self.layers for tensor in layer.tensors)

    def layout(self, kind: Kind, density: float, batch_norm: BatchNorm) -> Layout:
        """Return the flat layout of the model, or of its narrower network of a width kind."""
        return lay_out(self.layers, kind, density, batch_norm)

    def misfit(
        self, input_shape: tuple[int, ...], num_classes: int, is_text: bool = False
    ) -> str | None:
        """Say why a data set does not fit; None if it does. Its shape tells whether it is text."""
        wrong = self.wrong_shape(input_shape)
        if wrong is not None:
            return f"{wrong}, not {input_shape}"
        if num_classes > self.num_outputs:
            return f"has {self.num_outputs} outputs, not {num_classes}"
        return None

    def initial_weights(self, seed: int, kind: Kind, batch_norm: BatchNorm) -> Floats:
        """Draw the initial flat vector [P + D]; each layer has a random stream of its own."""
        layout = self.layout(kind, 1.0, batch_norm)
        flat = np.empty(layout.num_weights + layout.num_statistics, np.float32)
        for index, layer in enumerate(self.layers):
            rng = make_rng(seed, "init", step=index)
            for tensor in layer.tensors:
                entry = layout[f"{layer.name}.{tensor.part}"]
                flat[entry.span] = tensor.start.draw(rng, entry.size)
        return flat[: layout.num_weights]

    def make_net(
        self,
        device: torch.device | str,
        kind: Kind,
        density: float,
        scaler: bool,
        batch_norm: BatchNorm,
        seed: int,
    ) -> FlatNet:
        """Build what computes the model, or its narrower network; nothing of it is drawn."""
        return FlatNet(self, device, kind, density, scaler, batch_norm)
