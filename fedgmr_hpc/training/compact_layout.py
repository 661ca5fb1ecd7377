"""Where the entries of a sub-model stand in a flat vector of little more than them.

Where a layer is compact its weight is the vector of the kept ones, in natural order; other layers
have their whole weights there, with zeros outside the mask.

Shapes: P prunable entries, K kept, D dense entries; F entries of the prunable tensors that stand in
the flat vector [F + D].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgmr_hpc.models.layout import Entry, Layout
from fedgmr_hpc.training.kernels.contract import Pattern

IsCompact = Callable[[Entry, int], bool]  # of a weight, and how many of it are kept


@dataclass(frozen=True, eq=False)
class CompactLayout:
    """The flat vector of one mask.

    Attributes:
        layout: of the vector; the weight of a compact layer has one dimension.
        patterns: of the compact layers, by the weight's name.
        source: int32 [F] which of the received values stands at each place; K for none, a zero.
        places: int32 [K] the place of each of the received values.
        lost: bool [units] by the weight's name: which units have no kept weight.
    """

    layout: Layout
    patterns: Mapping[str, Pattern]
    source: Tensor
    places: Tensor
    lost: Mapping[str, Tensor]

    @property
    def has_zeros(self) -> bool:
        """Whether entries outside the mask stand in the vector."""
        return len(self.source) > len(self.places)

    def fill(self, front: Tensor, values: Tensor) -> None:
        """Put received values [K] to their places in `front` [F], and zeros between them."""
        if self.has_zeros:
            values = torch.cat([values, values.new_zeros(1)])
        torch.index_select(values, 0, self.source, out=front)


def lay_out(whole: Layout, positions: Tensor, is_compact: IsCompact) -> CompactLayout | None:
    """Give the entries of a mask their places.

    Args:
        whole: of the whole network.
        positions: [K] natural positions of the received values.
        is_compact: chooses layers by their weight.

    Returns:
        None where no layer is compact.
    """
    num_kept, own = len(positions), positions.numpy()
    # masks are a few ascending runs, which a stable sort only has to merge
    order = own.argsort(kind="stable")
    ascending, values = torch.from_numpy(own[order]).int(), torch.from_numpy(order).int()
    entries, patterns, source, lost = [], {}, [], {}
    places, begin, offset = torch.empty(num_kept, dtype=torch.int32), 0, 0
    for entry in whole.entries:
        moved = replace(entry, offset=offset)
        if entry.prunable:
            end = int(torch.searchsorted(ascending, entry.span.stop))
            at, which = ascending[begin:end] - entry.offset, values[begin:end]
            begin = end
            pattern = Pattern(entry.shape, at)
            lost[entry.name] = torch.diff(pattern.row_starts) == 0
            if is_compact(entry, len(at)):
                patterns[entry.name], moved = pattern, replace(moved, shape=(len(at),))
                source.append(which)
                at = torch.arange(len(at), dtype=torch.int32)
            else:
                source.append(torch.full((entry.size,), num_kept, dtype=torch.int32))
                source[-1][at.long()] = which
            places[which.long()] = at + offset
        entries.append(moved)
        offset += moved.size
    if not patterns:
        return None
    layout = replace(whole, entries=tuple(entries))
    return CompactLayout(layout, patterns, torch.cat(source), places, lost)
