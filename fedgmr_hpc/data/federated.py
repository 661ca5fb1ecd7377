"""The data of a run: clients' batches, the pools that versions are scored on, the test set.

Everything is a function of the configuration, so that any rank can serve any client. Validation
samples are cut from every client's own part after partitioning; together they drive all decisions,
while the test set is only reported.

Shapes: B batch, V validation samples, T test samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from fedgmr_hpc.config.choices.named_content import check_content
from fedgmr_hpc.config.messages import listed, must, must_be
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.batches.device_batches import DeviceBatches, fits
from fedgmr_hpc.data.batches.draws import BatchSpec
from fedgmr_hpc.data.datasets import SUBSET_SEED, Batch, load_dataset
from fedgmr_hpc.data.partition import (
    KINDS,
    LABELLED_KINDS,
    batch_indices,
    cut_validation,
    make_partition,
)
from fedgmr_hpc.data.splits import Split, array_digest
from fedgmr_hpc.models import run_layout, run_model, run_net

Pool = Literal["validation", "score", "test", "norms"]


class ModelMisfit(ValueError):
    """A data set and a model that do not fit one another."""


class FederatedData:
    """The partitioned data set of a run.

    The pools are: `validation`, all clients' validation samples; `score`, its seeded subset that
    scores sub-models; `test`; and `norms`, training samples that give static batch norms their
    statistics.

    Args:
        config: the run's configuration.
        checks_all: check every row of the data cache now, not only the rows that are read later.

    Attributes:
        dataset: the samples.
        train_parts: [C] training samples of each client.
        validation_parts: [C] validation samples of each client.

    Raises:
        ValueError: files are missing or damaged, the model does not fit, or there are too few
            samples for so many clients.

    Example:
        >>> data = FederatedData(load_config(None, ["data.name=digits"]))
        >>> images, classes = next(data.train_batches(client=0, first_step=0, steps=1))
    """

    def __init__(self, config: Config, *, checks_all: bool = True) -> None:
        data = config.data
        self.config = config
        self.dataset = load_dataset(data, seed=SUBSET_SEED, checks_all=checks_all)
        self._check_model()
        self._check_partition()
        train = self.dataset.train
        parts = make_partition(
            data.partition,
            train.y,
            train.group,
            num_clients=config.clients.count,
            alpha=data.alpha,
            shards_per_client=data.shards_per_client,
            speeds=config.clients.bandwidth_shares() if data.sort_by_size else None,
            seed=config.seed,
            classes_per_client=data.classes_per_client,
            file=data.partition_file,
        )
        self.train_parts, self.validation_parts = cut_validation(
            parts, frac=data.validation_frac, seed=config.seed
        )
        self._on_device: DeviceBatches | None = None
        self._pools = self._make_pools(np.sort(np.concatenate(self.validation_parts)))

    def _check_model(self) -> None:
        model, dataset = self.config.model.name, self.dataset
        wrong = run_model(self.config, self.num_classes).misfit(
            dataset.input_shape, dataset.num_classes, dataset.is_text
        )
        if wrong is not None:
            raise ModelMisfit(
                must(
                    "model.name",
                    "fit the data",
                    model,
                    when={"data.name": dataset.name},
                    because=f"{model} {wrong}",
                )
            )
        if dataset.traits.top_k > self.num_classes:
            need, when = f"at most {self.num_classes}, the classes", {"data.name": dataset.name}
            raise ValueError(must_be("top_k", need, dataset.traits.top_k, when=when))
        run_layout(self.config, self.num_classes)  # refuses sub-models that a model does not have
        if self._sizes_of_one() and run_model(self.config, self.num_classes).has_batch_norms:
            self._try_one_sample()

    def _sizes_of_one(self) -> list[str]:
        """Return the keys by which batches that are normalised by themselves have one sample."""
        train, scored = self.config.train, self.config.eval
        sizes: dict[str, int | None] = {"train.batch": train.batch}
        if train.batch_norm == "static":
            sizes |= {"eval.chunk": scored.chunk, "eval.norm_samples": scored.norm_samples}
        return [key for key, size in sizes.items() if size == 1]

    def _try_one_sample(self) -> None:
        """Refuse batches of one sample if a batch norm would see a single value per channel.

        Whether it does depends on the model's strides, so one pass over zeros tells.
        """
        model, shape = self.config.model.name, self.dataset.input_shape
        try:
            run_net(self.config, self.num_classes)(torch.zeros(1, *shape), training=True)
        except ValueError:
            when = f"model.name is {model!r} and images are {'x'.join(map(str, shape))}"
            reason = "a batch norm would see one value a channel"
            key = self._sizes_of_one()[0]
            raise ValueError(must_be(key, "at least 2", 1, when=when, because=reason)) from None

    def _check_partition(self) -> None:
        kind = self.config.data.partition
        if kind == "file":
            data = self.config.data
            check_content("data.partition_file", data.partition_file, data.partition_xxh3)
        if kind == "group" and not self.dataset.traits.has_groups:
            others = tuple(other for other in KINDS if other != "group")
            raise self._wrong_partition(others, "its samples belong to no writer or user")
        if self.dataset.is_text and kind in LABELLED_KINDS:
            others = tuple(other for other in KINDS if other not in LABELLED_KINDS)
            raise self._wrong_partition(others, "sentences belong to no class")

    def _wrong_partition(self, choices: tuple[str, ...], because: str) -> ValueError:
        kind, when = self.config.data.partition, {"data.name": self.dataset.name}
        line = must_be("data.partition", listed(choices), kind, when=when, because=because)
        return ValueError(line)

    def _make_pools(self, validation: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        wanted = min(self.config.eval.client_samples, len(validation))
        subset = make_rng(self.config.seed, "score_subset").choice(
            validation, wanted, replace=False
        )
        test = np.arange(len(self.dataset.test.y))
        pools = {"validation": validation, "score": np.sort(subset), "test": test}
        return pools | {"norms": self._norm_samples()}

    def _norm_samples(self) -> NDArray[np.int64]:
        """Draw the training samples that give static batch norms their statistics.

        Their order mixes the clients. There are whole batches of `eval.chunk`, or one smaller one:
        the statistics are a mean over batches, in which a small last batch would count too much.
        """
        choices, samples = self.config.eval, np.concatenate(self.train_parts)
        order = make_rng(self.config.seed, "norm_samples").permutation(samples)
        num = min(choices.norm_samples or len(order), len(order))
        return order[: num - num % choices.chunk if num > choices.chunk else num]

    @cached_property
    def fingerprint(self) -> str:
        """The xxh3 of all samples, labels and groups, as 16 hex digits.

        It covers who holds what, too, where a file says so.
        """
        if self.config.data.partition != "file":
            return self.dataset.fingerprint
        parts = [array_digest(part) for part in (*self.train_parts, *self.validation_parts)]
        return xxhash.xxh3_64_hexdigest("".join([self.dataset.fingerprint, *parts]).encode())

    @property
    def num_classes(self) -> int:
        """Classes, or entries of the vocabulary."""
        return self.dataset.num_classes

    @property
    def top_k(self) -> int:
        """How many of the model's best guesses may contain the answer."""
        return self.dataset.top_k

    def pool_size(self, pool: Pool) -> int:
        """Count the samples in a pool."""
        return len(self._pools[pool])

    def num_scored(self, pool: Pool) -> int:
        """Count what loss and accuracy of a pool average over: samples, or scored target tokens."""
        return self.dataset.num_scored(self._split(pool), self._pools[pool])

    def held_classes(self, client: int) -> NDArray[np.int64]:
        """Return the classes of a client's training samples, ascending."""
        part = self.train_parts[client]
        return np.unique(self.dataset.labels(self.dataset.train, part))

    def place(self, device: torch.device | str) -> None:
        """Make batches on a device from now on, to the same bits; on the CPU nothing changes.

        Samples are kept on a GPU where they fit into `data.device_memory_frac` of the memory that
        is free there, else sent to it batch by batch.

        Raises:
            RunError: a sample is not what was decoded.
        """
        device = torch.device(device)
        has_it = self._on_device is not None and self._on_device.device == device
        if device.type != "cpu" and not has_it:
            keeps = fits(self.dataset, device, self.config.data.device_memory_frac)
            self._on_device = DeviceBatches(self.dataset, device, keeps)

    def train_batches(self, client: int, first_step: int, steps: int) -> Iterator[Batch]:
        """Yield a client's batches of some local steps, where `place` has said.

        Batches are images float32 [B, C, H, W] and classes int64 [B], or tokens and their
        successors int64 [B, T], -1 where a successor is not scored.

        Args:
            client: whose samples they are.
            first_step: number of the first local step since the run began.
            steps: how many batches.
        """
        steps_wanted = range(first_step, first_step + steps)
        specs = [self._draw(client, step) for step in steps_wanted]
        return self._batches(self.dataset.train, specs)

    def _draw(self, client: int, step: int) -> BatchSpec:
        part, config = self.train_parts[client], self.config
        inside = batch_indices(
            len(part), batch=config.train.batch, step=step, seed=config.seed, client=client
        )
        if self.dataset.augment == "none":
            return BatchSpec(part[inside])
        rng = make_rng(config.seed, "augment", client, step)
        return BatchSpec(part[inside], self.dataset.draw_changes(len(inside), rng))

    def pool_batches(self, pool: Pool, start: int, stop: int) -> Iterator[Batch]:
        """Yield the samples [start, stop) of a pool in batches of `eval.chunk`."""
        index, chunk = self._pools[pool][start:stop], self.config.eval.chunk
        specs = [BatchSpec(index[at : at + chunk]) for at in range(0, len(index), chunk)]
        return self._batches(self._split(pool), specs)

    def _split(self, pool: Pool) -> Split:
        return self.dataset.test if pool == "test" else self.dataset.train

    def _batches(self, split: Split, specs: Sequence[BatchSpec]) -> Iterator[Batch]:
        if self._on_device is not None:
            return self._on_device.make(split, specs)
        return (self.dataset.batch(split, spec.index, spec.draws) for spec in specs)
