"""What every contender trains: initial weights, and each client's batches of the first round.

Shapes: C clients, S samples of one client's round, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Work:
    """Federated averaging of one model by plain SGD.

    Attributes:
        weights: the initial tensors by name, as `conv2.Conv2` names them.
        x: [C, S, 1, 28, 28] the samples that each client trains on in the first round, in order.
        y: [C, S] their classes.
        batch: B; a client takes S / B steps a round.
        learning_rate: of every step.
    """

    weights: Arrays
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    batch: int
    learning_rate: float

    @property
    def samples_a_round(self) -> int:
        """What all clients together train on in a round: C x S."""
        return self.y.size

    @property
    def model_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.weights.values())

    def save(self, folder: Path) -> None:
        """Write everything into a folder, for contenders in processes of their own."""
        save_tensors(folder / "weights.npz", self.weights)
        rest = {"x": self.x, "y": self.y, "batch": self.batch, "learning_rate": self.learning_rate}
        save_tensors(folder / "samples.npz", rest)

    @classmethod
    def load(cls, folder: Path) -> Work:
        """Read what `save` has written."""
        with np.load(folder / "samples.npz") as found:
            batch, learning_rate = int(found["batch"]), float(found["learning_rate"])
            x, y = found["x"], found["y"]
        return cls(load_tensors(folder / "weights.npz"), x, y, batch, learning_rate)


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors by name."""
    np.savez(path, **tensors)


def load_tensors(path: Path) -> Arrays:
    """Read what `save_tensors` has written."""
    with np.load(path) as found:
        return {name: found[name] for name in found.files}
