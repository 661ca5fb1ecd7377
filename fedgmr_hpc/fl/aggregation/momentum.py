"""The server as an optimiser: each merge's mean is a step, whose moments the rule keeps.

With d_x = m_x - W_x, how far the mean over the holders of an entry is from its old value:

* `momentum` (FedAvgM, Hsu et al. 2019): v_x <- beta v_x + d_x; W_x <- W_x + eta v_x.
* `adam` (FedAdam, Reddi et al. 2021): m_x <- beta1 m_x + (1 - beta1) d_x;
  v_x <- beta2 v_x + (1 - beta2) d_x^2; W_x <- W_x + eta m_x / (sqrt(v_x) + tau).

An entry without a holder keeps its value and its moments. Running statistics of batch norms take
the mean: a step beyond it could make a variance negative.

Shapes: U updates, n entries of a part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedgmr_hpc.config.choices.registry import register_aggregation
from fedgmr_hpc.config.records import Doubles
from fedgmr_hpc.fl.aggregation.rule import MeanRule, Merge, Part


@register_aggregation("momentum")
class Momentum(MeanRule):
    """FedAvgM: the sum of past steps, each merge weakened by beta."""

    vectors = ("velocity",)
    steps_statistics = False
    server_learning_rate: float = 1.0
    server_momentum: float = 0.9

    def step(self, old: Tensor, mean: Tensor, part: Part) -> None:
        """Add the step to the velocity, and the velocity to the weights."""
        velocity = part.vectors["velocity"]
        velocity.mul_(self.server_momentum).add_(mean.sub_(old))
        mean.copy_(old).add_(velocity, alpha=self.server_learning_rate)

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return W + eta d, as the velocity begins at 0."""
        step = merge.mean(old, values, is_held) - old
        return old + self.server_learning_rate * step


@register_aggregation("adam")
class Adam(MeanRule):
    """FedAdam: steps scaled by the root of their mean square."""

    vectors = ("mean_step", "mean_square")
    steps_statistics = False
    server_learning_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def step(self, old: Tensor, mean: Tensor, part: Part) -> None:
        """Take the step into both moments, and go their quotient."""
        first, second = part.vectors["mean_step"], part.vectors["mean_square"]
        step = mean.sub_(old)
        first.lerp_(step, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(step, step, value=1 - self.beta2)
        slope = second.sqrt().add_(self.tau)
        mean.copy_(old).addcdiv_(first, slope, value=self.server_learning_rate)

    def expected(
        self, old: Doubles, values: Doubles, is_held: NDArray[np.bool_], merge: Merge
    ) -> Doubles:
        """Return W + eta (1 - beta1) d / (sqrt((1 - beta2) d^2) + tau), from moments of 0."""
        step = merge.mean(old, values, is_held) - old
        slope = np.sqrt((1 - self.beta2) * step**2) + self.tau
        return old + self.server_learning_rate * (1 - self.beta1) * step / slope
