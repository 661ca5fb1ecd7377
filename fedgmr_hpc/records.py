"""Frozen records that cross a boundary, errors that name where they happened, keys of randomness.

`fl` and `comm` share this module and the configuration's sections, and nothing else. Units stand in
the names: `_s` seconds, `_bytes` bytes, `_frac` 0 to 1. Shapes: C clients, K kept prunable entries,
D entries of the dense part. A field whose name starts with `wall_` depends on the machine or on the
placement of clients on ranks; every other field of a row is a function of the configuration alone
(DESIGN idea 4).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Stage = Literal["receive", "decode", "train", "encode", "send", "merge", "evaluate"]
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

ROLES = (
    "partition",
    "validation",
    "init",
    "batch",
    "augment",
    "speed",
    "score_subset",
    "synthetic",
    "fault",
    "sample",
    "width",
    "dropout",
    "norm_samples",
)

DIVERGED = "the model has diverged"  # begins the error of a run that it ends


def make_rng(seed: int, role: str, client: int = 0, step: int = 0) -> np.random.Generator:
    """The random stream of one (seed, role, client, step): no state is carried, so order and ranks
    change nothing.
    """
    key = np.random.SeedSequence([seed, ROLES.index(role), client, step])
    return np.random.Generator(np.random.Philox(key))


def fields_of(record: Any) -> dict[str, Any]:
    """A dataclass's fields by name, as they are: nothing is copied."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


class RunError(Exception):
    """A failure while running. Carries where it happened; `str()` is the one line a user reads."""

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        client: int | None = None,
        version: int | None = None,
        stage: Stage | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rank, self.client, self.version, self.stage = rank, client, version, stage

    def __str__(self) -> str:
        where = {
            "rank": self.rank,
            "client": self.client,
            "version": self.version,
            "stage": self.stage,
        }
        named = ", ".join(f"{key} {value}" for key, value in where.items() if value is not None)
        return f"{named}: {self.message}" if named else self.message


class TransportError(RunError):
    """Bytes could not be moved between ranks."""


class TransportTimeout(TransportError):
    """Nothing arrived before the deadline."""


class WireError(RunError):
    """A frame is damaged, foreign or inconsistent."""


class RankFailed(RunError):
    """Another rank reported a failure; its traceback is the message."""


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
        """The fields by name; `Assignment(**fields)` is equal again."""
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


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker's exception on its way to the server."""

    rank: int
    client: int | None
    version: int | None
    stage: Stage
    message: str


@dataclass(frozen=True, slots=True)
class MergeRow:
    """One merge, i.e. one model version. Byte counts are cumulative and charged, see ledger.py."""

    version: int
    round: int
    now_s: float  # virtual time at which the version exists
    num_merged: int
    server_up_bytes: int
    server_down_bytes: int
    staleness: NDArray[
        np.int64
    ]  # [C] age in versions of each client's buffered update, 0 = none yet
    density: NDArray[np.float64]  # [C] the density each client is next dispatched with
    weight: NDArray[np.float64]  # [C] normalised aggregation weight
    up_bytes: NDArray[np.int64]  # [C]
    down_bytes: NDArray[np.int64]  # [C]
    wall_s: float
    wall_rss_bytes: int


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One evaluation of the server model. Validation drives decisions; the test set is only
    reported.
    """

    version: int
    round: int
    now_s: float
    val_accuracy: float
    val_loss: float
    test_accuracy: float
    test_loss: float
    mean_density: float
    model_xxh3: int  # hash of the flat float32 weights, natural order
    wall_s: float


@dataclass(frozen=True, slots=True)
class LookRow(EvaluationRow):
    """One look at an equal time (`eval.every_s`): the scores of the version current at `now_s`, the
    newest one merged at or before it. Looks at the same version repeat its scores.
    """


@dataclass(frozen=True, slots=True)
class SubmodelRow:
    """What an evaluated version scores when it is cut as for the clients of one class, those that
    begin with the same density (`eval.submodels`).
    """

    version: int
    now_s: float  # of the version's first evaluation
    density: float
    num_kept: int  # prunable weights
    num_clients: int  # of this class
    val_accuracy: float
    val_loss: float
    test_accuracy: float
    test_loss: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """One delivered update, in arrival order."""

    now_s: float
    client: int
    base_version: int
    version: int  # the version it was first merged into, 0 if into none
    mask_id: int
    density: float
    down_bytes: int
    up_bytes: int
    train_loss: float
    score: float
    num_samples: int
    wall_overrun: int  # 1: on the wall clock, its training took longer than it may
    wall_rank: int


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event as the coordinator saw it: with the configuration, all that a replay needs.
    `chain_xxh3` covers the configuration, every row before this one and this one.
    """

    kind: int  # 0 delivered, 1 closed, 2 evaluated, 3 lost, 4 resumed
    now_s: float
    ready_s: float  # when the merge of a closed window is done, else now_s
    client: int  # delivered, lost; else -1
    chain_xxh3: int


@dataclass(frozen=True, slots=True)
class TransferRow:
    """One real transfer on the wall clock; seconds and rates are unscaled."""

    now_s: float  # when the last byte was there
    client: int
    base_version: int
    is_upload: int
    bytes: int
    requested_bytes_per_s: float  # what its links allowed
    achieved_bytes_per_s: float
    queue_wait_s: float  # from being ready to go until its links took it up
    num_resent: int  # how often it was sent before and came damaged


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One checkpoint that was written, or one from which the run went on."""

    version: int  # the newest that it holds
    now_s: float  # when that version existed
    is_resume: int
    bytes: int  # size of the file
    wall_wait_s: float  # until the ranks had done what they were given
    wall_write_s: float
    wall_s: float
