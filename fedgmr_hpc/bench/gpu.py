"""`bench gpu`: local steps on one GPU, and whole runs whose ranks share it.

First clients train one after the other and side by side, by plain steps and by CUDA graphs, in each
precision; nothing is sent. Every way has to train the same weights, to the bit within a precision,
before it is timed. Then runs of the paper's ImageNet-100 settings, on random images of that size,
share the GPU among 1, 2 and 4 client ranks; the best of them says how long all rounds would take.
Ranks that share a GPU do so side by side only under NVIDIA's MPS (docs/clusters.md).
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgmr_hpc.bench.case import Benchmark, Row
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import run_weights
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.sgd import Trained
from fedgmr_hpc.transport.launchers import run_ranks

IMAGES_GOAL, STEPS_GOAL, HOURS_GOAL = 8_000, 4_000, 3  # on one GPU of the class of an H100
SIDE_BY_SIDE = (1, 2, 4, 8)
RANKS = (1, 2, 4)
PRECISIONS = ("fp32", "tf32", "bf16")
ROUNDS = 20_000  # of the paper's run


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        run: the run file.
        words: what differs from it.
        unit: what is counted: `images` or `steps`.
        goal: of them a second.
        seconds: for which each row is timed.
    """

    run: str
    words: tuple[str, ...]
    unit: str
    goal: float
    seconds: float

    def config(self, *words: str) -> Config:
        """Return the configuration with some words more."""
        return load_config(self.run, [*self.words, "progress=quiet", *words])


def measure_gpu(quick: bool, device: str = "cuda") -> Benchmark:
    """Return a row for each way to train on the device, and one for each number of ranks.

    Args:
        quick: Tiny images and few steps, as a smoke test; then the device may be `cpu`.
        device: `cuda`, or `cpu`.

    Raises:
        ValueError: There is no such device, or the CPU is to be measured.
        AssertionError: A way to train gives other weights.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(must("bench gpu", "find a CUDA device", found="none"))
    if device == "cpu" and not quick:
        raise ValueError(must_be("--device", "cuda without --quick", device))
    with tempfile.TemporaryDirectory() as folder:
        cases = list(make_cases(Path(folder), quick))
        rows = [row for case in cases for row in time_steps(case, device, quick)]
        runs = time_runs(cases[0], device, quick, Path(folder))
    images = max(row["a second"] for row in rows if row["unit"] == "images")
    summary = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "images_per_s": images,
        "steps_per_s": max(row["a second"] for row in rows if row["unit"] == "steps"),
        "hours": ROUNDS * min(row["s a round"] for row in runs) / 3600,
        "goals": {"images_per_s": IMAGES_GOAL, "steps_per_s": STEPS_GOAL, "hours": HOURS_GOAL},
    }
    shown = [{key: row[key] for key in rows[0]} for row in (*rows, *runs)]
    return Benchmark(
        shown, summary, ("trained", "ranks", "clients at a time", "graphs", "precision")
    )


def make_cases(folder: Path, quick: bool) -> Iterator[Case]:
    """Yield ResNet-18 on random images, then Conv2 on random characters; small models if quick."""
    size, count = (32, 300) if quick else (168, 3_000)
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for part, number in (("train", count), ("test", count // 10)):
        shape = (number, size, size, 3)
        parts[f"x_{part}"] = rng.integers(0, 256, shape, dtype=np.uint8)
        parts[f"y_{part}"] = np.arange(number) % (10 if quick else 100)
    np.savez(folder / "images.npz", **parts)
    own = (f"data.root={folder}/images.npz", f"data.cache={folder}/cache")
    images: tuple[str, ...] = ("data.name=npz", "data.augment=resized_crop", *own)
    characters: tuple[str, ...] = (
        "data.name=synthetic_femnist",
        "data.max_train=2000",
        "data.max_test=200",
    )
    few = ("train.batch=2", "clients.count=4")
    if quick:
        images = (*images, *few, "model.name=cifar_cnn")
        characters = (*characters, *few, "model.name=conv2_small")
    seconds = 0.0 if quick else 5.0
    yield Case("imagenet100", images, "images", IMAGES_GOAL, seconds)
    yield Case("femnist", characters, "steps", STEPS_GOAL, seconds)


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


def case_row(case: Case, steps_per_s: float, config: Config, how: str, ranks: int = 0) -> Row:
    """Return a row of the table; without ranks nothing is sent."""
    train = config.train
    rate = steps_per_s * (train.batch if case.unit == "images" else 1)
    return {
        "trained": config.model.name,
        "ranks": ranks or "-",
        "clients at a time": train.parallel_clients,
        "graphs": "on" if train.cuda_graphs else "off",
        "precision": train.precision,
        "a second": rate,
        "unit": case.unit,
        "of goal": rate / case.goal,
        "steps": how,
    }


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


def time_runs(case: Case, device: str, quick: bool, folder: Path) -> list[Row]:
    """Return a row for each number of client ranks that share the device, refreshes included."""
    rows = []
    interval = 2 if quick else 50
    for ranks in RANKS[:1] if quick else RANKS:
        for side_by_side in (1, 4):
            path = folder / f"{ranks}-{side_by_side}.h5"
            words = (
                f"device={device}",
                f"train.parallel_clients={side_by_side}",
                f"run.interval_rounds={interval}",
                f"run.max_rounds={2 * interval + 1}",
                f"results.path={path}",
            )
            more: tuple[Any, ...] = (*case.words, "progress=quiet", *words)
            run_ranks(1 + ranks, "fedgmr_hpc.launch", "--config", case.run, *more)
            result = read_result(path)
            merges, config = result.merges, case.config(*words)
            part = slice(interval, 2 * interval)
            round_s = float(np.diff(merges["wall_s"])[part].mean())
            steps_per_s = float(merges["num_merged"][part].mean()) * config.train.steps / round_s
            how = "; ".join(sorted({str(each) for each in result.ranks["cuda_graphs"][1:]}))
            rows.append(case_row(case, steps_per_s, config, how, ranks) | {"s a round": round_s})
    return rows
