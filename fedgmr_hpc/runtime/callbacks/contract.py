"""What a callback can see of a run, and how it stops one.

    class Goal(Callback):
        def on_evaluation(self, run, row):
            if row.val_accuracy > 0.9:
                run.stop()

A callback only sees: a run with callbacks has the same bytes as one without, except for the columns
`wall_...`. On the wall clock the time that a callback takes is the server's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.storage.rows import CheckpointRow, EvaluationRow


@dataclass(frozen=True, slots=True)
class RoundEnd:
    """The merge that completes a round, as in the table `merges`; bytes are cumulative."""

    round: int
    version: int
    now_s: float
    mean_density: float
    server_up_bytes: int
    server_down_bytes: int


@dataclass(frozen=True)
class RunHandle:
    """A run, for one of its callbacks.

    Attributes:
        config: the whole configuration.
        path: of the result file.
        resumed_version: the version from which the run goes on, None for one that begins.
    """

    config: Config
    path: Path
    resumed_version: int | None
    _ask_to_stop: Callable[[], None]

    def stop(self) -> None:
        """Ask the run to stop: it is checkpointed between two events, once merges under way are
        finished, and `resume=True` goes on.
        """
        self._ask_to_stop()


class Callback:
    """Is told what happens in a run, in the server's thread; every method may be left out.

    An error in a method ends the run, once it is checkpointed, and is told as that of the callback.
    """

    def on_start(self, run: RunHandle) -> None:
        """See the run before its first event, or before it goes on."""

    def on_round(self, run: RunHandle, end: RoundEnd) -> None:
        """See a merge that completes one round, or several at once."""

    def on_evaluation(self, run: RunHandle, row: EvaluationRow) -> None:
        """See a row of `evaluations`, or of `looks`, a `LookRow`: once its test set is scored,
        which may be after later rounds.
        """

    def on_checkpoint(self, run: RunHandle, row: CheckpointRow) -> None:
        """See that a checkpoint was written."""

    def on_end(self, run: RunHandle, status: str) -> None:
        """See how the run has ended, as its file says it; called after errors, too."""
