"""The course of a run in TensorBoard, which reads the files while they grow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.files import render_config
from fedgmr_hpc.config.records import fields_of
from fedgmr_hpc.reporting.packages import optional_package
from fedgmr_hpc.runtime.callbacks.contract import Callback, RoundEnd, RunHandle
from fedgmr_hpc.storage.rows import EvaluationRow, LookRow

COUNTERS = ("round", "version", "model_xxh3", "wall_s")  # of rows, which are no curves


class TensorBoard(Callback):
    """Writes scalars into a folder of the run's own: FOLDER/RUN, after the result file.

    Steps are versions, of looks at equal times the whole seconds of their time. What was written
    after a checkpoint comes again where a run goes on from it.

    Raises:
        ValueError: the package tensorboard is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        optional_package("tensorboard", type(self).__name__)
        self.folder = Path(folder)
        self._board: Any = None

    def on_start(self, run: RunHandle) -> None:
        """Begin the files, with the configuration as text."""
        from torch.utils.tensorboard import SummaryWriter  # which needs tensorboard

        self._board = SummaryWriter(str(self.folder / run.path.stem))
        text = f"    {render_config(run.config)}".replace("\n", "\n    ")
        self._board.add_text("config", text)

    def on_round(self, run: RunHandle, end: RoundEnd) -> None:
        """Write what a round has cost."""
        self._write("rounds", end, end.version)

    def on_evaluation(self, run: RunHandle, row: EvaluationRow) -> None:
        """Write the scores, and let readers see them."""
        if isinstance(row, LookRow):
            self._write("looks", row, int(row.now_s))
        else:
            self._write("evaluations", row, row.version)
        self._board.flush()

    def on_end(self, run: RunHandle, status: str) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()

    def _write(self, group: str, record: RoundEnd | EvaluationRow, step: int) -> None:
        for name, value in fields_of(record).items():
            if name not in COUNTERS and value == value:  # NaN is no point
                self._board.add_scalar(f"{group}/{name}", value, step)
