"""What the server's model scores, and when: at refreshes, and at equal times for every method.

A refresh validates the version that it follows, and the server waits for that. With `eval.every_s`
the version that is current at 0, 1, 2, ... times so many seconds is evaluated as well, in time that
the ranks have left. Nothing waits for these looks and nothing depends on them: a run with them has
the same versions, clocks and bytes as one without.

The version current at a time is the newest one whose merge was done at or before it. That is known
when the next merge is, so looks are caught up with just before it, when the version is still there.
A version is evaluated once: looks repeat what it has scored. Rows come in the order of versions,
each when its test set is through; those of refreshes go to the table `evaluations`, those of looks
to `looks`.

Shapes: P prunable entries, D dense entries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xxhash

from fedgmr_hpc.comm.frames import Frame, Kind, encode_parts
from fedgmr_hpc.config import Config
from fedgmr_hpc.data.federated import FederatedData, Pool
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import Evaluate, Merged
from fedgmr_hpc.progress import Progress
from fedgmr_hpc.rankpool import Evaluation, RankPool
from fedgmr_hpc.records import EvaluationRow, LookRow
from fedgmr_hpc.store import ResultWriter

POOLS: tuple[Pool, ...] = ("validation", "test")


@dataclass
class _Sheet:
    """One version's scores, and the rows that wait for them."""

    evaluation: Evaluation
    round: int
    model_xxh3: int
    rows: list[tuple[type[EvaluationRow], float]]  # of which table, at which time
    mean_density: float | None = None  # of a refresh: not decided yet

    @property
    def is_known(self) -> bool:
        """Whether all that its rows say is there."""
        return self.mean_density is not None and all(map(self.evaluation.is_done, POOLS))


class Evaluator:
    """Has versions evaluated by the ranks, and writes their rows.

    Args:
        wall_s: wall time since the run began.
    """

    def __init__(
        self,
        config: Config,
        pool: RankPool,
        data: FederatedData,
        writer: ResultWriter,
        progress: Progress,
        *,
        run_id: int,
        wall_s: Callable[[], float],
    ) -> None:
        self.config, self.pool, self.data = config, pool, data
        self.writer, self.progress = writer, progress
        self.run_id, self.wall_s = run_id, wall_s
        self.num_looks = 0  # due so far
        self._open: deque[_Sheet] = deque()  # with rows to come
        self._newest: _Sheet | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether rows are still to come."""
        return bool(self._open)

    def validate(self, command: Evaluate, now_s: float) -> Evaluation:
        """Begins the evaluation of a refresh, the validation set before anything else."""
        sheet = self._begin(command, is_awaited=True)
        sheet.rows.append((EvaluationRow, now_s))
        return sheet.evaluation

    def look(self, coordinator: Coordinator, before_s: float) -> None:
        """Gives the current version the looks that are due before a time."""
        times = self._due_times(before_s)
        if not times:
            return
        sheet = self._newest
        if sheet is None or sheet.evaluation.version != coordinator.version:
            sheet = self._begin(coordinator.look(), is_awaited=False)
            sheet.mean_density = float(np.mean(coordinator.restoration.densities))
        elif not sheet.rows:
            self._open.append(sheet)
        sheet.rows += [(LookRow, at_s) for at_s in times]
        self.write_rows()

    def _due_times(self, before_s: float) -> list[float]:
        every_s = self.config.eval.every_s
        if every_s is None:
            return []
        times = []
        while (at_s := self.num_looks * every_s) < before_s:
            times.append(at_s)
            self.num_looks += 1
        return times

    def _begin(self, command: Evaluate, *, is_awaited: bool) -> _Sheet:
        frame = self._frame(command)
        digest = xxhash.xxh3_64(frame.values.data)
        digest.update(frame.dense.data)
        starts = {p: range(0, self.data.pool_size(p), self.config.eval.chunk) for p in POOLS}
        evaluation = Evaluation(
            version=command.version,
            payload=encode_parts(frame),
            chunks={p: dict.fromkeys(starts[p]) for p in POOLS},
        )
        self._newest = _Sheet(evaluation, command.round, digest.intdigest(), [])
        self._open.append(self._newest)
        del frame  # holds a dense model
        self.pool.evaluate(evaluation, is_awaited=is_awaited)
        return self._newest

    def _frame(self, command: Evaluate) -> Frame:
        masks = command.masks
        return Frame(
            kind=Kind.MODEL,
            run=self.run_id,
            client=-1,
            base_version=command.version,
            mask_id=-1,
            level=0,
            density=1.0,
            num_prunable=masks.size,
            values=masks.unpack(command.packed),
            dense=command.dense,
        )

    def merged(self, merged: Merged) -> None:
        """A version's densities are decided."""
        for sheet in self._open:
            if sheet.evaluation.version == merged.version:
                sheet.mean_density = float(merged.density.mean())
        self.write_rows()

    def accuracy(self, evaluation: Evaluation) -> float:
        """Validation accuracy, once its chunks are in."""
        return self._scores(evaluation, "validation")[0]

    def _scores(self, evaluation: Evaluation, pool: Pool) -> tuple[float, float]:
        """(accuracy, mean loss) of a finished pool."""
        correct, loss_sum = evaluation.sums(pool)
        return correct / self.data.num_scored(pool), loss_sum / self.data.num_scored(pool)

    def write_rows(self) -> None:
        """Writes the rows of the versions that are through, in their order."""
        while self._open and self._open[0].is_known:
            sheet = self._open.popleft()
            self.pool.evaluations.pop(sheet.evaluation.version, None)
            sheet.evaluation.payload = ()
            rows = [self._row(sheet, row_type, at_s) for row_type, at_s in sheet.rows]
            sheet.rows = []
            for row in rows:
                self.writer.append(row)
            self.progress.evaluated(rows[-1])

    def _row(self, sheet: _Sheet, row_type: type[EvaluationRow], at_s: float) -> EvaluationRow:
        assert sheet.mean_density is not None
        val_accuracy, val_loss = self._scores(sheet.evaluation, "validation")
        test_accuracy, test_loss = self._scores(sheet.evaluation, "test")
        return row_type(
            version=sheet.evaluation.version,
            round=sheet.round,
            now_s=at_s,
            val_accuracy=val_accuracy,
            val_loss=val_loss,
            test_accuracy=test_accuracy,
            test_loss=test_loss,
            mean_density=sheet.mean_density,
            model_xxh3=sheet.model_xxh3,
            wall_s=self.wall_s(),
        )
