"""What ranks need of the data: clients' batches, the validation pool, its subset, the test set.

Everything is a function of the configuration, so any rank can serve any client. Validation is cut
from every client's own part after partitioning; the pool of all of them drives decisions, the test
set is only reported.

Shapes: B batch, V validation samples, T test samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgmr_hpc.config import Config
from fedgmr_hpc.data.datasets import load_dataset
from fedgmr_hpc.data.partition import batch_indices, cut_validation, make_partition
from fedgmr_hpc.models import input_shape, num_outputs
from fedgmr_hpc.records import make_rng

Pool = Literal["validation", "score", "test"]
SUBSET_SEED = 0  # one subset, and one stand-in, for every seed of a study


class FederatedData:
    """The partitioned data set of a run.

    Raises:
        ValueError: files are missing or damaged, the model does not fit, or clients get too little.
    """

    def __init__(self, config: Config) -> None:
        data = config.data
        self.config = config
        self.dataset = load_dataset(
            data.name,
            root=data.root,
            cache=str(Path(data.cache).expanduser()),
            max_train=data.max_train,
            max_test=data.max_test,
            seed=SUBSET_SEED,
        )
        self._check_model()
        train = self.dataset.train
        parts = make_partition(
            data.partition,
            train.y,
            train.group,
            num_clients=config.clients.count,
            alpha=data.alpha,
            sort_by_size=data.sort_by_size,
            seed=config.seed,
        )
        self.train_parts, validation = cut_validation(
            parts, frac=data.validation_frac, seed=config.seed
        )
        self._pools = self._make_pools(np.sort(np.concatenate(validation)))

    def _check_model(self) -> None:
        model, dataset = self.config.model.name, self.dataset
        if tuple(dataset.input_shape) != input_shape(model):
            raise ValueError(
                f"model.name: got {model!r}, which takes images {input_shape(model)}; "
                f"data.name = {dataset.name} has images {tuple(dataset.input_shape)}"
            )
        if dataset.num_classes > num_outputs(model):
            raise ValueError(
                f"model.name: got {model!r} with {num_outputs(model)} outputs, "
                f"data.name = {dataset.name} has {dataset.num_classes} classes"
            )

    def _make_pools(self, validation: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        wanted = min(self.config.eval.client_samples, len(validation))
        subset = make_rng(self.config.seed, "score_subset").choice(
            validation, wanted, replace=False
        )
        test = np.arange(len(self.dataset.test.y))
        return {"validation": validation, "score": np.sort(subset), "test": test}

    def pool_size(self, pool: Pool) -> int:
        """Samples in a pool."""
        return len(self._pools[pool])

    def train_batches(
        self, client: int, first_step: int, steps: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A client's batches (images [B, ...] float32, labels [B] int64) of some local steps."""
        part, config = self.train_parts[client], self.config
        for step in range(first_step, first_step + steps):
            inside = batch_indices(
                len(part), batch=config.train.batch, step=step, seed=config.seed, client=client
            )
            rng = None
            if self.dataset.augment != "none":
                rng = make_rng(config.seed, "augment", client, step)
            yield self._batch(self.dataset.train, part[inside], rng)

    def pool_batches(self, pool: Pool, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples [start, stop) of a pool in pieces of `eval.chunk`."""
        split = self.dataset.test if pool == "test" else self.dataset.train
        chunk = self.config.eval.chunk
        for at in range(start, stop, chunk):
            yield self._batch(split, self._pools[pool][at : min(at + chunk, stop)], None)

    def _batch(
        self, split: object, index: NDArray[np.int64], rng: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        images = self.dataset.images(split, index, rng)  # type: ignore[arg-type]
        labels = self.dataset.labels(split, index)  # type: ignore[arg-type]
        return torch.from_numpy(images), torch.from_numpy(labels)
