"""What benchmarks have in common: their timing, their ceiling of copied bytes, one model's masks.

Shapes: P prunable entries, K kept entries, D dense entries.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.submodels import MaskSet, PrunableLayer, cut_masks, rank_entries
from fedgmr_hpc.models import initial_weights, make_layout, run_weights
from fedgmr_hpc.runtime.server import prunable_layers

DENSITIES = (0.05, 0.1, 0.2, 0.5, 1.0)
Row = dict[str, Any]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Shape:
    """What is known of a benchmark before it has measured.

    Attributes:
        keys: The columns that tell its rows apart.
        ratios: The columns that do not depend on how fast a machine is, and which way is better;
            a later measurement is compared by them (baseline.py).
        takes_ranks: Whether it runs on as many ranks as one asks for.
    """

    keys: tuple[str, ...] = ()
    ratios: Mapping[str, Better] = field(default_factory=dict)
    takes_ranks: bool = False


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark has measured.

    Attributes:
        rows: The lines of its table; `within` is False where a row is outside its bound.
        summary: What the final JSON line says besides.
    """

    rows: list[Row]
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def num_outside(self) -> int:
        """The number of rows outside their bounds."""
        return sum(not row.get("within", True) for row in self.rows)


def median_s(repeats: int, call: Callable[[], Any]) -> float:
    """Return the median time of a call in seconds, after a warm-up."""
    call()
    times = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def copy_gb_per_s(num_bytes: int, repeats: int) -> float:
    """Return GB/s, read plus written, of a copy whose source and target make up `num_bytes`."""
    source = np.ones(num_bytes // 8, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / median_s(repeats, lambda: np.copyto(target, source)) / 1e9


def conv2() -> tuple[np.ndarray[Any, Any], list[PrunableLayer]]:
    """Return the initial weights [P] and the prunable layers of Conv2."""
    layout = make_layout("conv2")
    weights = initial_weights("conv2", 0)[: layout.num_prunable]
    entries = [entry for entry in layout.entries if entry.prunable]
    return weights, [PrunableLayer(e.name, e.offset, e.offset + e.size, e.cost) for e in entries]


def conv2_masks() -> tuple[np.ndarray[Any, Any], MaskSet]:
    """Return the initial weights [P] of Conv2 and masks of all DENSITIES."""
    weights, layers = conv2()
    keys = rank_entries(weights.copy(), np.abs(weights), layers, floor_frac=0.02)
    return weights, cut_masks(keys, DENSITIES, mask_id=1)


def initial_sub_models(
    config: Config, num_classes: int | None = None
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Return what each client is sent first: its values [K], the dense part [D] and the natural
    positions [K], None for the whole model.
    """
    layers, weights = prunable_layers(config, num_classes), run_weights(config, num_classes)
    prunable, dense = np.split(weights, [layers[-1].stop])
    shares = config.clients.bandwidth_shares()
    if config.submodel.kind == "full":
        shares = (1.0,) * len(shares)
    keys = rank_entries(prunable.copy(), np.abs(prunable), layers, floor_frac=0.02)
    masks = cut_masks(keys, shares, mask_id=1)
    packed, perm = torch.from_numpy(masks.pack(prunable)), masks.perm
    natural = None if perm is None else torch.from_numpy(perm).long()
    counts = [masks.counts[masks.level(share)] for share in shares]
    return [
        (packed[:n], torch.from_numpy(dense), None if natural is None else natural[:n])
        for n in counts
    ]
