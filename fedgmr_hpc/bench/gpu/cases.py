"""What `bench gpu` trains, and how its rows look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.bench.case import Row
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config

IMAGES_GOAL, STEPS_GOAL = 8_000, 4_000  # a second on one GPU of the class of an H100


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
