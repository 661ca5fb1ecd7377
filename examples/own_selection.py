"""A client selection of one's own, power-of-choice: python examples/own_selection.py [key=value]

Of a few clients drawn at random, those with the largest loss take part (Cho et al. 2020, the
variant rpow-d, which takes the training loss of a client's last update and sends nothing more).
As a plug-in of any run, and what it promises, checked:
    python -m fedgmr_hpc.launch --plugin examples/own_selection.py \
        clients.sampled=5 clients.selection=power_of_choice
    python -m fedgmr_hpc conformance examples/own_selection.py
"""

from __future__ import annotations

import sys
from typing import Annotated

import numpy as np
from pydantic import Field

import fedgmr_hpc


@fedgmr_hpc.register_selection("power_of_choice")
class PowerOfChoice(fedgmr_hpc.SelectionRule):
    """The clients with the largest loss, of candidates drawn by their numbers of samples."""

    candidates: Annotated[int, Field(ge=1)] = 10
    """With `power_of_choice`: d, how many candidates are drawn; no fewer than are wanted."""

    def choose(self, draw):
        """Return the candidates with the largest last loss, those without one first."""
        available = np.array(draw.available)
        num = min(max(self.candidates, draw.num_wanted), len(available))
        samples = draw.num_samples[available]
        drawn = draw.rng.choice(available, num, replace=False, p=samples / samples.sum())
        losses = np.nan_to_num(draw.train_losses[drawn], nan=np.inf)
        return drawn[np.argsort(-losses, kind="stable")[: draw.num_wanted]]


def main(words: list[str]) -> None:
    """Train the run `digits` with 5 of 20 clients at a time."""
    sampled = ["clients.count=20", "clients.sampled=5", "clients.selection=power_of_choice"]
    config = fedgmr_hpc.load_config("digits", [*sampled, *words])
    result = fedgmr_hpc.run(config)
    accuracy = 100 * result.evaluations["test_accuracy"][-1]
    print(f"{config.clients.candidates} candidates: test accuracy {accuracy:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
