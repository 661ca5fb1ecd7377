"""A model that computes compact layers from the vector of their kept weights.

Shapes: K kept weights of a layer; F + D entries of the flat vector (compact_layout.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedgmr_hpc.models.flat_net import FlatNet, view_of
from fedgmr_hpc.models.layers import Forward
from fedgmr_hpc.training.compact_layout import CompactLayout
from fedgmr_hpc.training.kernels.contract import Kernels, Pattern


@dataclass(frozen=True, kw_only=True)
class CompactForward(Forward):
    """One forward pass, in which kernels compute the compact layers.

    Attributes:
        kernels: who does.
        patterns: of the compact layers, by the weight's name; their weights are vectors [K].
    """

    kernels: Kernels
    patterns: Mapping[str, Pattern] = field(default_factory=dict)

    def conv(self, name: str, x: Tensor, *, padding: int, stride: int = 1) -> Tensor:
        """Return [B, I, H, W] -> [B, O, H / stride, W / stride]."""
        pattern = self.patterns.get(name + ".weight")
        if pattern is None:
            return super().conv(name, x, padding=padding, stride=stride)
        values, bias = self.tensors[name + ".weight"], self.tensors.get(name + ".bias")
        return self.kernels.conv(x, values, pattern, bias, stride=stride, padding=padding)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        pattern = self.patterns.get(name + ".weight")
        if pattern is None:
            return super().linear(name, x)
        values, bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]
        return self.kernels.linear(x, values, pattern, bias)

    def pooled_relu(self, x: Tensor) -> Tensor:
        """Return [B, I, H, W] -> [B, I, H / 2, W / 2]."""
        return self.kernels.pooled_relu(x)

    def embedding(self, name: str, rows: Tensor) -> Tensor:
        """int64 row numbers [...] -> [..., O]."""
        pattern = self.patterns.get(name + ".weight")
        if pattern is None:
            return super().embedding(name, rows)
        return self.kernels.embedding(rows, self.tensors[name + ".weight"], pattern)


class CompactNet(FlatNet):
    """A network of which the flat vector holds little more than a mask's entries.

    Args:
        whole: the network that the mask cuts; its random stream and its statistics of static batch
            norms are this one's, too.
        place: where the entries stand.
        memory: [F + D] or more, the first of which become the flat vector.
        kernels: who computes the compact layers.
    """

    def __init__(
        self, whole: FlatNet, place: CompactLayout, memory: Tensor, kernels: Kernels
    ) -> None:
        self.place, self.layout = place, place.layout
        self.flat, self.statistics = memory[: self.layout.num_weights], whole.statistics
        self.tensors = {e.name: view_of(memory, e) for e in self.layout.entries}
        self.tensors |= {e.name: whole.tensors[e.name] for e in self.layout.statistics}
        self.generator, self._logits = whole.generator, whole._logits
        self._evaluating, self._measuring, self._training = (
            CompactForward(
                self.tensors,
                each.training,
                each.generator,
                each.shares,
                each.norms,
                kernels=kernels,
                patterns=place.patterns,
            )
            for each in (whole._evaluating, whole._measuring, whole._training)
        )
