"""The rounds in Flower: `FedAvg` on its simulation engine, which is Ray's.

Two CPUs, one for each actor; the actors stay between rounds, nothing is logged or evaluated.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from fedgmr_hpc.bench.peers import flower_client
from fedgmr_hpc.bench.peers.gate import Gate
from fedgmr_hpc.bench.peers.work import Work, save_tensors

RAY = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "logging_level": "error"}


def main() -> None:
    """Train: FOLDER ADDRESS ROUNDS OUT."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    folder, gate, rounds, out = Path(sys.argv[1]), Gate(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    work, server = Work.load(folder), ServerApp()
    samples: list[float] = []

    def sum_samples(records: list[RecordDict], key: str) -> MetricRecord:
        samples.extend(record["metrics"][key] for record in records)
        return MetricRecord({key: sum(samples)})

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_available_nodes=len(work.x),
            train_metrics_aggr_fn=sum_samples,
        )
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord({k: torch.from_numpy(w) for k, w in work.weights.items()}),
            num_rounds=rounds,
            train_config=ConfigRecord({"folder": str(folder)}),
            evaluate_fn=lambda number, arrays: gate.wait(),  # before the first, after each round
        )
        tensors = result.arrays.to_torch_state_dict()
        save_tensors(Path(out), {name: tensor.numpy() for name, tensor in tensors.items()})

    run_simulation(
        server_app=server,
        client_app=flower_client.app,
        num_supernodes=len(work.x),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": RAY},
    )
    gate.finish(int(sum(samples)))


if __name__ == "__main__":
    main()
