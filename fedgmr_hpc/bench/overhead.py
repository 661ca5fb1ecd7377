"""`bench overhead`: what a round costs besides its local steps, in one process and on ranks.

The small model of digits shows what a task costs however small its model is; full Conv2 models show
passes over a model's bytes, and memory that is not used again (page faults). The ceiling is the
same local steps alone, on as many cores as there are client ranks; it is measured before and after.
Evaluation at the usual interval is inside the rounds of digits; those of Conv2 have none.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedgmr_hpc.bench.case import Benchmark, Row, initial_sub_models
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.results.runs import run
from fedgmr_hpc.runtime.callbacks.contract import Callback, RoundEnd, RunHandle
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.process_settings import keep_large_blocks
from fedgmr_hpc.transport.launchers import run_ranks

CONV2 = (
    "method=fedavg",
    "data.name=synthetic_femnist",
    "data.max_train=2000",
    "data.max_test=100",
    "links.size=nominal",
    "run.interval_rounds=1000",
)


@dataclass(frozen=True)
class _Case:
    """Rounds to time: those after `first`, without the last, which always evaluates."""

    name: str
    source: str
    words: tuple[str, ...]
    first: int
    last: int

    def overrides(self, folder: Path, where: str) -> list[str]:
        path = folder / f"{self.source}_{where}.h5"
        rounds = f"run.max_rounds={self.last + 1}"
        return [*self.words, rounds, "progress=quiet", f"results.path={path}"]


class _Marks(Callback):
    """What this process has used when each round ended: time, core time, page faults."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, int]] = []

    def on_round(self, run: RunHandle, end: RoundEnd) -> None:
        """Note them."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.marks.append((time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_minflt))

    def per_round(self, case: _Case) -> tuple[float, float, float]:
        """Return seconds, core seconds and page faults of a round; the first mark is of none."""
        spent = np.subtract(self.marks[case.last], self.marks[case.first])
        round_s, core_s, faults = spent / (case.last - case.first)
        return float(round_s), float(core_s), float(faults)


def measure_overhead(quick: bool, ranks: int) -> Benchmark:
    """Return two rows for each model: in one process, and on ranks."""
    cases = (
        _Case("digits", "digits", (), *((2, 6) if quick else (25, 75))),
        _Case("Conv2, all full", "femnist", CONV2, *((2, 4) if quick else (3, 13))),
    )
    keep_large_blocks()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for case in cases for row in _measure(case, Path(folder), ranks)]
    return Benchmark(rows)


def _measure(case: _Case, folder: Path, ranks: int) -> list[Row]:
    config = load_config(case.source, case.overrides(folder, "alone"))
    time_steps, marks = steps_alone(config), _Marks()
    before_s, _ = time_steps()
    run(config, callbacks=[marks])
    round_s, core_s, faults = marks.per_round(case)
    middle_s, steps_core_s = time_steps()
    over_ranks = case.overrides(folder, "ranks")
    run_ranks(ranks, "fedgmr_hpc.launch", "--config", case.source, *over_ranks)
    wall_s = read_result(folder / f"{case.source}_ranks.h5").merges["wall_s"]
    ranks_s = float(wall_s[case.last - 1] - wall_s[case.first - 1]) / (case.last - case.first)
    cores = min(ranks - 1, len(os.sched_getaffinity(0)))
    alone = _row(case.name, "one process", round_s, (before_s + middle_s) / 2)
    spread = _row(case.name, f"{ranks} ranks", ranks_s, (middle_s + time_steps()[0]) / 2 / cores)
    used = {"core s a round": core_s, "of these, steps": steps_core_s, "page faults": faults}
    return [alone | used, spread | dict.fromkeys(used)]


def _row(model: str, where: str, round_s: float, steps_s: float) -> Row:
    return {
        "model": model,
        "where": where,
        "rounds/s": 1 / round_s,
        "steps alone, rounds/s": 1 / steps_s,
        "efficiency": steps_s / round_s,
    }


def steps_alone(config: Config, rounds: int = 4) -> Callable[[], tuple[float, float]]:
    """Return what measures the seconds and the core seconds of the local steps of a round, on one
    core and the clients' initial sub-models.
    """
    torch.set_num_threads(1)
    data = FederatedData(config)
    training, steps = LocalTraining(config, data), config.train.steps
    parts = initial_sub_models(config, data.num_classes)

    def measure() -> tuple[float, float]:
        spent_s, spent_core_s = 0.0, 0.0
        for index in range(rounds + 1):
            for client, part in enumerate(parts):
                training.sub_model.load(*part, mask_id=-1)
                began_s, began_core_s = time.perf_counter(), time.thread_time()
                training.sub_model.train(
                    data.train_batches(client, index * steps, steps),
                    training.loss,
                    learning_rate=config.train.learning_rate,
                    sgd=training.sgd,
                )
                if index > 0:  # the first round warms up
                    spent_s += time.perf_counter() - began_s
                    spent_core_s += time.thread_time() - began_core_s
        return spent_s / rounds, spent_core_s / rounds

    return measure
