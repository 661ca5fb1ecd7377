"""What an update weighs by its age (docs/method.md#staleness).

Shapes: C clients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.axes import AggregationConfig


def staleness_weight(age: int, *, rule: str, exponent: float, hinge_delay: float) -> float:
    """Return sigma(age), age >= 1 in versions; 1 means trained on the current version.

    poly: age^-exponent. hinge: 1 while age - 1 <= hinge_delay, then 1 / (exponent (age - 1 - delay)
        + 1).
    """
    if rule == "poly":
        return float(age**-exponent)
    if rule == "hinge" and age - 1 > hinge_delay:
        return 1.0 / (exponent * (age - 1 - hinge_delay) + 1.0)
    return 1.0


def ages_of(base_versions: NDArray[np.int64], version: int) -> NDArray[np.int64]:
    """Return the ages, at a merge of this version, of updates of these versions; 0 for -1."""
    return np.where(base_versions < 0, 0, version - base_versions + 1)


def staleness_weights(ages: NDArray[np.int64], choices: AggregationConfig) -> NDArray[np.float64]:
    """Return sigma [C] of updates of these ages, 0 for clients without one, whose age is 0."""
    sigma = np.zeros(len(ages))
    for age in np.unique(ages[ages > 0]).tolist():
        sigma[ages == age] = staleness_weight(
            age,
            rule=choices.staleness,
            exponent=choices.exponent,
            hinge_delay=choices.hinge_delay,
        )
    return sigma
