"""A rank's local training: the run's model, cut as its method's row says.

Shapes: P prunable entries, K kept entries, D dense entries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from fedgmr_hpc.config.axes import WIDTH_KINDS
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.submodels import MaskSet
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import (
    FlatNet,
    Layout,
    count_hits,
    has_norms,
    hide_classes,
    loss_function,
    num_outputs,
    run_layout,
    soft_loss,
)
from fedgmr_hpc.training.masked import GatedBias, SubModel
from fedgmr_hpc.training.narrow import SlicedModel, SoftLoss
from fedgmr_hpc.training.process_settings import compute_repeatably
from fedgmr_hpc.training.sgd import Loss, Net, SgdChoices, Trained, evaluate, measure_statistics


def gated_biases(layout: Layout) -> list[GatedBias]:
    """The biases that count only while one of their unit's weights is kept."""
    return [
        GatedBias(entry.span, layout[entry.gated_by].span, entry.size)
        for entry in layout.entries
        if entry.gated_by is not None
    ]


def make_sub_model(config: Config, device: str = "cpu") -> SubModel | SlicedModel:
    """What trains the sub-models of this run's kind."""
    model, kind = config.model.name, config.submodel.kind
    layout, choices = run_layout(config), config.submodel
    if kind in WIDTH_KINDS:
        make_net = partial(_narrow_net, config, device)
        axes = [entry.axes for entry in layout.entries]
        return SlicedModel(make_net, axes, layout.num_prunable)
    spans = [entry.span for entry in layout.entries if entry.prunable]
    return SubModel(
        FlatNet(model, device, kind, batch_norm=config.train.batch_norm),
        layout.num_prunable,
        gated_biases(layout) if choices.gate_biases else (),
        through_threshold=spans if kind == "magnitude" else (),
        surrogate=choices.surrogate,
    )


def _narrow_net(config: Config, device: str, density: float) -> FlatNet:
    model, choices = config.model.name, config.submodel
    scaler = choices.scaler and has_norms(model)
    return FlatNet(model, device, choices.kind, density, scaler, config.train.batch_norm)


