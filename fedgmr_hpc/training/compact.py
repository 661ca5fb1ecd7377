"""Masked sub-models that cost what they weigh (docs/compact-training.md).

A layer of low density is trained as the vector of its kept weights, in natural order, and kernels
compute it from them: the network of a mask has a flat vector of what trains, and little more.
Loading is a gather by an order that is found once a mask. Which layers are compact follows from
each layer's kind, size and density alone, so it is the same on every machine; where none is, the
whole network trains as `MaskedModel` says.

Shapes: P prunable entries, K kept, D dense entries; F of the prunable tensors' entries stand in the
flat vector [F + D] of a compact network.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fedgmr_hpc.models.flat_net import FlatNet
from fedgmr_hpc.training.compact_layout import IsCompact, lay_out
from fedgmr_hpc.training.compact_net import CompactNet
from fedgmr_hpc.training.kernels.contract import Kernels
from fedgmr_hpc.training.masked import GatedBias, MaskedModel, keep_mask


class CompactModel(MaskedModel):
    """A client's masked sub-model on the CPU, compact where that is cheaper.

    Args:
        whole: the whole network.
        gated: biases that count only while a weight of their unit is kept.
        is_compact: chooses layers by their weight and how many of it are kept.
        kernels: who computes compact layers.
        has_threshold: whether gradients pass through the threshold of each prunable tensor.
        surrogate: see `MaskedModel`.

    Attributes:
        net: the network that was loaded last, compact or whole.
    """

    def __init__(
        self,
        whole: FlatNet,
        gated: Iterable[GatedBias],
        is_compact: IsCompact,
        kernels: Kernels,
        has_threshold: bool = False,
        surrogate: bool = True,
    ) -> None:
        super().__init__(whole, whole.layout.num_prunable, gated, (), surrogate)
        self.has_threshold = has_threshold
        self.whole, self.is_compact, self.kernels = whole, is_compact, kernels
        self._nets: dict[tuple[int, int], CompactNet | None] = {}  # by (mask id, K)
        # only what is written takes room: the vectors of all masks begin where this does
        self._memory, self._ones = torch.zeros_like(whole.flat), torch.zeros_like(whole.flat)

    def load(
        self,
        values: Tensor,
        dense: Tensor,
        positions: Tensor | None,
        *,
        mask_id: int = 0,
        density: float = 1.0,
    ) -> None:
        """Set a network to a sub-model; see `MaskedModel.load`."""
        key = (mask_id, len(values))
        net = None if positions is None else self._find_net(positions, key)
        self.net = self.whole if net is None else net
        self.spans = self.net.layout.prunable_spans if self.has_threshold else []
        if net is None:
            super().load(values, dense, positions, mask_id=mask_id, density=density)
            return
        self._key, self._loaded, self._held_back, self._threshold = key, None, [], None
        self._front, self._kept = len(net.place.source), net.place.places
        net.place.fill(net.flat[: self._front], values)
        net.flat[self._front :] = dense
        self._cut_compact(net)

    def _find_net(self, positions: Tensor, key: tuple[int, int]) -> CompactNet | None:
        """Return the network of a mask, which (mask id, K) names; None where nothing is compact."""
        keep_mask(self._nets, key)
        if key not in self._nets:
            place = lay_out(self.whole.layout, positions, self.is_compact)
            self._nets[key] = (
                None if place is None else CompactNet(self.whole, place, self._memory, self.kernels)
            )
        return self._nets[key]

    def _cut_compact(self, net: CompactNet) -> None:
        """Set the mask, and hold back the biases of units that have lost all their weights."""
        place, layout = net.place, net.layout
        self.mask = self._ones[: len(net.flat)]
        torch.lt(place.source, len(place.places), out=self.mask[: self._front])
        self.mask[self._front :] = 1.0
        for entry in layout.entries if self.gated else ():
            if entry.gated_by is not None:
                self._hold_back(entry.span, place.lost[entry.gated_by])

    def spread(self, values: Tensor, dense: Tensor) -> Tensor:
        """Return a flat vector of the loaded network with entries laid out as the loaded ones.

        Args:
            values: [K] in the order in which the sub-model was loaded.
            dense: [D].
        """
        if not isinstance(self.net, CompactNet):
            return super().spread(values, dense)
        flat = torch.empty_like(self.net.flat)
        self.net.place.fill(flat[: self._front], values)
        flat[self._front :] = dense
        return flat
