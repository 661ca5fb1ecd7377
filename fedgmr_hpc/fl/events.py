"""What happens to the coordinator (events), and what it wants done (commands).

Shapes: C clients, P prunable entries, D dense entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.fl.updates import Assignment, Update


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """A client's update has arrived at the server."""

    now_s: float
    update: Update


@dataclass(frozen=True, slots=True)
class Closed:
    """The window commanded by `CloseAt` closes; its merge will be done at `ready_s`."""

    now_s: float
    ready_s: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The validation that `Evaluate` asked for; it takes time on the wall clock only."""

    now_s: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Lost:
    """Clients are gone for good: they deliver nothing any more and are sent nothing any more."""

    now_s: float
    clients: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """A run on the wall clock continues from a checkpoint: nothing is in flight any more."""

    now_s: float


Event = Started | Delivered | Closed | Evaluated | Lost | Resumed


@dataclass(frozen=True, slots=True)
class CloseAt:
    """Close the window at this time."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate a version: validation now, the test set whenever there is time."""

    version: int
    round: int
    masks: MaskSet
    packed: Floats  # [P]
    dense: Floats  # [D]


@dataclass(frozen=True, slots=True)
class Merged:
    """A version exists, and its densities are decided."""

    version: int
    round: int
    clients: tuple[int, ...]  # whose updates were merged for the first time
    staleness: NDArray[np.int64]  # [C]
    density: NDArray[np.float64]  # [C] of a client that is gone, its last
    weight: NDArray[np.float64]  # [C]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send a version's sub-models to clients."""

    version: int
    masks: MaskSet
    packed: Floats  # [P]
    dense: Floats  # [D]
    assignments: tuple[Assignment, ...]
    at_s: float  # not before the version exists


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over."""

    weights: Floats  # [P + D], natural order


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An update is at fault and not merged; its client is out of the run from `version` on."""

    client: int
    version: int
    reason: str


Command = CloseAt | Evaluate | Merged | Dispatch | Quarantined | Finish
