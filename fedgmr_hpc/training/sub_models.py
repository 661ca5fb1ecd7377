"""Build the trainable sub-model that a configuration asks for.

Width methods train a narrower network (`NarrowModel`); every other kind masks the whole network in
place (`MaskedModel`), but on the CPU layers of few kept weights can train as the vector of them
(`CompactModel`). All have the same interface: `load`, `train`, `spread`, `in_use` and `entries`.
"""

from __future__ import annotations

from functools import partial

import torch

from fedgmr_hpc.config.axes import WIDTH_KINDS
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.sections import CompactBelow, Precision
from fedgmr_hpc.models import MODELS, Entry, FlatNet, Layout, run_layout, run_model, run_net
from fedgmr_hpc.models.architecture import Architecture
from fedgmr_hpc.training.compact import CompactModel
from fedgmr_hpc.training.compact_layout import IsCompact
from fedgmr_hpc.training.kernels.choice import make_kernels
from fedgmr_hpc.training.masked import GatedBias, MaskedModel
from fedgmr_hpc.training.narrow import NarrowModel
from fedgmr_hpc.training.precision import in_precision
from fedgmr_hpc.training.sgd import Net


def gated_biases(layout: Layout) -> list[GatedBias]:
    """List the biases that count only while at least one weight of their unit is kept."""
    return [
        GatedBias(entry.span, layout[entry.gated_by].span, entry.size)
        for entry in layout.entries
        if entry.gated_by is not None
    ]


def compact_choice(below: CompactBelow) -> IsCompact:
    """Return what chooses the layers that train compact, by kind, size and density alone."""

    def is_compact(weight: Entry, num_kept: int) -> bool:
        if weight.kind is None or (weight.kind != "conv" and weight.size < below.min_weights):
            return False
        limit: float = getattr(below, weight.kind)
        return num_kept < limit * weight.size

    return is_compact


def kernels_in_use(config: Config, device: str = "cpu") -> str:
    """Return the name of what computes compact layers; "" where no layer can be compact."""
    return make_kernels().name if _can_be_compact(config, device) else ""


def _can_be_compact(config: Config, device: str) -> bool:
    """Return whether a mask could leave so little of a layer that it trains compact."""
    if (
        config.submodel.kind not in ("importance", "magnitude")
        or torch.device(device).type != "cpu"
    ):
        return False
    if config.train.precision == "bf16":  # the kernels are of fp32
        return False
    if not isinstance(MODELS[config.model.name], Architecture):
        return False
    is_compact = compact_choice(config.train.compact_below)
    return any(is_compact(each, 0) for each in run_layout(config).entries if each.prunable)


def make_sub_model(
    config: Config,
    device: str = "cpu",
    num_classes: int | None = None,
    precision: Precision = "fp32",
) -> MaskedModel | NarrowModel:
    """Build what trains sub-models of the run's kind.

    Args:
        config: the run's configuration.
        device: where weights and batches lie while training.
        num_classes: of the data.
        precision: what its passes multiply in.
    """
    layout, submodel = run_layout(config, num_classes), config.submodel
    if submodel.kind in WIDTH_KINDS:
        make_net = partial(_narrow_net, config, device, num_classes, precision)
        axes = [entry.axes for entry in layout.entries]
        return NarrowModel(make_net, axes, layout.num_prunable)
    gated = gated_biases(layout) if submodel.gate_biases else []
    has_threshold = submodel.kind == "magnitude"
    net = run_net(config, num_classes, device)
    if _can_be_compact(config, device):
        assert isinstance(net, FlatNet)
        is_compact = compact_choice(config.train.compact_below)
        return CompactModel(
            net, gated, is_compact, make_kernels(), has_threshold, submodel.surrogate
        )
    return MaskedModel(
        in_precision(net, precision),
        layout.num_prunable,
        gated,
        through_threshold=layout.prunable_spans if has_threshold else (),
        surrogate=submodel.surrogate,
    )


def _narrow_net(
    config: Config, device: str, num_classes: int | None, precision: Precision, density: float
) -> Net:
    scaler = config.submodel.scaler and run_model(config, num_classes).has_norms
    return in_precision(run_net(config, num_classes, device, density, scaler), precision)
