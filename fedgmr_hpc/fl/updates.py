"""What a client is asked to train, and what it delivers: one record, each field declared once.

    SubModelKey             which sub-model
      Assignment            ... to train, with what the training needs
      UpdateHeader          ... that was trained, with the scalars that the training gave
        Update              ... with its values, as the server merges it
        Frame               ... with its values, as it travels (wire/frames.py)
        UpdateRow           ... without its values, as the result file keeps it (storage/rows.py)

Copies go by field name (`config.records.shared_fields`). So a new scalar of an update costs one
field of `UpdateHeader`, one slot of the frame's header and one column of `UpdateRow`.

Shapes: K kept prunable entries, D entries of the dense part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedgmr_hpc.config.records import Floats, fields_of


@dataclass(frozen=True, slots=True)
class SubModelKey:
    """Which sub-model: whose, of which version, and how much of it.

    Attributes:
        client: -1 in a frame for all clients.
        base_version: the version it was cut from.
        mask_id: number of the mask set it was cut by.
        level: index into the mask set's densities; a client listens to increments 0..level.
        density: that density, for people; the level says which it is.
    """

    client: int
    base_version: int
    mask_id: int
    level: int
    density: float


@dataclass(frozen=True, slots=True)
class Assignment(SubModelKey):
    """One client's next piece of local training: everything a rank needs besides the frames of
    `base_version`.

    Attributes:
        num_kept: K.
        first_step: local steps this client has made before, the key of its batch stream.
        measure: whether the trained model is scored on the validation subset.
        same_since: version from which on masks and clients are the same; what a client keeps of an
            earlier one does not go with what the others keep.
    """

    num_kept: int
    first_step: int
    learning_rate: float
    measure: bool
    same_since: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name; `Assignment(**fields)` is equal again."""
        return fields_of(self)


@dataclass(frozen=True, slots=True)
class UpdateHeader(SubModelKey):
    """A trained sub-model without its values.

    Attributes:
        train_loss: mean loss of the local steps.
        score: validation accuracy of the local model, NaN when not measured.
        num_samples: samples that the local steps took, with repeats: steps times batch.
    """

    train_loss: float = 0.0
    score: float = 0.0
    num_samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(UpdateHeader):
    """What a client delivers: its trained sub-model in the packed order of `mask_id`.

    Attributes:
        values: [K].
        dense: [D].
        grad_squares: [K] summed squared gradients, only where the score needs them.
    """

    values: Floats
    dense: Floats
    grad_squares: Floats | None
