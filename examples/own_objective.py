"""An objective of one's own, FedProx: python examples/own_objective.py [key=value ...]

Clients are held near the weights that they were sent: their loss grows by pull / 2 times the
squared distance from them. As a plug-in of any run, on any ranks:
    mpirun -n 3 python -m fedgmr_hpc.launch --plugin examples/own_objective.py train.objective=near
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

import fedgmr_hpc
from fedgmr_hpc.training.objectives import LocalSteps, Objective


@fedgmr_hpc.register_objective("near")
class Near(Objective):
    """The loss, and a pull towards the weights received."""

    pull: Annotated[float, Field(ge=0)] = 0.1
    """With `near`: factor of half the squared distance."""

    def gradients(self, steps: LocalSteps, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Add the derivative of the pull to the gradients of the loss."""
        rows = zip(gradients, steps.parameters, steps.split(steps.received), strict=True)
        return [gradient + self.pull * (now - sent) for gradient, now, sent in rows]


def main(words: list[str]) -> None:
    """Train the run `digits` with the objective."""
    config = fedgmr_hpc.load_config("digits", ["train.objective=near", *words])
    result = fedgmr_hpc.run(config)
    accuracy = 100 * result.evaluations["test_accuracy"][-1]
    print(f"pulled by {config.train.pull}: test accuracy {accuracy:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
