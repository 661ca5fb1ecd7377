"""Build the trainable sub-model that a configuration asks for.

Width methods train a narrower network (`NarrowModel`); every other kind masks the whole network in
place (`MaskedModel`). Both have the same interface: `load`, `train`, `in_use` and `entries`.
"""

from __future__ import annotations

from functools import partial

from fedgmr_hpc.config.axes import WIDTH_KINDS
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.models import FlatNet, Layout, ModuleNet, run_layout, run_model, run_net
from fedgmr_hpc.training.masked import GatedBias, MaskedModel
from fedgmr_hpc.training.narrow import NarrowModel


def gated_biases(layout: Layout) -> list[GatedBias]:
    """List the biases that count only while at least one weight of their unit is kept."""
    return [
        GatedBias(entry.span, layout[entry.gated_by].span, entry.size)
        for entry in layout.entries
        if entry.gated_by is not None
    ]


def make_sub_model(
    config: Config, device: str = "cpu", num_classes: int | None = None
) -> MaskedModel | NarrowModel:
    """Build what trains sub-models of the run's kind.

    Args:
        config: the run's configuration.
        device: where weights and batches lie while training.
        num_classes: of the data.
    """
    layout, submodel = run_layout(config, num_classes), config.submodel
    if submodel.kind in WIDTH_KINDS:
        make_net = partial(_narrow_net, config, device, num_classes)
        axes = [entry.axes for entry in layout.entries]
        return NarrowModel(make_net, axes, layout.num_prunable)
    spans = [entry.span for entry in layout.entries if entry.prunable]
    return MaskedModel(
        run_net(config, num_classes, device),
        layout.num_prunable,
        gated_biases(layout) if submodel.gate_biases else (),
        through_threshold=spans if submodel.kind == "magnitude" else (),
        surrogate=submodel.surrogate,
    )


def _narrow_net(
    config: Config, device: str, num_classes: int | None, density: float
) -> FlatNet | ModuleNet:
    scaler = config.submodel.scaler and run_model(config, num_classes).has_norms
    return run_net(config, num_classes, device, density, scaler)
