"""FedProx (Li et al. 2020; docs/method.md#fedprox)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedgmr_hpc.config.choices.registry import register_objective
from fedgmr_hpc.config.choices.section import NonNegative
from fedgmr_hpc.training.objectives.contract import LocalSteps, Objective


@register_objective("fedprox")
class FedProx(Objective):
    """The loss plus mu / 2 times the squared distance from the weights that were received."""

    proximal_mu: NonNegative

    def gradients(self, steps: LocalSteps, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Add mu (w - received) to each gradient."""
        if not self.proximal_mu:
            return gradients
        rows = zip(gradients, steps.parameters, steps.split(steps.received), strict=True)
        return [each.add(now - sent, alpha=self.proximal_mu) for each, now, sent in rows]
