"""What the server's model scores, and when: at refreshes, and at equal times for every method.

A refresh validates the version that it follows, and the server waits for that. With `eval.every_s`
the version that is current at 0, 1, 2, ... times so many seconds is evaluated as well, in time that
the ranks have left. Nothing depends on these looks: a run with them has the same versions, virtual
times and bytes as one without. On the wall clock they take time: they share the ranks' cores with
training, where a client-step that they delay for too long counts as an overrun, and a rank holds
one version for evaluation, so what is left of a look comes before the validation of a refresh.

The version current at a time is the newest one whose merge was done at or before it. That is known
when the next merge is, so looks are caught up with just before it, when the version is still there.
Looks repeat what their version has scored before. Rows come in the order of versions,
each when its test set is scored; those of refreshes go to the table `evaluations`, those of looks
to `looks`.

With `eval.submodels` the versions of looks, without looks those of refreshes, are also scored for
each density with which clients begin: what a client of that class would compute with that is sent
the version now. A version that a refresh follows is cut by the masks of that refresh (the last
version as if the run went on), any other by the newest masks there are. Clients of density 1, and
all clients of a method without sub-models, have the whole model. These rows go to the table
`submodels`, one a version and density. A level costs as much as another pass over the test set,
with width methods that of the narrower network, and masks are cut twice.

Shapes: P prunable entries, D dense entries, S statistics of static batch norms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.config.sections import EvalConfig
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import Evaluate, Merged
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.runtime.callbacks.teller import Teller
from fedgmr_hpc.runtime.progress import Progress
from fedgmr_hpc.runtime.rank_pool import RankPool
from fedgmr_hpc.storage.rows import EvaluationRow, LookRow, SubmodelRow
from fedgmr_hpc.storage.writer import ResultWriter
from fedgmr_hpc.training.chunks import Evaluation, Found, Part
from fedgmr_hpc.wire.frames import Frame, Kind
from fedgmr_hpc.wire.parcels import Parcel

VALIDATION, TEST = Part("validation"), Part("test")


@dataclass
class _PendingRows:
    """One version's scores, and the rows that wait for them.

    Attributes:
        cut_s: when its levels are first to be scored.
        rows: of which table and at which time.
        mean_density: None until a refresh has decided it.
    """

    evaluation: Evaluation
    round: int
    cut_s: float
    hash: xxhash.xxh3_64  # of the weights [P + D]
    rows: list[tuple[type[EvaluationRow], float]]
    mean_density: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether all that its rows say is there."""
        is_scored = self.evaluation.is_done(VALIDATION) and self.evaluation.is_done(TEST)
        return is_scored and self.mean_density is not None

    @property
    def model_xxh3(self) -> int:
        """Hash of the whole model [P + D + S]."""
        whole, statistics = self.hash.copy(), self.evaluation.statistics.get(None)
        if statistics is not None:
            whole.update(statistics.data)
        return int(whole.intdigest())

    @property
    def is_complete(self) -> bool:
        """Whether everything is scored, the levels too."""
        return all(map(self.evaluation.is_done, self.evaluation.chunks))