class LocalTraining:
    """Trains clients' sub-models one after the other, and evaluates models.

    Attributes:
        layout: of the flat vector [P + D].
        sub_model: the one loaded last.
        eval_net: the whole model, for the server's evaluations.
        cut_model: a version cut to a level of the ladder, likewise; made when first needed.
    """

    def __init__(self, config: Config, data: FederatedData, device: str = "cpu") -> None:
        if torch.device(device).type == "cuda":
            compute_repeatably()
        self.config, self.data = config, data
        self.layout = run_layout(config)
        self.sub_model = make_sub_model(config, device)
        self.eval_net = FlatNet(
            config.model.name, device, config.submodel.kind, batch_norm=config.train.batch_norm
        )
        self.cut_model: SubModel | SlicedModel | None = None
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None  # [P], [D] of the version
        self._ladder: MaskSet | None = None
        self._level: int | None = None  # to which `cut_model` is cut
        self._statistics: dict[int | None, torch.Tensor] = {}  # [S] of the version, by level
        self._device = device
        self.loss = partial(loss_function, config.train.loss)
        self.hits = partial(count_hits, top_k=data.top_k)
        train = config.train
        self.choices = SgdChoices(train.momentum, train.weight_decay, train.clip_norm)

    def train(
        self,
        task: Assignment,
        values: torch.Tensor,
        dense: torch.Tensor,
        positions: torch.Tensor | None,
        after_step: Callable[[], None] = lambda: None,
    ) -> Trained:
        """Loads and trains one client's sub-model.

        Args:
            values: [K] kept entries, at `positions` or, without them, all in natural order.
            dense: [D] dense part.
        """
        model, train = self.sub_model, self.config.train
        model.load(values, dense, positions, mask_id=task.mask_id, density=task.density)
        model.net.generator.manual_seed(self._draw_seed(task))
        loss, towards = self._losses(task.client)
        return model.train(
            self.data.train_batches(task.client, task.first_step, train.steps),
            loss,
            learning_rate=task.learning_rate,
            choices=self.choices,
            after_step=after_step,
            **self._of_kind(task, towards),
        )

    def _losses(self, client: int) -> tuple[Loss, SoftLoss]:
        """What a client trains by: the loss towards labels, and that towards a teacher."""
        kind, absent = self.config.train.loss, self._absent_classes(client)

        def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return loss_function(kind, hide_classes(logits, absent), labels)

        def towards(
            logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor
        ) -> torch.Tensor:
            seen = hide_classes(logits, absent), hide_classes(teacher, absent)
            return soft_loss(kind, *seen, labels)

        return loss, towards

    def _absent_classes(self, client: int) -> torch.Tensor | None:
        """[C] of which classes a client has no sample to train on, None if that is no matter."""
        if not self.config.train.masked_loss or self.data.dataset.is_text:
            return None
        absent = torch.ones(num_outputs(self.config.model.name), dtype=torch.bool)
        absent[torch.from_numpy(self.data.held_classes(client))] = False
        return absent.to(self._device)

    def _draw_seed(self, task: Assignment) -> int:
        rng = make_rng(self.config.seed, "dropout", task.client, task.first_step)
        return int(rng.integers(2**62))

    def _of_kind(self, task: Assignment, towards: SoftLoss) -> dict[str, Any]:
        """What only some kinds of sub-model take."""
        choices = self.config.submodel
        if choices.score == "g":
            return {"sum_grad_squares": True}
        if choices.kind != "ordered_dropout":
            return {}
        rates = sorted({r for r in choices.width_rates if r <= task.density} | {task.density})
        rng = make_rng(self.config.seed, "width", task.client, task.first_step)
        drawn = rng.integers(len(rates), size=self.config.train.steps)
        densities = [rates[index] for index in drawn]
        is_taught = self.config.train.distillation
        return {"densities": densities, "soft_loss": towards if is_taught else None}

    def score(self, task: Assignment) -> float:
        """Validation accuracy of the sub-model that the task has trained, on the subset that scores
        clients. Static batch norms take their statistics from the batches of the task."""
        size, steps = self.data.pool_size("score"), self.config.train.steps
        batches = self.data.pool_batches("score", 0, size)
        with self.sub_model.in_use() as net:
            if self.layout.num_statistics:
                own = self.data.train_batches(task.client, task.first_step, steps)
                net.statistics.copy_(measure_statistics(net, own))
            hits, _ = evaluate(net, batches, self.loss, self.hits)
        return hits / self.data.num_scored("score")

    def hold(self, values: torch.Tensor, dense: torch.Tensor) -> None:
        """Takes a version to be evaluated.

        Args:
            values: [P] in natural order; not written to as long as the version is held.
            dense: [D], likewise.
        """
        num_prunable = self.layout.num_prunable
        self.eval_net.flat[:num_prunable].copy_(values)
        self.eval_net.flat[num_prunable:].copy_(dense)
        self._statistics.clear()
        if self.config.eval.submodels:
            self._held, self._level = (values, dense), None

    def hold_ladder(self, ladder: MaskSet) -> None:
        """Takes the masks to which versions are cut from now on."""
        self._ladder, self._level = ladder, None

    def measure(self, start: int, stop: int, level: int | None = None) -> torch.Tensor:
        """[S] statistics of the static batch norms of the version held, as the samples [start,
        stop) of the pool `norms` give them.

        Args:
            level: of the ladder, to which the version is cut; None for the whole model.
        """
        batches = self.data.pool_batches("norms", start, stop)
        return measure_statistics(self._net_of(level), batches)

    def hold_statistics(self, statistics: torch.Tensor, level: int | None = None) -> None:
        """Takes statistics [S] with which the version held is to be evaluated."""
        self._statistics[level] = statistics

    def evaluate(
        self, pool: Any, start: int, stop: int, level: int | None = None
    ) -> tuple[int, float]:
        """Hits and summed loss of the version held on the samples [start, stop) of a pool.

        Args:
            level: of the ladder, to which the version is cut; None for the whole model.
        """
        net = self._net_of(level)
        if level in self._statistics:
            net.statistics.copy_(self._statistics[level])
        return evaluate(net, self.data.pool_batches(pool, start, stop), self.loss, self.hits)

    def _net_of(self, level: int | None) -> Net:
        return self.eval_net if level is None else self._cut_net(level)

    def _cut_net(self, level: int) -> Net:
        """What a client that is sent a level of the version held computes with before it trains:
        a masked model without the biases of units that are cut off, or a narrower network.
        """
        if self.cut_model is None:
            self.cut_model = make_sub_model(self.config, self._device)
        if level != self._level:
            assert self._held is not None and self._ladder is not None
            (values, dense), masks = self._held, self._ladder
            assert masks.perm is not None  # else nothing is cut
            at = torch.from_numpy(masks.perm[: masks.counts[level]].astype(np.int64))
            density = masks.densities[level]
            self.cut_model.load(values[at], dense, at, mask_id=masks.mask_id, density=density)
            self._level = level
        return self.cut_model.net
