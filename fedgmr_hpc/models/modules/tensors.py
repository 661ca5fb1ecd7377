"""Which tensors of a `torch.nn.Module` make up the flat vector, and which of them masks may cut.

By default those are the weights of its convolutions, linear layers, embeddings and attention
projections (a packed `in_proj_weight` is one tensor) but the last in the order of registration; a
weight that is shared is there once. Other parameters, and buffers that a state dict would have,
are dense. Frozen parameters, buffers that are no state (`persistent=False`) and integers are left
as the factory makes them: nobody trains, sends or merges them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from fedgmr_hpc.config.messages import did_you_mean, must, must_be
from fedgmr_hpc.models.layout import Entry

Prunable = Callable[[str, nn.Parameter], bool] | Iterable[str] | None
LAYERS = (_ConvNd, nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)
WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
STATISTICS = ("running_mean", "running_var")  # of a batch norm
WITH_BIASES = (_ConvNd, nn.Linear, nn.MultiheadAttention, nn.RNNBase)  # [units, ...] and [units]


def read_tensors(
    module: nn.Module, prunable: Prunable = None, costs: Mapping[str, float] | None = None
) -> tuple[Entry, ...]:
    """Return the tensors of the flat vector in the order of registration, without their places.

    Args:
        module: as a factory has made it.
        prunable: what masks may cut: a predicate of a parameter's name and the parameter, or names
            in which * stands for anything; None for the default.
        costs: kappa by such names; 1 for the others.

    Raises:
        ValueError: it has a tensor that cannot be trained so, or no parameter or module has
            such a name.
    """
    parameters = dict(trained_parameters(module))
    check_tensors(module)
    cut = _prunable_names(module, parameters, prunable)
    entries = []
    for name, tensor in (*parameters.items(), *state_buffers(module).items()):
        entries.append(
            Entry(name, tuple(tensor.shape), 0, name in cut, 1.0, trainable=name in parameters)
        )
    gates, kappa = _gates(module, cut), _costs(parameters, costs or {})
    return tuple(
        replace(e, gated_by=gates.get(e.name), cost=kappa.get(e.name, 1.0)) for e in entries
    )


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that are not frozen, a shared one under its first name."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def state_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of floating point that a state dict has, by name."""
    return {name: each for name, each in _persistent(module) if each.is_floating_point()}


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms with running statistics, by name."""
    return {
        name: each
        for name, each in module.named_modules()
        if isinstance(each, _BatchNorm) and each.running_mean is not None
    }


def embeddings(module: nn.Module) -> Iterator[str]:
    """Yield the names of the weights of embeddings."""
    for folder, owner in module.named_modules():
        if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
            yield dotted(folder, "weight")


def dotted(folder: str, name: str) -> str:
    """Return the name of a tensor of a module."""
    return f"{folder}.{name}" if folder else name


def _persistent(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    names = {id(each): name for name, each in reversed(list(module.named_buffers()))}
    for folder, owner in module.named_modules():
        for name, buffer in owner._buffers.items():
            is_state = buffer is not None and name not in owner._non_persistent_buffers_set
            if is_state and names.get(id(buffer)) == dotted(folder, name):
                yield dotted(folder, name), buffer


def check_tensors(module: nn.Module) -> None:
    """Refuse a module without parameters to train, and one whose tensors have no place."""
    parameters = list(trained_parameters(module))
    if not parameters:
        raise ValueError(must("it", "have parameters that are trained"))
    for name, tensor in (*parameters, *state_buffers(module).items()):
        if is_lazy(tensor):
            reason = "pass a batch through it in the factory"
            raise ValueError(must(name, "have a shape", because=reason))
        if tensor.dtype != torch.float32:
            raise ValueError(must_be(name, "float32", found=str(tensor.dtype).split(".")[-1]))
        if not tensor.isfinite().all():
            reason = "" if name in dict(parameters) else "persistent=False keeps a constant out"
            raise ValueError(must_be(name, "finite", because=reason))
    for name, norm in batch_norms(module).items():
        if norm.momentum is None:
            raise ValueError(must_be(dotted(name, "momentum"), "a number", None))


def _prunable_names(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], prunable: Prunable
) -> set[str]:
    if prunable is None:
        return _default_names(module, parameters)
    if callable(prunable):
        found = {name for name, each in parameters.items() if prunable(name, each)}
    else:
        found = {name for pattern in prunable for name in _matching(parameters, pattern)}
    if not found:
        raise ValueError(must("prunable", "choose at least one parameter"))
    return found


def _default_names(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> set[str]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    weights = [
        owner._parameters.get(weight)
        for owner in module.modules()
        if isinstance(owner, LAYERS)
        for weight in WEIGHTS
    ]
    found = [names[id(weight)] for weight in weights if id(weight) in names]
    if not found:
        reason = "else name with prunable= what masks may cut"
        raise ValueError(
            must("it", "have a convolution, a linear or an embedding layer", because=reason)
        )
    last = found[-1]  # of the output layer, wherever else that weight is used
    return set(found) - {last} or {last}


def _matching(parameters: Mapping[str, Any], pattern: str) -> list[str]:
    """Return the parameters of this name, or of the modules of this name."""
    found = [
        name
        for name in parameters
        if fnmatchcase(name, pattern) or fnmatchcase(name, dotted(pattern, "*"))
    ]
    if not found:
        hint = did_you_mean(pattern, parameters)
        raise ValueError(must_be("a name", "that of a parameter or module", pattern) + hint)
    return found


def _costs(parameters: Mapping[str, Any], costs: Mapping[str, float]) -> dict[str, float]:
    for pattern, cost in costs.items():
        if not cost > 0:
            raise ValueError(must_be(f"the cost of {pattern}", "more than 0", cost))
    names = {pattern: _matching(parameters, pattern) for pattern in costs}
    return {name: costs[pattern] for pattern, found in names.items() for name in found}


def _gates(module: nn.Module, cut: set[str]) -> dict[str, str]:
    """Return the prunable weight beside each dense bias that counts only while its unit has
    weights.
    """
    found = {}
    for folder, owner in module.named_modules():
        if not isinstance(owner, WITH_BIASES) or isinstance(owner, _ConvTransposeNd):
            continue
        for name in owner._parameters:
            bias, weight = dotted(folder, name), dotted(folder, name.replace("bias", "weight"))
            if "bias" in name and weight in cut and bias not in cut:
                found[bias] = weight
    return found
