"""Gradients through the threshold that cut a mask (docs/method.md#fiarse; Wu et al., 2024).

A sub-model keeps what is at or above theta in size, M(w) = [|w| >= theta], with one theta for each
tensor of each client: the smallest |w| that its mask keeps. The whole model has no threshold.
Training sees w M(w), so a kept weight that shrinks below theta leaves the forward pass, and comes
back only if momentum makes it grow. Its gradient is that of w M(w) times (M + |w| dM/d|w|), with
2 theta / (|w| + theta)^2 in place of the derivative of the step: kept weights get the factor
1 + 2 theta |w| / (|w| + theta)^2, hidden ones none. Without that surrogate the factor of kept
weights is 1: what the public code of FIARSE computes, whose mask is a truth value that stops
gradients.

Shapes: P prunable entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class _Net(Protocol):
    flat: Tensor

    def trainable(self) -> list[torch.nn.Parameter]: ...
    def split(self, flat: Tensor) -> list[Tensor]: ...


class Threshold:
    """The thresholds of a sub-model that has just been loaded.

    Args:
        net: holds the sub-model.
        mask: [P + D] of 0 and 1.
        spans: of the prunable tensors, the first ones of the flat vector.
        surrogate: whether kept weights' gradients take the derivative of the step into account.
    """

    def __init__(
        self, net: _Net, mask: Tensor, spans: Sequence[slice], surrogate: bool = True
    ) -> None:
        self.surrogate = surrogate
        self.prunable = net.flat[: spans[-1].stop]
        self.spans, self.whole = spans, torch.empty_like(self.prunable)
        self.thetas = [_smallest(net.flat[s], mask[s]) for s in spans]
        self.hidden: list[Tensor] = []

    @torch.no_grad()
    def hide(self) -> None:
        """Zero the kept weights that lie below their threshold."""
        self.whole.copy_(self.prunable)
        pairs = zip(self.spans, self.thetas, strict=True)
        self.hidden = [self.whole[span].abs() < theta for span, theta in pairs]
        for span, hidden in zip(self.spans, self.hidden, strict=True):
            self.prunable[span].masked_fill_(hidden, 0.0)

    @torch.no_grad()
    def restore(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Undo `hide`; return the gradients with their factors, the dense ones unchanged."""
        self.prunable.copy_(self.whole)
        passed = []
        rows = zip(self.spans, self.thetas, self.hidden, gradients, strict=False)
        for span, theta, hidden, gradient in rows:
            factor = self._factor(span, theta).masked_fill_(hidden, 0.0)
            passed.append(factor.view(gradient.shape).mul_(gradient))
        return [*passed, *gradients[len(passed) :]]

    def _factor(self, span: slice, theta: Tensor) -> Tensor:
        """Return the factors of the gradients of a tensor's kept entries."""
        if not self.surrogate:
            return torch.ones_like(self.whole[span])
        ratio = theta / self.whole[span].abs()  # at most 1 where kept: no square underflows
        return ratio.mul(2).div_(ratio.add_(1.0).square_()).add_(1.0)


def _smallest(weights: Tensor, mask: Tensor) -> Tensor:
    """Return the smallest |w| of the kept entries, at least the smallest positive float."""
    size = weights.abs().masked_fill(mask == 0, torch.inf)
    return size.min().clamp_min(torch.finfo(size.dtype).tiny)
