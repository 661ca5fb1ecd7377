"""The models and the flat view of their weights.

A model is found by name in `registry`. It is a description of layers (`architecture`, made of
`layers` by `convnets`, `resnet` and `transformer`) or any torch module (`modules`). Its tensors are
views of one flat vector (`layout`), with which `flat_net` or `modules.net` compute. `as_module`
makes an ordinary torch module of a model. `losses` has the losses and the hits.
"""

from fedgmr_hpc.config.choices.registry import MODELS
from fedgmr_hpc.models.as_module import DescribedModule, module_with_weights, state_dict_of
from fedgmr_hpc.models.convnets import TABLES, Layer
from fedgmr_hpc.models.flat_net import FlatNet
from fedgmr_hpc.models.layout import WIDTH_KINDS, BatchNorm, Entry, Kind, Layout
from fedgmr_hpc.models.losses import (
    NOT_SCORED,
    count_hits,
    hide_classes,
    loss_function,
    mean_of_scored,
    soft_loss,
)
from fedgmr_hpc.models.modules.net import ModuleNet
from fedgmr_hpc.models.registry import (
    accepts,
    find_model,
    initial_weights,
    input_shape,
    make_layout,
    register_model,
    run_layout,
    run_model,
    run_net,
    run_weights,
)

__all__ = [
    "MODELS",
    "NOT_SCORED",
    "TABLES",
    "WIDTH_KINDS",
    "BatchNorm",
    "DescribedModule",
    "Entry",
    "FlatNet",
    "Kind",
    "Layer",
    "Layout",
    "ModuleNet",
    "accepts",
    "count_hits",
    "find_model",
    "hide_classes",
    "initial_weights",
    "input_shape",
    "loss_function",
    "mean_of_scored",
    "make_layout",
    "module_with_weights",
    "register_model",
    "run_layout",
    "run_model",
    "run_net",
    "run_weights",
    "soft_loss",
    "state_dict_of",
]
