"""Rows of a result file's tables.

Units stand in the names: `_s` seconds, `_bytes` bytes, `_frac` 0 to 1. Shapes: C clients. A field
whose name starts with `wall_` depends on the machine or on the placement of clients on ranks; every
other field is a function of the configuration alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class MergeRow:
    """One merge, i.e. one model version. Byte counts are cumulative and charged, see ledger.py."""

    version: int
    round: int
    now_s: float  # virtual time at which the version exists
    num_merged: int
    server_up_bytes: int
    server_down_bytes: int
    staleness: NDArray[np.int64]  # [C] age in versions of its last merged update, 0 for none yet
    density: NDArray[np.float64]  # [C] the density each client is next dispatched with
    weight: NDArray[np.float64]  # [C] normalised aggregation weight of its updates
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
    """What a version scores on the test set when it is cut as for the clients of one class, those
    that begin with the same density (`eval.submodels`).
    """

    version: int
    now_s: float  # of the look, or of the refresh, at which it was first to be cut
    density: float
    num_kept: int  # prunable weights
    num_clients: int  # of this class
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
