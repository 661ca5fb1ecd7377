"""The course of a run in Weights & Biases."""

from __future__ import annotations

from typing import Any

from fedgmr_hpc.config.records import fields_of
from fedgmr_hpc.reporting.packages import optional_package
from fedgmr_hpc.runtime.callbacks.contract import Callback, RoundEnd, RunHandle
from fedgmr_hpc.storage.rows import EvaluationRow, LookRow


class WeightsAndBiases(Callback):
    """Logs a run under its configuration and the name of its result file.

    Rounds, evaluations and looks at equal times are groups of metrics, `rounds/...` and so on, each
    drawn against its own `version`. `status` says how the run has ended.

    Args:
        project: where the run appears.
        settings: what `wandb.init` takes besides: `mode="offline"`, `dir`, `group`; `id` and
            `resume="allow"` for a run that goes on after a checkpoint.

    Raises:
        ValueError: the package wandb is missing.
    """

    def __init__(self, project: str = "fedgmr_hpc", **settings: Any) -> None:
        self._wandb = optional_package("wandb", type(self).__name__)
        self.settings: dict[str, Any] = {"project": project, **settings}
        self._log: Any = None

    def on_start(self, run: RunHandle) -> None:
        """Begin the log."""
        own = {"name": run.path.stem, "config": run.config.model_dump(mode="json")}
        self._log = self._wandb.init(**(own | self.settings))
        for group in ("rounds", "evaluations", "looks"):
            self._log.define_metric(f"{group}/*", step_metric=f"{group}/version")

    def on_round(self, run: RunHandle, end: RoundEnd) -> None:
        """Log what a round has cost."""
        self._write("rounds", end)

    def on_evaluation(self, run: RunHandle, row: EvaluationRow) -> None:
        """Log the scores."""
        self._write("looks" if isinstance(row, LookRow) else "evaluations", row)

    def on_end(self, run: RunHandle, status: str) -> None:
        """End the log, as failed where the run has."""
        if self._log is not None:
            self._log.summary["status"] = status
            self._log.finish(exit_code=int(status.startswith("failed")))

    def _write(self, group: str, record: RoundEnd | EvaluationRow) -> None:
        values = fields_of(record)
        values.pop("model_xxh3", None)  # is no metric
        self._log.log({f"{group}/{name}": value for name, value in values.items()})
