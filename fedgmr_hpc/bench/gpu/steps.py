"""Local steps on one GPU: clients one after the other and side by side; nothing is sent."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedgmr_hpc.bench.case import Row
from fedgmr_hpc.bench.gpu.cases import Case, case_row
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import run_weights
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.sgd import Trained

SIDE_BY_SIDE = (1, 2, 4, 8)
PRECISIONS = ("fp32", "tf32", "bf16")


def time_steps(case: Case, device: str, quick: bool) -> Iterator[Row]:
    """Yield a row for each way to train; all of one precision have to train the same weights."""
    data = FederatedData(case.config())
    for precision in PRECISIONS[:1] if device == "cpu" else PRECISIONS:
        expected = None
        for num_clients in SIDE_BY_SIDE[:2] if quick else SIDE_BY_SIDE:
            for graphs in (False, True):
                config = case.config(
                    f"train.precision={precision}",
                    f"train.parallel_clients={num_clients}",
                    f"train.cuda_graphs={graphs}".lower(),
                )
                clients = SideBySide(config, data, device)
                found = clients.train_one()
                expected = found if expected is None else expected
                assert torch.equal(found, expected), f"{config.train} trains other weights"
                yield case_row(case, clients.steps_per_s(case.seconds), config, clients.how)


class SideBySide:
    """Clients that train side by side as on a client rank, with nobody to answer to."""

    def __init__(self, config: Config, data: FederatedData, device: str) -> None:
        self.config, self.num_tasks = config, 0
        number = config.train.parallel_clients
        self.trainings = [LocalTraining(config, data, device) for _ in range(number)]
        weights, size = run_weights(config, data.num_classes), self.trainings[0].layout.num_prunable
        self.values, self.dense = torch.from_numpy(weights[:size]), torch.from_numpy(weights[size:])
        self.begun: deque[tuple[LocalTraining, Trained]] = deque()

    @property
    def how(self) -> str:
        """Whether steps were replayed."""
        graphs = self.trainings[0].graphs
        return "plain" if graphs is None else graphs.summary

    def train_one(self) -> Tensor:
        """Train the last of some clients like the first of a run; return its weights [P + D].

        The ones before it are the same task, so that a recorded step is among those compared.
        """
        for _ in range(2 * len(self.trainings)):
            self._begin(client=0, first_step=0)
        last, _ = self.begun[-1]
        entries = torch.cat(last.entries())
        self._end_all()
        return entries

    def steps_per_s(self, seconds: float) -> float:
        """Return the steps a second, once every training has warmed up."""
        for _ in range(2 * len(self.trainings)):
            self._next()
        self._end_all()
        num_before, began_s = self.num_tasks, time.perf_counter()
        while self.num_tasks == num_before or time.perf_counter() - began_s < seconds:
            self._next()
        self._end_all()
        spent_s = time.perf_counter() - began_s
        return (self.num_tasks - num_before) * self.config.train.steps / spent_s

    def _next(self) -> None:
        count, steps = self.config.clients.count, self.config.train.steps
        self._begin(self.num_tasks % count, self.num_tasks // count * steps)

    def _begin(self, client: int, first_step: int) -> None:
        rate, number = self.config.train.learning_rate, len(self.values)
        task = Assignment(client, 0, 0, 0, 1.0, number, first_step, rate, False)
        if len(self.begun) == len(self.trainings):
            self._end_first()
        training = self.trainings[self.num_tasks % len(self.trainings)]
        self.begun.append((training, training.train(task, self.values, self.dense, None)))
        self.num_tasks += 1

    def _end_first(self) -> None:
        training, trained = self.begun.popleft()
        assert np.isfinite(training.mean_loss(trained)), "training diverged"
        training.entries()

    def _end_all(self) -> None:
        while self.begun:
            self._end_first()
