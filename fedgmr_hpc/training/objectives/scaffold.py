"""Control variates as SCAFFOLD has them (Karimireddy et al. 2020; docs/method.md#scaffold).

With x the weights received, y the weights trained by K steps at rate eta, c_i the client's variate
and c the server's, a step goes along g - c_i + c, and after the last one

    c_i <- c_i - c + (x - y) / (K eta)        (option II of the paper).

The server's c is the mean of the c_i. While every client takes part in every round and the server
takes the mean of what they return, no one has to send it: the mean of the right side over the
clients is (x - x') / (K eta), with x' the mean of their y, which is what they receive next. So a
client that keeps the x of its last dispatch finds c in the x' of this one.

With sub-models this holds entry by entry for the clients that hold an entry, from the second
dispatch on that they hold it; before that, c and c_i are 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedgmr_hpc.config.choices.registry import register_objective
from fedgmr_hpc.training.objectives.contract import LocalSteps, Objective


@register_objective("scaffold")
class Scaffold(Objective):
    """The loss, its gradients corrected by how this client's differ from all clients' mean.

    A client keeps its variate c_i (`variate`), the weights that it received (`received`) and where
    it held any (`held`), and K eta (`way`).
    """

    keeps: ClassVar[tuple[str, ...]] = ("variate", "received", "held")

    def begin(self, steps: LocalSteps) -> None:
        """Find c - c_i [P + D] where the client trained at its last dispatch, 0 elsewhere."""
        if steps.kept:
            last = steps.kept
            mean = (last["received"] - steps.received).div_(steps.numbers["way"])
            steps.own = mean.sub_(last["variate"]).mul_(last["held"])

    def gradients(self, steps: LocalSteps, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Add c - c_i to each gradient."""
        if steps.own is None:
            return gradients
        pairs = zip(gradients, steps.split(steps.own), strict=True)
        return [gradient + correction for gradient, correction in pairs]

    def end(self, steps: LocalSteps) -> None:
        """Renew the variate from how far the weights have come."""
        way = steps.num_done * steps.learning_rate
        variate = (steps.received - steps.weights).div_(way)
        if steps.own is not None:
            variate.sub_(steps.own)
        held = torch.ones_like(variate) if steps.mask is None else steps.mask
        steps.kept = {"variate": variate * held, "received": steps.received, "held": held}
        steps.numbers = {"way": way}
