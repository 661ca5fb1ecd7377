"""`bench compact`: a local step of sub-models over densities, against one of dense layers.

Masks are those that FedGMR cuts at the start of a run. One core takes every step, five at a time as
clients do; its time in the processor is counted, the ways of a row in turn, so what else the
machine does matters little.
SparseProp (Nikdan et al. 2023) can stand beside only where it is installed, by
`pip install sparseprop` into the same environment.

Shapes: P prunable entries, D dense entries, K kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgmr_hpc.bench.case import Benchmark, Row
from fedgmr_hpc.bench.compact.sparseprop import SparsePropKernels, why_not
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.submodels import MaskSet, cut_masks, rank_entries
from fedgmr_hpc.models import FlatNet, run_net, run_weights
from fedgmr_hpc.models.losses import loss_function
from fedgmr_hpc.runtime.server import prunable_layers
from fedgmr_hpc.training.compact import CompactModel
from fedgmr_hpc.training.kernels.choice import make_kernels
from fedgmr_hpc.training.kernels.contract import Kernels
from fedgmr_hpc.training.kernels.torch_csr import TorchKernels
from fedgmr_hpc.training.masked import MaskedModel
from fedgmr_hpc.training.process_settings import keep_large_blocks
from fedgmr_hpc.training.sgd import Batch, SgdConfig
from fedgmr_hpc.training.sub_models import compact_choice, gated_biases

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RUNS = {"conv2": "femnist", "vgg11": "cifar10", "transformer": "stackoverflow"}
# The most of a dense step that a compact one of Conv2 may cost, and one of any model.
BOUNDS = {0.05: 0.25, 0.1: 0.35, 0.2: 0.6}
BOUND = 1.05
BATCH, TOKENS = 20, 20
STEPS = 5  # that a client takes at once; the first finds its weights in no cache


def measure_compact(repeats: int) -> Benchmark:
    """Return a row for each model and density."""
    keep_large_blocks()  # as ranks do
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for model in RUNS for row in _measure_model(model, repeats)]
    finally:
        torch.set_num_threads(threads)
    summary = {"kernels": make_kernels().name, "sparseprop": why_not() or "measured"}
    return Benchmark(rows, summary)


def _measure_model(model: str, repeats: int) -> list[Row]:
    config = load_config(RUNS[model], [])
    weights = torch.from_numpy(run_weights(config))
    net = run_net(config)
    assert isinstance(net, FlatNet)
    prunable, dense = weights[: net.layout.num_prunable], weights[net.layout.num_prunable :]
    masks, ways, batch = _cut(config, prunable), _make_ways(config), _draw_batch(config)
    rows = []
    for level, density in enumerate(DENSITIES):
        positions = np.sort(np.concatenate([masks.positions(i) for i in range(level + 1)]))
        places = torch.from_numpy(positions).long()
        for way in ways.values():
            way.load(prunable[places], dense, places, mask_id=1 + level, density=density)
        _check(ways, batch)
        times_s = _time_steps(ways, batch, repeats)
        rows.append(_row(model, density, times_s))
    return rows


def _cut(config: Config, prunable: Tensor) -> MaskSet:
    scores = np.abs(prunable.numpy())
    keys = rank_entries(scores.copy(), scores, prunable_layers(config), floor_frac=0.02)
    return cut_masks(keys, DENSITIES, mask_id=1)


def _make_ways(config: Config) -> dict[str, MaskedModel]:
    """Return the same sub-model in all ways in which it can be trained."""
    choice = compact_choice(config.train.compact_below)
    kernels: dict[str, Kernels] = {"compact": make_kernels(), "torch CSR": TorchKernels()}
    if why_not() is None:
        kernels["SparseProp"] = SparsePropKernels()
    whole = run_net(config)
    assert isinstance(whole, FlatNet)
    gated = gated_biases(whole.layout)
    ways: dict[str, MaskedModel] = {"dense": MaskedModel(whole, whole.layout.num_prunable, gated)}
    for name, each in kernels.items():
        net = run_net(config)
        assert isinstance(net, FlatNet)
        ways[name] = CompactModel(net, gated, choice, each)
    return ways


def _draw_batch(config: Config) -> Batch:
    rng = torch.Generator().manual_seed(0)
    if config.model.name == "transformer":
        text = torch.randint(1, 10_000, (BATCH, TOKENS + 1), generator=rng)
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()
    shape, classes = ((1, 28, 28), 62) if config.model.name == "conv2" else ((3, 32, 32), 10)
    images = torch.randn(BATCH, *shape, generator=rng)
    return images, torch.randint(0, classes, (BATCH,), generator=rng)


def _take_steps(way: MaskedModel, batch: Batch, steps: int) -> None:
    way.train(
        iter([batch] * steps),
        partial(loss_function, "cross_entropy"),
        learning_rate=0.01,
        sgd=SgdConfig(),
    )


def _check(ways: Mapping[str, MaskedModel], batch: Batch) -> None:
    """One step from the same weights moves them alike in all ways, within rounding."""
    moved = {}
    for name, way in ways.items():
        before = way.entries()[0]
        torch.manual_seed(0)
        way.net.generator.manual_seed(0)
        _take_steps(way, batch, 1)
        moved[name] = way.entries()[0] - before
    largest = float(moved["dense"].abs().max())
    for name, change in moved.items():
        off = float((change - moved["dense"]).abs().max())
        assert off <= 1e-3 * largest, f"{name} is off by {off} of {largest}"


def _time_steps(ways: Mapping[str, MaskedModel], batch: Batch, repeats: int) -> dict[str, float]:
    """Return the median time of a step of each way in seconds of the processor."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began_s = time.thread_time()
            _take_steps(way, batch, STEPS)
            times[name].append((time.thread_time() - began_s) / STEPS)
    return {name: statistics.median(each) for name, each in times.items()}


def _row(model: str, density: float, times_s: Mapping[str, float]) -> Row:
    row: dict[str, Any] = {"model": model, "density": density}
    for name in ("dense", "compact", "torch CSR", "SparseProp"):
        row[f"{name} ms"] = times_s[name] * 1e3 if name in times_s else None
    share = times_s["compact"] / times_s["dense"]
    bound = BOUNDS.get(density, BOUND) if model == "conv2" else BOUND
    return row | {"of dense": share, "at most": bound, "within": share <= bound}
