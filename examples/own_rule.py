"""An aggregation rule of one's own, with a memory: python examples/own_rule.py [key=value ...]

The server steps towards the mean of the updates with Nesterov's momentum. As a plug-in of any run,
on any ranks, and what it promises, checked:
    mpirun -n 3 python -m fedgmr_hpc.launch --plugin examples/own_rule.py aggregation.rule=nesterov
    python -m fedgmr_hpc conformance examples/own_rule.py
"""

from __future__ import annotations

import sys
from typing import Annotated

from pydantic import Field

import fedgmr_hpc


@fedgmr_hpc.register_aggregation("nesterov")
class Nesterov(fedgmr_hpc.MeanRule):
    """Momentum that looks one step ahead."""

    vectors = ("velocity",)  # as long as the model; the server packs, saves and replays it
    look_ahead: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """With `nesterov`: share of the last step that is made once more."""

    def step(self, old, mean, part):
        """Write the new values over the mean over the holders of each entry."""
        velocity = part.vectors["velocity"]
        step = mean - old
        velocity.mul_(self.look_ahead).add_(step)
        mean.copy_(old).add_(step).add_(velocity, alpha=self.look_ahead)

    def expected(self, old, values, is_held, merge):
        """Return the first merge in closed form, for the conformance kit."""
        return old + (1 + self.look_ahead) * (merge.mean(old, values, is_held) - old)


def main(words: list[str]) -> None:
    """Train the run `digits` with the rule."""
    words = ["method=fedavg", "aggregation.rule=nesterov", *words]
    config = fedgmr_hpc.load_config("digits", words)
    result = fedgmr_hpc.run(config)
    accuracy = 100 * result.evaluations["test_accuracy"][-1]
    print(f"looking ahead by {config.aggregation.look_ahead}: test accuracy {accuracy:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
