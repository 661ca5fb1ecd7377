"""Control variates as SCAFFOLD has them (Karimireddy et al. 2020; docs/method.md#scaffold).

With x the weights received, y the weights trained by K steps at rate eta, c_i the client's variate
and c the server's, a step goes along g - c_i + c, and after the last one

    c_i <- c_i - c + (x - y) / (K eta)        (option II of the paper).

The server's c is the mean of the c_i. While every client takes part in every round and the server
takes the mean of what they return, no one has to send it: the mean of the right side over the
clients is (x - x') / (K eta), with x' the mean of their y, which is what they receive next. So a
client that keeps the x of its last dispatch finds c in the x' of this one.

With sub-models this holds entry by entry for the clients that hold an entry, as long as they are
the same. So variates begin anew, from 0, for all clients in the same round, which is plain:
whenever masks are cut anew, a client has gone, or a run has lost what clients kept.

Shapes: P prunable entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedgmr_hpc.config.choices.registry import register_objective
from fedgmr_hpc.training.objectives.contract import LocalSteps, Objective


@register_objective("scaffold")
class Scaffold(Objective):
    """The loss, its gradients corrected by how this client's differ from all clients' mean.

    A client keeps its variate c_i (`variate`), the weights that it received (`received`), K eta
    (`way`) and the version that they are of.
    """

    keeps: ClassVar[tuple[str, ...]] = ("variate", "received")

    def begin(self, steps: LocalSteps) -> None:
        """Find c - c_i [P + D]; None where variates begin."""
        if steps.numbers.get("version", -1) >= steps.same_since:
            mean = (steps.kept["received"] - steps.received).div_(steps.numbers["way"])
            steps.own = mean.sub_(steps.kept["variate"])

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
        steps.kept = {"variate": variate, "received": steps.received}
        steps.numbers = {"way": way, "version": steps.version}
