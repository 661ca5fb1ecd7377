"""A score and a density schedule of one's own: python examples/own_score_and_schedule.py

Masks keep what grows away from zero, and every client's density rises steadily to its ceiling. As
a plug-in of any run, and what it promises, checked:
    python -m fedgmr_hpc.launch --plugin examples/own_score_and_schedule.py submodel.score=growth
    python -m fedgmr_hpc conformance examples/own_score_and_schedule.py
"""

from __future__ import annotations

import sys
from typing import Annotated

import numpy as np
from pydantic import Field

import fedgmr_hpc


@fedgmr_hpc.register_score("growth")
def growth(weights, last_weights):
    """Return |W|, twice where it has grown since the last refresh."""
    size = np.abs(weights)
    return np.where(size > np.abs(last_weights), 2 * size, size)


@fedgmr_hpc.register_restoration("steady")
class Steady(fedgmr_hpc.Schedule):
    """Rises by the same step at every so many refreshes."""

    rise: Annotated[float, Field(gt=0, le=1)] = 0.1
    """With `steady`: density added at a time."""
    pause: Annotated[int, Field(ge=1)] = 2
    """With `steady`: refreshes from one time to the next."""

    def densities(self, refresh):
        """Return the density of every client from its next dispatch on."""
        state = refresh.state  # whatever JSON can hold, saved with every checkpoint
        state["refreshes"] = state.get("refreshes", 0) + 1
        rise = self.rise if state["refreshes"] % self.pause == 0 else 0.0
        pairs = zip(refresh.densities, refresh.ceilings, strict=True)
        return [min(ceiling, round(density + rise, 6)) for density, ceiling in pairs]


def main(words: list[str]) -> None:
    """Train the run `digits` with both."""
    words = ["submodel.score=growth", "restoration.trigger=steady", *words]
    result = fedgmr_hpc.run(fedgmr_hpc.load_config("digits", words))
    density, accuracy = (result.evaluations[name][-1] for name in ("mean_density", "test_accuracy"))
    print(f"mean density {density:.3f}: test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
