"""The rounds in pfl-research: `FederatedAveraging` on a `SimulatedBackend`.

Several processes are pfl's own distributed simulation (PFL_WORKER_RANK, PFL_WORKER_ADDRESSES): each
trains its share of the users, and the sums meet in one all-reduce of gloo. Each of them waits at a
gate, for none would wait for the others before its next users are trained.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.base import get_num_datapoints_weight_name
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.common_types import Population
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor

from fedgmr_hpc.bench.peers.conv2 import Conv2
from fedgmr_hpc.bench.peers.gate import Gate
from fedgmr_hpc.bench.peers.work import Work, save_tensors


class Net(Conv2):
    """The model with what pfl asks for."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the mean loss of a batch."""
        return F.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Compute the loss to report, once before and once after the first round."""
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Wait(TrainingProcessCallback):
    """Waits at the gate between two rounds, and counts the samples that pfl says were used."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.samples = gate, 0

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Be ready."""
        self.gate.wait()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """End a round."""
        name = get_num_datapoints_weight_name(Population.TRAIN)
        self.samples += int(aggregate_metrics[name].weighted_value)
        self.gate.wait()
        return False, Metrics()


def main() -> None:
    """Train: FOLDER ADDRESS ROUNDS OUT."""
    torch.set_num_threads(1)
    np.random.seed(0)  # of the cohorts, alike in all processes
    work, wait = Work.load(Path(sys.argv[1])), Wait(Gate(sys.argv[2]))
    module = Net().load(work.weights)
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    FederatedAveraging().run(
        backend=make_backend(work),
        model=model,
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=int(sys.argv[3]),
            evaluation_frequency=1_000_000,
            train_cohort_size=len(work.x),
            val_cohort_size=0,
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=work.learning_rate,
            local_batch_size=work.batch,
        ),
        callbacks=[wait],
    )
    save_tensors(Path(sys.argv[4]), {k: v.numpy() for k, v in module.state_dict().items()})
    wait.gate.finish(wait.samples)


def make_backend(work: Work) -> SimulatedBackend:
    """Return a backend whose users are the clients."""
    x, y = torch.from_numpy(work.x), torch.from_numpy(work.y)

    def user(name: str) -> Dataset:
        return Dataset([x[int(name)], y[int(name)]], user_id=name)

    names = [str(client) for client in range(len(x))]
    users = FederatedDataset(user, get_user_sampler("minimize_reuse", names))
    return SimulatedBackend(training_data=users, val_data=users)


if __name__ == "__main__":
    main()
