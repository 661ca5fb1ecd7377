"""A run's model as an ordinary `torch.nn.Module`, and its weights as a state dict.

Shapes: P prunable entries, D dense entries, S statistics of static batch norms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedgmr_hpc.config.messages import must
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.models.architecture import Architecture
from fedgmr_hpc.models.layers import Forward, NormUse
from fedgmr_hpc.models.modules.net import named_tensors
from fedgmr_hpc.models.registry import run_model


def state_dict_of(layout_json: str, weights: Floats) -> dict[str, Tensor]:
    """Return copies of a model's tensors by name.

    Args:
        layout_json: names, shapes and offsets, as a result file has them.
        weights: [P + D + S].

    Raises:
        ValueError: there are not as many weights as the layout has entries.
    """
    layout: dict[str, Any] = json.loads(layout_json)
    rows = [dict(zip(layout["columns"], row, strict=True)) for row in layout["tensors"]]
    ends = [row["offset"] + math.prod(row["shape"]) for row in rows]
    if len(weights) != max(ends):
        raise ValueError(must("weights", f"have {max(ends)} entries, as the layout", len(weights)))
    flat = torch.from_numpy(weights.copy())
    spans = zip(rows, ends, strict=True)
    return {row["name"]: flat[row["offset"] : end].view(row["shape"]) for row, end in spans}


def module_with_weights(config: Config, layout_json: str, weights: Floats) -> nn.Module:
    """Build a run's whole model as a module with these weights, in evaluation mode.

    Of a registered model it is the module that the factory makes.

    Args:
        config: of the run.
        layout_json: names, shapes and offsets, as the run's result file has them.
        weights: [P + D + S].
    """
    tensors = state_dict_of(layout_json, weights)
    model = run_model(config, json.loads(layout_json).get("num_classes"))
    if isinstance(model, Architecture):
        return DescribedModule(model, tensors).eval()
    module = model.build(config.seed)
    own = named_tensors(module)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return module.eval()


class DescribedModule(nn.Module):
    """A model that is described layer by layer, as a module.

    Its parameters and buffers have the names that they have in a result file. Dropout draws from
    torch's own generator.

    Args:
        model: its description.
        tensors: the model's tensors by name, at full width.
    """

    def __init__(self, model: Architecture, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._logits = model.logits
        is_trained = {
            f"{layer.name}.{tensor.part}": tensor.trainable
            for layer in model.layers
            for tensor in layer.tensors
        }
        for name in is_trained:  # in forward order
            self._put(name, tensors[name], is_trained[name])

    def _put(self, name: str, tensor: Tensor, is_trained: bool) -> None:
        """Register a tensor under its dotted name."""
        *folders, last = name.split(".")
        owner: nn.Module = self
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        if is_trained:
            owner.register_parameter(last, nn.Parameter(tensor))
        else:
            owner.register_buffer(last, tensor)

    def forward(self, samples: Tensor) -> Tensor:
        """Compute logits [B, classes] of images, or [B, T, vocabulary] of int64 tokens [B, T]."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        norms: NormUse = "tracked" if self.training else "given"
        return self._logits(Forward(tensors, self.training, None, {}, norms), samples)
