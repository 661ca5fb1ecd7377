"""The ranks' side of `bench round`: FedGMR rounds against the same local steps alone.

Every rank but the server first trains its share of the clients for some rounds with nothing else
going on (the ceiling), then serves a real run, then does the first part again. Efficiency is the
ceiling's time for a round over the run's, between two refreshes, so that refreshes and evaluations
at the usual interval are inside. The ceiling's steps are dense, those of the run compact where
that is cheaper (docs/compact-training.md). With constant links and nominal sizes all ten clients
deliver in every round; masks and bytes moved are the real ones.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgmr_hpc.bench.case import initial_sub_models
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config, make_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.runtime.experiment import serve
from fedgmr_hpc.runtime.preparation import prepare_experiment
from fedgmr_hpc.runtime.roles import guard
from fedgmr_hpc.runtime.worker import Worker
from fedgmr_hpc.storage.process import private_bytes
from fedgmr_hpc.training.process_settings import keep_large_blocks, return_large_blocks
from fedgmr_hpc.training.sub_models import make_sub_model
from fedgmr_hpc.transport.contract import Tag, Transport
from fedgmr_hpc.transport.joining import make_transport
from fedgmr_hpc.transport.ranks import detect_launch

TIMEOUT_S = 600.0
FULL = [1.0] * 10


def make_case(folder: str, name: str, quick: bool) -> Config:
    """Return FedGMR on Conv2 and FEMNIST shapes, with scores but without restoration."""
    interval = 4 if quick else 25
    overrides = [
        "data.name=synthetic_femnist",
        f"run.max_rounds={3 * interval + 1}",
        f"run.interval_rounds={interval}",
        "restoration.patience=1000000",
        "links.size=nominal",
        "links.client_sigma=0",
        "links.server_sigma=0",
        "progress=quiet",
        f"results.path={folder}/{name.replace(' ', '_')}.h5",
    ]
    if quick:
        overrides += ["data.max_train=2000", "data.max_test=400"]
    if name == "all full":
        overrides.append(f"clients.shares={FULL}")
    return load_config("femnist", overrides)


def main() -> int:
    """Run one rank of the benchmark; return its exit code."""
    torch.set_num_threads(1)
    out, quick = Path(sys.argv[1]), "--quick" in sys.argv[2:]
    transport = make_transport("mpi", detect_launch(os.environ))
    if transport is None:
        raise SystemExit("bench round needs at least two ranks")
    return guard(transport, lambda: run_cases(transport, out, quick))


def run_cases(transport: Transport, out: Path, quick: bool) -> int:
    """Run all cases on this rank; rank 0 leaves the table as JSON in `out`."""
    names = ["level high", "all full"]
    if transport.rank > 0:
        for _ in names:
            follow(transport)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows = [lead(make_case(folder, name, quick), name, transport) for name in names]
    out.write_text(json.dumps(rows))
    return 0


def lead(config: Config, name: str, transport: Transport) -> dict[str, Any]:
    """Time both parts, as rank 0; return one row of the table."""
    return_large_blocks()
    rest_bytes = private_bytes()
    experiment = prepare_experiment(config)
    hello = {"config": config.model_dump(mode="json"), "run_id": experiment.run_id}
    for rank in range(1, transport.size):
        transport.send(rank, Tag.HELLO, json.dumps(hello).encode())
    before_s = time_ceiling(transport)
    with PeakMemory() as memory:
        result = serve(experiment, transport)
    after_s = time_ceiling(transport)
    merges, k = result.merges, config.run.interval_rounds
    clients_a_round = float(merges["num_merged"][k : 3 * k].mean())
    round_s = float(merges["wall_s"][3 * k - 1] - merges["wall_s"][k - 1]) / (2 * k)
    ceiling_s = (before_s + after_s) / 2
    dense_bytes = result.weights.nbytes
    buffer_models = float(np.sum(config.clients.bandwidth_shares()))
    peak_models = (memory.peak_bytes - rest_bytes) / dense_bytes
    return {
        "densities": name,
        "clients/round": clients_a_round,
        "round s": round_s,
        "ceiling s": ceiling_s,
        "ceiling before, after s": f"{before_s:.3f} {after_s:.3f}",
        "efficiency": ceiling_s / round_s * clients_a_round / config.clients.count,
        "times faster than 4.6 s": 4.6 / round_s,
        "server peak, models": peak_models,
        "buffer, models": buffer_models,
    }


class PeakMemory:
    """The most private memory of this process while the context is open, looked at every 5 ms."""

    def __enter__(self) -> PeakMemory:
        self.peak_bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.peak_bytes = max(self.peak_bytes, private_bytes())


def time_ceiling(transport: Transport) -> float:
    """Return the seconds that a round takes when the ranks only train."""
    for rank in range(1, transport.size):
        transport.send(rank, Tag.TASK, b"")
    times = []
    for _ in range(1, transport.size):
        message = transport.recv(TIMEOUT_S)
        if message.tag != Tag.RESULT:
            raise RunError(bytes(message.payload).decode(), rank=message.source, stage="train")
        times.append(json.loads(bytes(message.payload)))
    return float(max(times))


def follow(transport: Transport) -> None:
    """Be a client rank: the ceiling, the run, the ceiling again."""
    keep_large_blocks()
    hello = json.loads(bytes(transport.recv(TIMEOUT_S).payload))
    config = make_config(hello["config"])
    worker = Worker(config, transport, FederatedData(config), hello["run_id"])
    report_ceiling(worker, transport)
    worker.run()
    report_ceiling(worker, transport)


def with_dense_steps(config: Config) -> Config:
    """Return a configuration of which no layer is compact."""
    values = config.model_dump(mode="json")
    values["train"]["compact_below"] |= dict.fromkeys(("linear", "conv", "embedding"), 0.0)
    return make_config(values)


def report_ceiling(worker: Worker, transport: Transport) -> None:
    """Train this rank's share of the clients on their initial sub-models, as in a run, but with
    every layer dense.
    """
    config, training = worker.config, worker.trainings[0]
    dense_model = make_sub_model(with_dense_steps(config), num_classes=worker.data.num_classes)
    parts = initial_sub_models(config, worker.data.num_classes)
    mine = range(transport.rank - 1, config.clients.count, transport.size - 1)
    rounds = 2 if config.run.interval_rounds < 25 else 8
    transport.recv(TIMEOUT_S)
    spent_s = 0.0
    for index in range(rounds + 1):
        for client in mine:
            dense_model.load(*parts[client], mask_id=-1)
            began_s = time.perf_counter()
            dense_model.train(
                worker.data.train_batches(client, index * config.train.steps, config.train.steps),
                training.loss,
                learning_rate=config.train.learning_rate,
                sgd=training.sgd,
            )
            spent_s += (time.perf_counter() - began_s) * (index > 0)  # the first round warms up
    transport.send(0, Tag.RESULT, json.dumps(spent_s / rounds).encode())
    transport.flush(TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
