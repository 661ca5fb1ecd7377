"""Batches that are made on a GPU, from samples that lie there or are sent ahead.

Samples travel as bytes: once, where they fit into a share of the device's free memory, or with
each batch, read and checked by a second thread while the device computes. Besides, only positions
and draws travel, those of all batches of a call in one copy from pinned memory.

Shapes: N samples, B batch, T tokens, n draws.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgmr_hpc.data.batches.draws import BatchSpec
from fedgmr_hpc.data.batches.on_device import CHANGES
from fedgmr_hpc.data.splits import CHUNK_BYTES, Longs, Split

if TYPE_CHECKING:
    from fedgmr_hpc.data.datasets import Batch, Dataset

AHEAD = 2  # batches that the second thread has read before they are wanted


class Samples(Protocol):
    """The samples of one split, for use on a device."""

    def take(self, specs: Sequence[BatchSpec], rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the samples [B, ...] of each batch on the device.

        Args:
            specs: of the batches.
            rows: int64 [B] of each batch, its positions in the split, on the device.
        """


class KeptSamples:
    """Samples that are copied to the device once, and checked on their way."""

    def __init__(self, split: Split, device: torch.device) -> None:
        sample = _as_tensor(split.take(np.arange(0)))
        self.x = torch.empty((len(split), *sample.shape[1:]), dtype=sample.dtype, device=device)
        for span, x in _all_samples(split):
            self.x[span].copy_(_as_tensor(x))

    def take(self, specs: Sequence[BatchSpec], rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Gather the samples on the device."""
        return (self.x.index_select(0, each) for each in rows)


class StreamedSamples:
    """Samples that stay in the host's memory map; a second thread reads them ahead."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split, self.device = split, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="samples")

    def take(self, specs: Sequence[BatchSpec], rows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Send the samples, each batch after its own were read."""
        read = deque(self._thread.submit(self._read, spec.index) for spec in specs[:AHEAD])
        for at in range(len(specs)):
            x = read.popleft().result()
            if at + AHEAD < len(specs):
                read.append(self._thread.submit(self._read, specs[at + AHEAD].index))
            yield x.to(self.device, non_blocking=True)

    def _read(self, index: Longs) -> Tensor:
        return _pinned(_as_tensor(self.split.take(index)), self.device)


class DeviceBatches:
    """Makes the batches of a data set on a device.

    Args:
        dataset: the samples.
        device: where batches are made.
        keeps: whether all samples are kept there.
    """

    def __init__(self, dataset: Dataset, device: torch.device, keeps: bool) -> None:
        self.dataset, self.device, self.keeps = dataset, device, keeps
        kind = KeptSamples if keeps else StreamedSamples
        splits = dataset.train, dataset.test
        self._samples: dict[Split, Samples] = {each: kind(each, device) for each in splits}
        self._labels = {each: torch.tensor(each.y, device=device) for each in splits}
        self._lengths = {each: _lengths(each) for each in splits} if dataset.is_text else {}

    def make(self, split: Split, specs: Sequence[BatchSpec]) -> Iterator[Batch]:
        """Yield a batch for each spec, queued on the device in the current stream.

        Args:
            split: `train` or `test` of the data set.
            specs: of the batches.

        Raises:
            RunError: a sample that is read from the cache now was damaged.
        """
        if not specs:
            return
        sizes = [len(spec.index) for spec in specs]
        tables = self._send(specs).split_with_sizes(sizes)
        rows = [table[:, 0] for table in tables]
        samples = self._samples[split].take(specs, rows)
        for spec, table, x in zip(specs, tables, samples, strict=True):
            if self.dataset.is_text:
                yield self.dataset.sentences(x, int(self._lengths[split][spec.index].max()))
                continue
            if spec.draws is not None:
                x = CHANGES[self.dataset.augment](x, table[:, 1:])
            yield self.dataset.images(x), self._labels[split].index_select(0, table[:, 0])

    def _send(self, specs: Sequence[BatchSpec]) -> Tensor:
        """Copy positions and draws to the device at once: int64 [sum of B, 1 + n]."""
        table = np.concatenate([spec.index for spec in specs])[:, None]
        draws = [spec.draws for spec in specs if spec.draws is not None]
        if draws:
            table = np.hstack([table, np.concatenate(draws)])
        narrow = torch.from_numpy(table.astype(np.int32))
        return _pinned(narrow, self.device).to(self.device, non_blocking=True).long()


def _as_tensor(x: NDArray[Any]) -> Tensor:
    """Return samples as a tensor, tokens as int16, since torch can do little with uint16."""
    return torch.from_numpy(x.view(np.int16) if x.dtype == np.uint16 else x)


def _pinned(x: Tensor, device: torch.device) -> Tensor:
    """Return a copy in memory from which the device can take it without the host's help."""
    if device.type != "cuda":
        return x
    with torch.cuda.device(device):  # a new thread would open device 0 for it
        return x.pin_memory()


def _lengths(split: Split) -> Longs:
    """Return the length [N] of each sentence, so that no batch has to be read for it."""
    lengths = np.zeros(len(split), np.int64)
    for span, x in _all_samples(split):
        lengths[span] = ((x != 0) * np.arange(1, 1 + x.shape[1])).max(1)
    return lengths


def _all_samples(split: Split) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Read all samples of a split, in pieces that bound the memory which this takes."""
    rows = max(1, CHUNK_BYTES // max(1, split.x[:1].nbytes))
    for start in range(0, len(split), rows):
        span = slice(start, min(start + rows, len(split)))
        yield span, split.take(np.arange(span.start, span.stop))


def fits(dataset: Dataset, device: torch.device, frac: float) -> bool:
    """Return whether all samples fit into a share of the memory that is free on a GPU."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    needed = sum(len(each) * each.x[:1].nbytes for each in (dataset.train, dataset.test))
    return needed <= frac * free_bytes
