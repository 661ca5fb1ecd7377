"""`bench data`: training batches from bytes, against a copy of as many bytes.

A batch costs two copies of what it is, when all goes well: bytes in, floats out. Cropping and
mirroring come on top of that, on the host as on a GPU. For images of ImageNet the share of what an
H100 trains is stated, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from fedgmr_hpc.bench.case import Benchmark, Row, copy_gb_per_s, median_s
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.data import cifar10, femnist, imagenet
from fedgmr_hpc.data.batches.device_batches import DeviceBatches
from fedgmr_hpc.data.batches.draws import BatchSpec
from fedgmr_hpc.data.datasets import Batch, Dataset
from fedgmr_hpc.data.splits import RowGuard, Split, row_checksums
from fedgmr_hpc.training.numeric_settings import settled

BATCH, STEPS, NUM_SAMPLES = 20, 5, 4000
H100_IMAGES_PER_S = 8000  # of ResNet-18 at 168 px, in training
SETS = {
    "femnist": femnist.TRAITS,
    "cifar10": cifar10.TRAITS,
    "imagenet100": imagenet.TRAITS,
}


def measure_samples(repeats: int) -> Benchmark:
    """Return a row for each data set and place where batches are made: the host, and GPUs."""
    with settled():  # one thread, as a rank has
        rows = [row for name in SETS for row in _measure(name, repeats)]
    return Benchmark(rows, {"batch": BATCH})


def _measure(name: str, repeats: int) -> Iterator[Row]:
    dataset = _random_samples(name)
    specs = [_draw(dataset, step) for step in range(STEPS)]
    host = [dataset.batch(dataset.train, spec.index, spec.draws) for spec in specs]
    _check(
        list(DeviceBatches(dataset, torch.device("cpu"), keeps=True).make(dataset.train, specs)),
        host,
    )

    def on_host() -> None:
        for step in range(STEPS):
            spec = _draw(dataset, step)
            dataset.batch(dataset.train, spec.index, spec.draws)

    yield _row(name, "by one core", dataset, median_s(repeats, on_host))
    if torch.cuda.is_available():
        for keeps, place in ((True, "on a GPU, kept there"), (False, "on a GPU, sent to it")):
            batches = DeviceBatches(dataset, torch.device("cuda"), keeps)
            _check(list(batches.make(dataset.train, specs)), host)
            yield _row(name, place, dataset, median_s(repeats, partial(_on_device, batches)))


def _on_device(batches: DeviceBatches) -> None:
    specs = [_draw(batches.dataset, step) for step in range(STEPS)]
    for _ in batches.make(batches.dataset.train, specs):
        pass
    torch.cuda.synchronize()


def _random_samples(name: str) -> Dataset:
    """Return images of noise, guarded as those of a cache are."""
    traits = SETS[name]
    shape = NUM_SAMPLES, *traits.input_shape
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(NUM_SAMPLES) % traits.num_classes
    split = Split(
        x, labels, np.zeros(NUM_SAMPLES, np.int32), guard=RowGuard(row_checksums(x), name)
    )
    few = replace(split, rows=np.arange(1), y=labels[:1], group=split.group[:1])
    return Dataset(name, split, few, traits)


def _draw(dataset: Dataset, step: int) -> BatchSpec:
    index = make_rng(0, "batch", 0, step).integers(0, NUM_SAMPLES, BATCH)
    return BatchSpec(index, dataset.draw_changes(BATCH, make_rng(0, "augment", 0, step)))


def _check(found: list[Batch], wanted: list[Batch]) -> None:
    """Check that a device makes the batches of the host, to the bit."""
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(one, other, strict=True))


def _row(name: str, made: str, dataset: Dataset, took_s: float) -> Row:
    num, pixels = BATCH * STEPS, int(np.prod(dataset.input_shape))
    moved = num * pixels * 5  # a byte read and four written
    copied_s = moved / 1e9 / copy_gb_per_s(moved, 5)
    of_needs = num / took_s / H100_IMAGES_PER_S if name == "imagenet100" else None
    return {
        "samples": name,
        "px": dataset.input_shape[1],
        "made": made,
        "ms a step": took_s / STEPS * 1e3,
        "samples/s": num / took_s,
        "of a copy": copied_s / took_s,
        "of an H100's needs": of_needs,
    }
