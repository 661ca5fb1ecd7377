"""Tells the callbacks of a run what happens in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.runtime.callbacks.contract import Callback, RoundEnd, RunHandle
from fedgmr_hpc.storage.rows import CheckpointRow, EvaluationRow

Tell = Callable[[Callback, RunHandle], None]


class Teller:
    """Calls the callbacks one after the other, up to the first error of any of them.

    That error asks the run to stop, so that a checkpoint is written; leaving the context raises it
    where nothing else has gone wrong.

    Args:
        ask_to_stop: asks the run to checkpoint and stop, and says on whose behalf.

    Attributes:
        status: how the run has ended, to be set before the context is left.
        error: of the callback that failed.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback] = (),
        ask_to_stop: Callable[[str], None] = lambda cause: None,
    ) -> None:
        self.callbacks, self.ask_to_stop, self.status = tuple(callbacks), ask_to_stop, ""
        self.error: RunError | None = None
        self._handles: list[RunHandle] = []  # none before the start
        self._started: list[Callback] = []
        self._round, self._path = 0, Path()

    def start(self, config: Config, path: Path, resumed_version: int | None, round: int) -> None:
        """Tell that the run begins, or goes on in this round."""
        self._round, self._path = round, path
        self._handles = [
            RunHandle(config, path, resumed_version, partial(self._stop_for, each))
            for each in self.callbacks
        ]
        self._tell("on_start", self._start_one)

    def _start_one(self, callback: Callback, run: RunHandle) -> None:
        self._started.append(callback)
        callback.on_start(run)

    def merged(self, end: RoundEnd) -> None:
        """Tell of a merge that completes a round; others are passed over."""
        if end.round > self._round:
            self._round = end.round
            self._tell("on_round", lambda callback, run: callback.on_round(run, end))

    def evaluated(self, row: EvaluationRow) -> None:
        """Tell of an evaluation."""
        self._tell("on_evaluation", lambda callback, run: callback.on_evaluation(run, row))

    def checkpointed(self, row: CheckpointRow) -> None:
        """Tell of a checkpoint."""
        self._tell("on_checkpoint", lambda callback, run: callback.on_checkpoint(run, row))

    def _stop_for(self, callback: Callback) -> None:
        self.ask_to_stop(f"the request of {_name(callback)}")

    def _tell(self, method: str, tell: Tell) -> None:
        for callback, run in zip(self.callbacks, self._handles, strict=False):
            if self.error is None:
                self._tell_one(callback, run, method, tell)

    def _tell_one(self, callback: Callback, run: RunHandle, method: str, tell: Tell) -> None:
        try:
            tell(callback, run)
        except Exception as error:
            where, what = f"{_name(callback)}.{method}", f"{type(error).__name__}: {error}"
            is_over = method == "on_end" and self.status == "finished"
            kept = f"; the run is finished: {self._path}" if is_over else ""
            failed = RunError(f"callback {where} failed: {what}{kept}")
            failed.__cause__ = error
            self.error = self.error or failed
            self.ask_to_stop(f"an error of {_name(callback)}")

    def __enter__(self) -> Teller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell each callback that was told of the start how the run has ended, also after an error
        of another.
        """
        status = self.status if error is None else f"failed: {type(error).__name__}: {error}"
        for callback, run in zip(self._started, self._handles, strict=False):
            self._tell_one(callback, run, "on_end", lambda c, r: c.on_end(r, status))
        if error is None and self.error is not None:
            raise self.error


def _name(callback: Callback) -> str:
    return type(callback).__name__