class Evaluator:
    """Has versions evaluated by the ranks, and writes their rows.

    Args:
        coordinator: whose versions they are; only read.
        num_statistics: S.
        wall_s: wall time since the run began.
    """

    def __init__(
        self,
        config: EvalConfig,
        coordinator: Coordinator,
        pool: RankPool,
        data: FederatedData,
        writer: ResultWriter,
        progress: Progress,
        tell: Teller,
        *,
        num_statistics: int,
        run_id: int,
        wall_s: Callable[[], float],
    ) -> None:
        self.config, self.coordinator, self.pool, self.data = config, coordinator, pool, data
        self.writer, self.progress, self.tell = writer, progress, tell
        self.run_id, self.wall_s = run_id, wall_s
        self._num_statistics = num_statistics
        self._num_looks = 0  # due so far
        self._cut_version = -1  # the newest with levels scored, or being scored
        self._open: deque[_PendingRows] = deque()  # with rows to come
        self._cut: deque[_PendingRows] = deque()  # with rows of levels to come
        self._newest: _PendingRows | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether rows are still to come."""
        return bool(self._open or self._cut)

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back, when no rows are to come."""
        return {"num_looks": self._num_looks, "cut_version": self._cut_version}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self._num_looks, self._cut_version = state["num_looks"], state["cut_version"]

    def validate(self, command: Evaluate, now_s: float) -> Evaluation:
        """Begin the evaluation of a refresh, the validation set before anything else."""
        pending = self._newest
        if pending is None or pending.evaluation.version != command.version:
            pending = self._begin(command, now_s)
            first = [*self._norms(pending.evaluation), VALIDATION]
            self.pool.evaluate(pending.evaluation, first, is_awaited=True)
            self.pool.evaluate(pending.evaluation, [TEST])
        # else looks have had it scored: a run has ended long after its last merge
        if not pending.rows:
            self._open.append(pending)
        pending.rows.append((EvaluationRow, now_s))
        return pending.evaluation

    def merged(self, merged: Merged) -> None:
        """Note that a version's densities are decided and its masks are cut."""
        self._decide(merged.version, float(merged.density.mean()))

    def _decide(self, version: int, mean_density: float) -> None:
        pending = self._newest
        if pending is not None and pending.evaluation.version == version:
            pending.mean_density = mean_density
            if self.config.every_s is None and self._lacks_levels(pending):
                self._score_levels(pending)
        self.write_rows()

    def look(self, before_s: float) -> None:
        """Give the current version the looks that are due before a time."""
        times = self._due_times(before_s)
        if not times:
            return
        pending = self._newest
        if pending is None or not self._can_score(pending):
            pending = self._begin(self.coordinator.look(), times[0])
            pending.mean_density = float(np.mean(self.coordinator.restoration.densities))
            parts = [*self._norms(pending.evaluation), VALIDATION, TEST]
            self.pool.evaluate(pending.evaluation, parts)
        if self._lacks_levels(pending):
            pending.cut_s = times[0]
            self._score_levels(pending)
        if not pending.rows:
            self._open.append(pending)
        pending.rows += [(LookRow, at_s) for at_s in times]
        self.write_rows()

    def _can_score(self, pending: _PendingRows) -> bool:
        """Whether a look at the current version finds in `pending` what it asks for: scores of the
        whole model, and those of levels or the ranks' attention, to have them scored. The pool has
        one evaluation a version, and has it until its rows are written.
        """
        version = pending.evaluation.version
        is_open = self.pool.evaluations.get(version) is pending.evaluation
        return version == self.coordinator.version and (is_open or not self._lacks_levels(pending))

    def _lacks_levels(self, pending: _PendingRows) -> bool:
        return self.config.submodels and pending.evaluation.version > self._cut_version

    def _due_times(self, before_s: float) -> list[float]:
        every_s, times = self.config.every_s, []
        while every_s is not None and (at_s := self._num_looks * every_s) < before_s:
            times.append(at_s)
            self._num_looks += 1
        return times

    def _begin(self, command: Evaluate, now_s: float) -> _PendingRows:
        frame = self._frame(command)
        digest = xxhash.xxh3_64(frame.values.data)
        digest.update(frame.dense.data)
        chunks = {part: self._chunks(part) for part in (VALIDATION, TEST)}
        evaluation = Evaluation(command.version, Parcel(frame), chunks)
        self._newest = _PendingRows(evaluation, command.round, now_s, digest, [])
        return self._newest

    def _norms(self, evaluation: Evaluation, level: int | None = None) -> list[Part]:
        """Return the pass that gives static batch norms their statistics, if there are any."""
        parts = [Part("norms", level)] if self._num_statistics else []
        evaluation.chunks |= {part: self._chunks(part) for part in parts}
        return parts

    def complete(self, weights: Floats) -> Floats:
        """Return [P + D + S] the weights [P + D] of the version evaluated last, with its
        statistics.
        """
        assert self._newest is not None
        if self._newest.mean_density is None:  # its merge was reported before it was evaluated
            densities = self.coordinator.restoration.densities
            self._decide(self._newest.evaluation.version, float(np.mean(densities)))
        self.write_rows()  # nobody else does, where looks had all of it scored
        statistics = self._newest.evaluation.statistics.get(None, weights[:0])
        return np.concatenate([weights, statistics])

    def _chunks(self, part: Part) -> dict[int, Found | None]:
        starts = range(0, self.data.pool_size(part.pool), self.config.chunk)
        return dict.fromkeys(starts)

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

    def _score_levels(self, pending: _PendingRows) -> None:
        """Have a version scored at each level that lacks something of the whole model."""
        evaluation = pending.evaluation
        self._cut_version = evaluation.version
        evaluation.ladder = ladder = self.coordinator.masking.ladder
        partial = (
            [] if ladder is None else [n for n, k in enumerate(ladder.counts) if k < ladder.size]
        )
        norms = [part for level in partial for part in self._norms(evaluation, level)]
        parts = [Part("test", level) for level in partial]
        evaluation.chunks |= {part: self._chunks(part) for part in parts}
        self._cut.append(pending)
        self.pool.evaluate(evaluation, [*norms, *parts])

    def accuracy(self, evaluation: Evaluation) -> float:
        """Validation accuracy, once its chunks are in."""
        return self._scores(evaluation, VALIDATION)[0]

    def _scores(self, evaluation: Evaluation, part: Part) -> tuple[float, float]:
        """(accuracy, mean loss) of a finished part."""
        correct, loss_sum = evaluation.sums(part)
        num_scored = self.data.num_scored(part.pool)
        return correct / num_scored, loss_sum / num_scored

    def _tested(self, evaluation: Evaluation, level: int | None = None) -> dict[str, float]:
        """Return the columns of a row that the test set gives."""
        accuracy, loss = self._scores(evaluation, Part("test", level))
        return {"test_accuracy": accuracy, "test_loss": loss, "wall_s": self.wall_s()}

    def write_rows(self) -> None:
        """Write the rows of the versions that are scored, in their order."""
        while self._open and self._open[0].is_known:
            pending = self._open.popleft()
            rows = [self._row(pending, row_type, at_s) for row_type, at_s in pending.rows]
            pending.rows = []
            for row in rows:
                self.writer.append(row)
                self.tell.evaluated(row)
            self.progress.evaluated(rows[-1])
            self._close(pending)
        while self._cut and self._cut[0].is_complete:
            self._write_levels(pending := self._cut.popleft())
            self._close(pending)

    def _close(self, pending: _PendingRows) -> None:
        """Nothing of it is to come from the ranks any more, if that is so."""
        if pending.is_complete:
            self.pool.evaluations.pop(pending.evaluation.version, None)
            pending.evaluation.parcel = None

    def _row(
        self, pending: _PendingRows, row_type: type[EvaluationRow], at_s: float
    ) -> EvaluationRow:
        assert pending.mean_density is not None
        val_accuracy, val_loss = self._scores(pending.evaluation, VALIDATION)
        return row_type(
            version=pending.evaluation.version,
            round=pending.round,
            now_s=at_s,
            mean_density=pending.mean_density,
            model_xxh3=pending.model_xxh3,
            val_accuracy=val_accuracy,
            val_loss=val_loss,
            **self._tested(pending.evaluation),
        )

    def _write_levels(self, pending: _PendingRows) -> None:
        """Write the rows of all classes at once: a mean over clients is of all or none."""
        ladder, rows = pending.evaluation.ladder, []
        for density, num_clients in sorted(self.coordinator.classes.items()):
            level, num_kept = self._level(ladder, density)
            rows.append(
                SubmodelRow(
                    version=pending.evaluation.version,
                    now_s=pending.cut_s,
                    density=density,
                    num_kept=num_kept,
                    num_clients=num_clients,
                    **self._tested(pending.evaluation, level),
                )
            )
        self.writer.append(*rows)

    def _level(self, ladder: MaskSet | None, density: float) -> tuple[int | None, int]:
        """Return the level of a density, None for the whole model, and how many weights it
        keeps.
        """
        if ladder is None:
            return None, self.coordinator.masks.size
        level = ladder.level(density)
        num_kept = ladder.counts[level]
        return (None if num_kept == ladder.size else level), num_kept
