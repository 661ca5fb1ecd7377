"""The models by name, and what follows from a name: layout, initial weights, data that fit.

Parameter counts, prunable layers and initial bounds: docs/method.md#models.

Shapes: P prunable entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from fedgmr_hpc.config.messages import unknown_choice
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.models.convnets import TABLES, convnet_layers, convnet_logits
from fedgmr_hpc.models.layers import Forward, LayerSpec
from fedgmr_hpc.models.layout import BatchNorm, Kind, Layout, lay_out
from fedgmr_hpc.models.resnet import INPUT_SHAPE, resnet18_layers, resnet18_logits, resnet18_misfit
from fedgmr_hpc.models.transformer import (
    MAX_TOKENS,
    transformer_layers,
    transformer_logits,
    transformer_misfit,
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model: its layers in forward order and what they compute together.

    Attributes:
        input_shape: of one sample: [channels, height, width], or the most tokens [T].
        logits: computes logits from the layers' tensors and a batch of samples.
        misfit: says what is wrong with samples of a shape; None if nothing is.
        has_relative_scores: whether importance is relative to a layer's mean, as it must be where
            embeddings start about a hundred times as large as the encoders' weights.
    """

    input_shape: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    logits: Callable[[Forward, Tensor], Tensor]
    misfit: Callable[[tuple[int, ...]], str | None]
    has_relative_scores: bool = False


def _exact_misfit(expected: tuple[int, ...], input_shape: tuple[int, ...]) -> str | None:
    return None if input_shape == expected else f"takes images {expected}"


def _convnet(name: str) -> Architecture:
    shape, table = TABLES[name]
    logits, misfit = partial(convnet_logits, table), partial(_exact_misfit, shape)
    return Architecture(shape, convnet_layers(table), logits, misfit)


MODELS: dict[str, Architecture] = {
    **{name: _convnet(name) for name in TABLES},
    "resnet18": Architecture(INPUT_SHAPE, resnet18_layers(), resnet18_logits, resnet18_misfit),
    "transformer": Architecture(
        (MAX_TOKENS,), transformer_layers(), transformer_logits, transformer_misfit, True
    ),
}


def architecture(model: str) -> Architecture:
    """Return the model of this name.

    Raises:
        ValueError: there is no such model.
    """
    if model not in MODELS:
        raise ValueError(unknown_choice("model.name", model, MODELS))
    return MODELS[model]


def make_layout(
    model: str,
    kind: Kind = "importance",
    density: float = 1.0,
    batch_norm: BatchNorm = "tracked",
) -> Layout:
    """Return the flat layout of a model, or of its narrower network of a width kind.

    Raises:
        ValueError: an unknown model or kind, or no network of that kind has that density.
    """
    return lay_out(architecture(model).layers, kind, density, batch_norm)


def run_layout(config: Config) -> Layout:
    """Return the flat layout of a run's whole model."""
    return make_layout(config.model.name, config.submodel.kind, batch_norm=config.train.batch_norm)


def run_weights(config: Config) -> Floats:
    """Return the initial flat vector [P + D] of a run's whole model."""
    choices = config.submodel.kind, config.train.batch_norm
    return initial_weights(config.model.name, config.seed, *choices)


def has_norms(model: str) -> bool:
    """Tell whether a model has normalisation layers."""
    return any("norm" in layer.name for layer in architecture(model).layers)


def has_batch_norms(model: str) -> bool:
    """Tell whether a model has norms with running statistics."""
    return any(not t.trainable for layer in architecture(model).layers for t in layer.tensors)


def input_shape(model: str) -> tuple[int, ...]:
    """Return [channels, height, width] of a model's images, or the most tokens [T] it takes."""
    return architecture(model).input_shape


def num_outputs(model: str) -> int:
    """Return how many classes or tokens a model tells apart."""
    return architecture(model).layers[-1].out.units


def accepts(model: str, input_shape: tuple[int, ...], num_classes: int) -> str | None:
    """Say why a data set does not fit a model; None if it does.

    Args:
        input_shape: of its samples: [channels, height, width] of images, [T] of token sequences.
        num_classes: it has, or the size of its vocabulary.
    """
    wrong = architecture(model).misfit(input_shape)
    if wrong is not None:
        return f"{wrong}, not {input_shape}"
    if num_classes > num_outputs(model):
        return f"has {num_outputs(model)} outputs, not {num_classes}"
    return None


def initial_weights(
    model: str, seed: int, kind: Kind = "importance", batch_norm: BatchNorm = "tracked"
) -> Floats:
    """Draw the initial flat vector [P + D], float32.

    Each layer has a random stream of its own, so its values depend on the seed alone.
    """
    layout = make_layout(model, kind, batch_norm=batch_norm)
    flat = np.empty(layout.num_weights + layout.num_statistics, np.float32)
    for index, layer in enumerate(architecture(model).layers):
        rng = make_rng(seed, "init", step=index)
        for tensor in layer.tensors:
            entry = layout[f"{layer.name}.{tensor.part}"]
            flat[entry.span] = tensor.start.draw(rng, entry.size)
    return flat[: layout.num_weights]
