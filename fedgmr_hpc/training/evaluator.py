"""Evaluate versions of the model, whole or cut to a level of the ladder.

A version is loaded once and then scored in chunks of samples, so that ranks can share the work.
Models with static batch norms need statistics before they are scored: any rank measures them on
chunks of the pool `norms`, the server averages them and hands them back.

Shapes: P prunable entries, D dense entries, S statistics of static batch norms.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData, Pool
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.models import count_hits, loss_function, run_net
from fedgmr_hpc.training.masked import MaskedModel
from fedgmr_hpc.training.narrow import NarrowModel
from fedgmr_hpc.training.process_settings import prepare_device
from fedgmr_hpc.training.sgd import Net, evaluate, measure_statistics
from fedgmr_hpc.training.sub_models import make_sub_model


class VersionEvaluator:
    """Scores the version that was loaded last.

    Args:
        config: the run's configuration.
        data: the pools of samples.
        device: where evaluation takes place.

    Attributes:
        net: the whole model.
        cut_model: the version cut to one level of the ladder; made when first needed, since most
            runs evaluate the whole model only.
    """

    def __init__(self, config: Config, data: FederatedData, device: str = "cpu") -> None:
        prepare_device(device, config.train.deterministic)
        data.place(device)
        self.config, self.data = config, data
        self.net = run_net(config, data.num_classes, device)
        self.num_prunable = self.net.layout.num_prunable
        self.cut_model: MaskedModel | NarrowModel | None = None
        self.loss = partial(loss_function, config.train.loss)
        self.hits = partial(count_hits, top_k=data.top_k)
        self._device = device
        self._version: tuple[Tensor, Tensor] | None = None  # [P], [D]
        self._ladder: MaskSet | None = None
        self._level: int | None = None  # to which `cut_model` is cut
        self._statistics: dict[int | None, Tensor] = {}  # [S] of the version, by level

    def load_version(self, values: Tensor, dense: Tensor) -> None:
        """Take the version to be evaluated from now on.

        Args:
            values: [P] prunable entries in natural order. They are not copied where sub-models are
                scored too, so the caller must not write to them before the next version.
            dense: [D] dense part, likewise.
        """
        self.net.flat[: self.num_prunable].copy_(values)
        self.net.flat[self.num_prunable :].copy_(dense)
        self._statistics.clear()  # they belong to the previous version
        if self.config.eval.submodels:
            self._version, self._level = (values, dense), None

    def load_ladder(self, ladder: MaskSet) -> None:
        """Take the masks to which versions are cut from now on."""
        self._ladder, self._level = ladder, None

    def load_statistics(self, statistics: Tensor, level: int | None = None) -> None:
        """Take the statistics [S] of static batch norms with which a level is evaluated."""
        self._statistics[level] = statistics

    def measure_statistics(self, start: int, stop: int, level: int | None = None) -> Tensor:
        """Measure the statistics [S] of static batch norms on samples of the pool `norms`.

        Args:
            start: first sample.
            stop: one past the last sample.
            level: level of the ladder to which the version is cut; None for the whole model.
        """
        return measure_statistics(self._net(level), self.data.pool_batches("norms", start, stop))

    def evaluate(
        self, pool: Pool, start: int, stop: int, level: int | None = None
    ) -> tuple[int, float]:
        """Count the hits and sum the loss over samples of a pool.

        Args:
            pool: which samples.
            start: first sample.
            stop: one past the last sample.
            level: level of the ladder to which the version is cut; None for the whole model.
        """
        net = self._net(level)
        if level in self._statistics:
            net.statistics.copy_(self._statistics[level])
        return evaluate(net, self.data.pool_batches(pool, start, stop), self.loss, self.hits)

    def _net(self, level: int | None) -> Net:
        return self.net if level is None else self._cut_net(level)

    def _cut_net(self, level: int) -> Net:
        """Return what a client that receives this level computes with before it trains.

        That is a masked model without the biases of units that are cut off, or a narrower network.
        """
        if self.cut_model is None:
            self.cut_model = make_sub_model(self.config, self._device, self.data.num_classes)
        if level != self._level:
            assert self._version is not None and self._ladder is not None
            (values, dense), masks = self._version, self._ladder
            assert masks.perm is not None  # a ladder of density 1 alone is never evaluated by level
            at = torch.from_numpy(masks.perm[: masks.counts[level]].astype(np.int64))
            density = masks.densities[level]
            self.cut_model.load(values[at], dense, at, mask_id=masks.mask_id, density=density)
            self._level = level
        return self.cut_model.net
