"""Build the trainable sub-model that a configuration asks for.

Width methods train a narrower network (`NarrowModel`); every other kind masks the whole network in
place (`MaskedModel`). Both have the same interface: `load`, `train`, `in_use` and `entries`.
"""

from __future__ import annotations

from functools import partial

from fedgmr_hpc.config.axes import WIDTH_KINDS
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.models import FlatNet, Layout, has_norms, run_layout
from fedgmr_hpc.training.masked import GatedBias, MaskedModel
from fedgmr_hpc.training.narrow import NarrowModel


def gated_biases(layout: Layout) -> list[GatedBias]:
    """List the biases that count only while at least one weight of their unit is kept."""
    return [
        GatedBias(entry.span, layout[entry.gated_by].span, entry.size)
        for entry in layout.entries
        if entry.gated_by is not None
    ]


def make_whole_net(config: Config, device: str = "cpu") -> FlatNet:
    """Build the run's network at full width."""
    kind, batch_norm = config.submodel.kind, config.train.batch_norm
    return FlatNet(config.model.name, device, kind, batch_norm=batch_norm)


def make_sub_model(config: Config, device: str = "cpu") -> MaskedModel | NarrowModel:
    """Build what trains sub-models of the run's kind.

    Args:
        config: the run's configuration.
        device: where weights and batches lie while training.
    """
    layout, submodel = run_layout(config), config.submodel
    if submodel.kind in WIDTH_KINDS:
        make_net = partial(_narrow_net, config, device)
        axes = [entry.axes for entry in layout.entries]
        return NarrowModel(make_net, axes, layout.num_prunable)
    spans = [entry.span for entry in layout.entries if entry.prunable]
    return MaskedModel(
        make_whole_net(config, device),
        layout.num_prunable,
        gated_biases(layout) if submodel.gate_biases else (),
        through_threshold=spans if submodel.kind == "magnitude" else (),
        surrogate=submodel.surrogate,
    )


def _narrow_net(config: Config, device: str, density: float) -> FlatNet:
    model, submodel = config.model.name, config.submodel
    scaler = submodel.scaler and has_norms(model)
    return FlatNet(model, device, submodel.kind, density, scaler, config.train.batch_norm)
