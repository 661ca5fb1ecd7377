"""The rounds in this project, in one process or on the ranks that mpirun has started.

It is a run as `launch` makes it: the real frames with their checksums, the virtual clock and the
bytes of every link, and the rows of the result file are in the time of a round.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from fedgmr_hpc.bench.peers.gate import Gate
from fedgmr_hpc.bench.peers.work import Work, save_tensors
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.models import run_layout, run_weights, state_dict_of
from fedgmr_hpc.runtime.callbacks.contract import Callback, RoundEnd, RunHandle
from fedgmr_hpc.runtime.preparation import Experiment
from fedgmr_hpc.runtime.rank_process import launch_rank
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.transport.ranks import detect_launch


def make_case(path: Path, rounds: int) -> Config:
    """Return FedAvg with full Conv2 models, FEMNIST shapes, and no evaluation but the last."""
    return load_config(
        "femnist",
        [
            "data.name=synthetic_femnist",
            "data.partition=iid",
            "data.max_train=2000",
            "data.max_test=62",
            "method=fedavg",
            "train.loss=cross_entropy",
            "train.learning_rate=0.1",
            f"run.max_rounds={rounds}",
            "run.interval_rounds=1000000",
            "checkpoint.every_s=null",  # the peers write none
            "progress=quiet",
            f"results.path={path}",
        ],
    )


def make_work(config: Config) -> Work:
    """Return what a run of this configuration trains in its first round."""
    data = FederatedData(config)
    layout = run_layout(config, data.num_classes)
    weights = state_dict_of(layout.to_json(), run_weights(config, data.num_classes))
    batches = [
        list(data.train_batches(client, 0, config.train.steps))
        for client in range(config.clients.count)
    ]
    return Work(
        weights={name: tensor.numpy() for name, tensor in weights.items()},
        x=np.stack([np.concatenate([x.numpy() for x, _ in each]) for each in batches]),
        y=np.stack([np.concatenate([y.numpy() for _, y in each]) for each in batches]),
        batch=config.train.batch,
        learning_rate=config.train.learning_rate,
    )


class Wait(Callback):
    """Waits at the gate between two rounds."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_start(self, run: RunHandle) -> None:
        """Be ready."""
        self.gate.wait()

    def on_round(self, run: RunHandle, end: RoundEnd) -> None:
        """End a round."""
        self.gate.wait()


def main() -> int:
    """Train: FOLDER ADDRESS ROUNDS OUT; return the exit code."""
    address, rounds, out = sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    config = make_case(out.with_suffix(".h5"), rounds)
    if detect_launch(os.environ).rank > 0:
        return launch_rank(config, False, lambda run, result: 0)
    gate = Gate(address)

    def report(experiment: Experiment, result: Result) -> int:
        tensors = state_dict_of(result.layout_json, result.weights)
        save_tensors(out, {name: tensor.numpy() for name, tensor in tensors.items()})
        gate.finish(int(result.updates["num_samples"].sum()))
        return 0

    return launch_rank(config, False, report, [Wait(gate)])


if __name__ == "__main__":
    sys.exit(main())
