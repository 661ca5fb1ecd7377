"""What a client is asked to train, and what it delivers.

Shapes: K kept prunable entries, D entries of the dense part.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedgmr_hpc.config.records import Floats


@dataclass(frozen=True, slots=True)
class Assignment:
    """One client's next piece of local training: everything a rank needs besides the frames of
    `base_version`.
    """

    client: int
    base_version: int
    mask_id: int
    level: int  # index into the mask set's densities; the client listens to increments 0..level
    density: float
    num_kept: int
    first_step: int  # local steps this client has made before, the key of its batch stream
    learning_rate: float
    measure: bool  # score the trained local model on the validation subset

    def as_json(self) -> dict[str, float]:
        """Return the fields by name; `Assignment(**fields)` is equal again."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Update:
    """What a client delivers: its trained sub-model in the packed order of `mask_id`."""

    client: int
    base_version: int
    mask_id: int
    level: int
    density: float
    values: Floats  # [K]
    dense: Floats  # [D]
    grad_squares: Floats | None  # [K] summed squared gradients, only for score "g"
    train_loss: float
    score: float  # validation accuracy of the local model, NaN when not measured
    num_samples: int
