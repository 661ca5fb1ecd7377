"""Gradients through the threshold that cut a mask (docs/method.md#fiarse; Wu et al., 2024).

A sub-model keeps what is at or above theta in size, M(w) = [|w| >= theta], with one theta for each
tensor of each client: the smallest |w| that its mask keeps. The whole model has no threshold.
Training sees w M(w), so a kept weight that shrinks below theta leaves the forward pass, and comes
back only if momentum makes it grow. Its gradient is that of w M(w) times (M + |w| dM/d|w|), with
2 theta / (|w| + theta)^2 in place of the derivative of the step: kept weights get the factor
1 + 2 theta |w| / (|w| + theta)^2, hidden ones none. Without that surrogate the factor of kept
weights is 1: what the public code of FIARSE computes, whose mask is a truth value that stops
gradients.

All of it touches kept entries alone, so that it costs what the sub-model weighs: other weights are
0, and their gradients are the caller's to mask.

Shapes: P prunable entries, D dense entries, K kept entries of one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Kept = Tensor | None  # positions of a tensor's kept entries; None for all


class _Net(Protocol):
    flat: Tensor

    def trainable(self) -> list[torch.nn.Parameter]: ...
    def split(self, flat: Tensor) -> list[Tensor]: ...


class Threshold:
    """The thresholds of a sub-model that has just been loaded.

    Args:
        net: holds the sub-model.
        spans: of the prunable tensors, the first ones of the flat vector.
        kept: positions of the kept entries of each, int64 [K], counted from its first entry; None
            where all are.
        surrogate: whether kept weights' gradients take the derivative of the step into account.
    """

    def __init__(
        self, net: _Net, spans: Sequence[slice], kept: Sequence[Kept], surrogate: bool = True
    ) -> None:
        self.surrogate, self.kept = surrogate, kept
        self.tensors = [net.flat[span] for span in spans]
        self.values = self._values()
        self.thetas = [_smallest(values) for values in self.values]
        self.hidden: list[Tensor] = []

    @torch.no_grad()
    def hide(self) -> None:
        """Zero the kept weights that lie below their threshold."""
        self.values = self._values()
        pairs = zip(self.values, self.thetas, strict=True)
        self.hidden = [values.abs() < theta for values, theta in pairs]
        rows = zip(self.tensors, self.kept, self.values, self.hidden, strict=True)
        for tensor, kept, values, hidden in rows:
            _put(tensor, kept, values.masked_fill(hidden, 0.0))

    @torch.no_grad()
    def restore(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Undo `hide`; return the gradients, those of kept entries with their factors."""
        for tensor, kept, values in zip(self.tensors, self.kept, self.values, strict=True):
            _put(tensor, kept, values)
        passed = []
        rows = zip(self.kept, self.values, self.thetas, self.hidden, gradients, strict=False)
        for kept, values, theta, hidden, gradient in rows:
            flat = gradient.contiguous().view(-1)
            factor = self._factor(values, theta).masked_fill_(hidden, 0.0)
            _put(flat, kept, factor.mul_(_taken(flat, kept)))
            passed.append(flat.view(gradient.shape))
        return [*passed, *gradients[len(passed) :]]

    def _values(self) -> list[Tensor]:
        pairs = zip(self.tensors, self.kept, strict=True)
        return [tensor.clone() if kept is None else _taken(tensor, kept) for tensor, kept in pairs]

    def _factor(self, values: Tensor, theta: Tensor) -> Tensor:
        """Return the factors of the gradients of kept entries."""
        if not self.surrogate:
            return torch.ones_like(values)
        ratio = theta / values.abs()  # at most 1 where kept: no square underflows
        return ratio.mul(2).div_(ratio.add_(1.0).square_()).add_(1.0)


def _taken(tensor: Tensor, kept: Kept) -> Tensor:
    """Return the kept entries [K] of a flat tensor: itself where all are."""
    return tensor if kept is None else tensor.index_select(0, kept)


def _put(tensor: Tensor, kept: Kept, values: Tensor) -> None:
    """Write the kept entries [K] of a flat tensor."""
    if kept is None:
        tensor.copy_(values)
    else:
        tensor.scatter_(0, kept, values)


def kept_of(mask: Tensor, spans: Sequence[slice]) -> list[Kept]:
    """Return the positions at which a mask [P + D] is 1 in each span, from its first entry on."""
    found = [mask[span].nonzero().squeeze(1) for span in spans]
    sizes = [span.stop - span.start for span in spans]
    return [None if len(kept) == size else kept for kept, size in zip(found, sizes, strict=True)]


def _smallest(values: Tensor) -> Tensor:
    """Return the smallest |w| of kept entries, at least the smallest positive float."""
    if not len(values):
        return values.new_tensor(torch.inf)
    return values.abs().min().clamp_min(torch.finfo(values.dtype).tiny)
