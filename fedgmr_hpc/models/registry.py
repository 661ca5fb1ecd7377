"""The models by name, and what follows from a name: layout, initial weights, data that fit.

There are two kinds: those of the paper are described layer by layer (`Architecture`), those of a
user come from a factory of modules (`ModuleFactory`). Parameter counts, prunable layers and initial
bounds: docs/method.md#models.

Shapes: P prunable entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from fedgmr_hpc.config.choices.registry import MODELS
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.models.architecture import Architecture
from fedgmr_hpc.models.convnets import TABLES, convnet_layers, convnet_logits
from fedgmr_hpc.models.flat_net import FlatNet
from fedgmr_hpc.models.layers import with_kaiming_convolutions
from fedgmr_hpc.models.layout import BatchNorm, Kind, Layout
from fedgmr_hpc.models.modules.model import ModuleFactory, ModuleModel
from fedgmr_hpc.models.modules.net import ModuleNet
from fedgmr_hpc.models.resnet import INPUT_SHAPE, resnet18_layers, resnet18_logits, resnet18_misfit
from fedgmr_hpc.models.transformer import (
    MAX_TOKENS,
    transformer_layers,
    transformer_logits,
    transformer_misfit,
)

Model = Architecture | ModuleModel
Factory = TypeVar("Factory", bound=Callable[..., Any])


def _exact_misfit(expected: tuple[int, ...], input_shape: tuple[int, ...]) -> str | None:
    return None if input_shape == expected else f"takes images {expected}"


def _convnet(name: str) -> Architecture:
    shape, table = TABLES[name]
    logits, misfit = partial(convnet_logits, table), partial(_exact_misfit, shape)
    return Architecture(shape, convnet_layers(table), logits, misfit)


for _name in TABLES:
    MODELS.add(_name, _convnet(_name))
MODELS.add(
    "resnet18", Architecture(INPUT_SHAPE, resnet18_layers(), resnet18_logits, resnet18_misfit)
)
MODELS.add(
    "transformer",
    Architecture((MAX_TOKENS,), transformer_layers(), transformer_logits, transformer_misfit, True),
)


def register_model(
    name: str,
    *,
    input_shape: Iterable[int | None],
    prunable: Callable[[str, nn.Parameter], bool] | Iterable[str] | None = None,
    costs: Mapping[str, float] | None = None,
) -> Callable[[Factory], Factory]:
    """Return a decorator that registers a factory of modules as a model.

    The factory takes nothing, or `num_classes`. A class of options (`Section`) with a method
    `build` is a factory, too: its fields are keys of `model`.

    Args:
        name: value of `model.name`.
        input_shape: of one sample: (channels, height, width), None where any size fits; (T,) of
            texts of up to T tokens.
        prunable: what masks may cut: a predicate of a parameter's name and the parameter, or names
            of parameters or modules, in which * stands for anything. By default the weights of
            convolutions, linear and embedding layers and attention projections but the last.
        costs: kappa of prunable tensors by such names (docs/method.md#layer-costs); 1 for others.

    Example:
        >>> @fedgmr_hpc.register_model("mine", input_shape=(3, 32, 32))
        ... def mine(num_classes):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))
    """
    names = prunable if prunable is None or callable(prunable) else _names(prunable)

    def add(factory: Factory) -> Factory:
        MODELS.add(name, ModuleFactory(name, factory, tuple(input_shape), names, costs))
        return factory

    return add


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def find_model(
    name: str, num_classes: int | None = None, options: Mapping[str, Any] | None = None
) -> Model:
    """Return the model of this name.

    Args:
        num_classes: of the data, for a factory that asks for it.
        options: of the model, by key.

    Raises:
        ValueError: there is no such model.
    """
    entry = MODELS[name]
    if isinstance(entry, Architecture):
        return entry
    assert isinstance(entry, ModuleFactory)
    return entry.bound(num_classes, options or {})


def run_model(config: Config, num_classes: int | None = None) -> Model:
    """Return the model of a run, whose data have so many classes."""
    section = config.model
    options = {option: getattr(section, option) for option in MODELS.options(section.name)}
    model = find_model(section.name, num_classes, options)
    if section.init == "kaiming" and isinstance(model, Architecture):
        return replace(model, layers=with_kaiming_convolutions(model.layers))
    return model


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
    return find_model(model).layout(kind, density, batch_norm)


def run_layout(config: Config, num_classes: int | None = None) -> Layout:
    """Return the flat layout of a run's whole model."""
    model = run_model(config, num_classes)
    return model.layout(config.submodel.kind, 1.0, config.train.batch_norm)


def run_weights(config: Config, num_classes: int | None = None) -> Floats:
    """Return the initial flat vector [P + D] of a run's whole model."""
    choices = config.submodel.kind, config.train.batch_norm
    return run_model(config, num_classes).initial_weights(config.seed, *choices)


def run_net(
    config: Config,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
    density: float = 1.0,
    scaler: bool = False,
) -> FlatNet | ModuleNet:
    """Build the network of a run's model, or its narrower one of a density."""
    model, kind = run_model(config, num_classes), config.submodel.kind
    return model.make_net(device, kind, density, scaler, config.train.batch_norm, config.seed)


def input_shape(model: str) -> tuple[int | None, ...]:
    """Return [channels, height, width] of a model's images, or the most tokens [T] it takes."""
    return find_model(model).input_shape


def accepts(
    model: str, input_shape: tuple[int, ...], num_classes: int, is_text: bool = False
) -> str | None:
    """Say why a data set does not fit a model; None if it does.

    Args:
        input_shape: of its samples: [channels, height, width] of images, [T] of token sequences.
        num_classes: it has, or the size of its vocabulary.
        is_text: whether samples are token sequences.
    """
    return find_model(model, num_classes).misfit(input_shape, num_classes, is_text)


def initial_weights(
    model: str, seed: int, kind: Kind = "importance", batch_norm: BatchNorm = "tracked"
) -> Floats:
    """Draw the initial flat vector [P + D], float32; its values depend on the seed alone."""
    return find_model(model).initial_weights(seed, kind, batch_norm)
