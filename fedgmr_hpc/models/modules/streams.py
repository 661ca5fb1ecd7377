"""Torch's global random streams, lent to one pass of a module at a time.

Modules draw from them in dropout and as they are built. What they draw has to follow from a seed of
ours alone, and whatever else the process draws must not notice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch

_LOCK = RLock()  # ranks may be threads of one process
_HOST_DRAWS = 4  # by which a CUDA stream moves on at each pass; its offsets are multiples of 4


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global streams of torch's CPU, of NumPy and of Python; put them back afterwards."""
    with _LOCK:
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])
            random.setstate(before[2])


@contextmanager
def drawing_from(stream: torch.Generator) -> Iterator[None]:
    """Let the global stream of a device go on where `stream` is, and `stream` where that ends.

    Where the device is no CPU, the CPU's stream is seeded by the place of `stream`.
    """
    device, host = stream.device, torch.default_generator
    with _LOCK:
        if device.type == "cpu":
            with _lent(host, stream):
                yield
            return
        seed = stream.initial_seed() + stream.get_offset()
        stream.set_offset(stream.get_offset() + _HOST_DRAWS)
        own = torch.Generator().manual_seed(seed % 2**63)
        index = torch.cuda.current_device() if device.index is None else device.index
        with _lent(torch.cuda.default_generators[index], stream), _lent(host, own):
            yield


@contextmanager
def _lent(place: torch.Generator, stream: torch.Generator) -> Iterator[None]:
    before = place.get_state()
    place.set_state(stream.get_state())
    try:
        yield
    finally:
        stream.set_state(place.get_state())
        place.set_state(before)
