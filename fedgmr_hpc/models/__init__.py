"""The models and the flat view of their weights.

A model is a description of layers (`layers`, `convnets`, `resnet`, `transformer`), found by name in
`registry`. Its tensors are views of one flat vector (`layout`), with which `flat_net` computes.
`as_module` makes an ordinary torch module of
it. `losses` has the losses and the hits.
"""

from fedgmr_hpc.models.as_module import DescribedModule, module_with_weights, state_dict_of
from fedgmr_hpc.models.convnets import TABLES, Layer
from fedgmr_hpc.models.flat_net import FlatNet
from fedgmr_hpc.models.layout import WIDTH_KINDS, BatchNorm, Entry, Kind, Layout
from fedgmr_hpc.models.losses import NOT_SCORED, count_hits, hide_classes, loss_function, soft_loss
from fedgmr_hpc.models.registry import (
    MODELS,
    accepts,
    architecture,
    has_batch_norms,
    has_norms,
    initial_weights,
    input_shape,
    make_layout,
    num_outputs,
    run_layout,
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
    "accepts",
    "architecture",
    "count_hits",
    "has_batch_norms",
    "has_norms",
    "hide_classes",
    "initial_weights",
    "input_shape",
    "loss_function",
    "make_layout",
    "module_with_weights",
    "num_outputs",
    "run_layout",
    "run_weights",
    "soft_loss",
    "state_dict_of",
]
