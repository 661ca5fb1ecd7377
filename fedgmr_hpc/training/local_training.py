"""Train clients' sub-models on one rank, one client after the other.

Any rank can train any client: the sub-model comes with the assignment, and batches, dropout and
drawn widths are functions of the seed, the client and its step. What a client keeps for its
objective between dispatches is handed in and renewed.

Shapes: P prunable entries, K kept entries, D dense entries, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.client_memory import Memory
from fedgmr_hpc.fl.scores import needs_grad_squares
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import (
    count_hits,
    hide_classes,
    loss_function,
    run_layout,
    run_model,
    soft_loss,
)
from fedgmr_hpc.training.narrow import SoftLoss
from fedgmr_hpc.training.objectives.contract import (
    BoundObjective,
    LocalSteps,
    loss_of,
    make_objective,
)
from fedgmr_hpc.training.process_settings import prepare_device
from fedgmr_hpc.training.sgd import Loss, SgdConfig, Trained, evaluate, measure_statistics
from fedgmr_hpc.training.sub_models import make_sub_model


class LocalTraining:
    """Trains and scores clients' sub-models.

    Args:
        config: the run's configuration.
        data: the clients' samples.
        device: where training takes place.

    Attributes:
        layout: of the flat vector [P + D] of the whole model.
        sub_model: the sub-model that was loaded last.
        loss: the run's loss, before classes are hidden.
        hits: counts correct answers.
        sgd: the optimiser's settings but for the learning rate, which comes with an assignment.
        objective: what clients minimise besides the loss; None for nothing.
    """

    def __init__(self, config: Config, data: FederatedData, device: str = "cpu") -> None:
        prepare_device(device)
        data.place(device)
        self.config, self.data = config, data
        self.layout = run_layout(config, data.num_classes)
        self.sub_model = make_sub_model(config, device, data.num_classes)
        self.loss = partial(loss_function, config.train.loss)
        self.hits = partial(count_hits, top_k=data.top_k)
        self.sums_squares = needs_grad_squares(config.submodel)
        train = config.train
        self.sgd = SgdConfig(train.momentum, train.weight_decay, train.clip_norm)
        self.objective = make_objective(train)
        self._device = device

    def train(
        self,
        task: Assignment,
        values: Tensor,
        dense: Tensor,
        positions: Tensor | None,
        after_step: Callable[[], None] = lambda: None,
        memory: Memory | None = None,
    ) -> Trained:
        """Load one client's sub-model and train it.

        Args:
            task: the client, its sub-model and its first local step.
            values: [K] kept entries.
            dense: [D] dense part.
            positions: [K] natural positions of `values`; None if `values` are in natural order.
            after_step: called after every local step, so that the caller can serve its links.
            memory: what the client keeps, where its objective keeps anything; renewed.

        Returns:
            The mean loss, and what else the sub-model's score needs.
        """
        model, train = self.sub_model, self.config.train
        model.load(values, dense, positions, mask_id=task.mask_id, density=task.density)
        model.net.generator.manual_seed(self._draw_dropout_seed(task))
        loss, teacher_loss = self._make_losses(task.client)
        bound = self._bind_objective(task, memory)
        trained = model.train(
            self.data.train_batches(task.client, task.first_step, train.steps),
            loss,
            learning_rate=task.learning_rate,
            sgd=self.sgd,
            change=None if bound is None else bound.change,
            after_step=after_step,
            **self._extra_arguments(task, teacher_loss),
        )
        if bound is not None:
            self._end_objective(bound, memory)
        return trained

    def _bind_objective(self, task: Assignment, memory: Memory | None) -> BoundObjective | None:
        """Have the objective look at what was loaded, and at what the client keeps."""
        if self.objective is None:
            return None
        model, kept = self.sub_model, {}
        memory = memory if self.objective.keeps else None
        for name in self.objective.keeps:
            if memory is not None and name in memory.values:
                parts = (torch.tensor(part[name]) for part in (memory.values, memory.dense))
                kept[name] = model.spread(*parts)
        steps = LocalSteps(
            weights=model.net.flat,
            received=model.net.flat.clone(),
            mask=model.mask,
            parameters=model.net.trainable(),
            split=model.net.split,
            version=task.base_version,
            same_since=task.same_since,
            learning_rate=task.learning_rate,
            kept=kept,
            numbers={} if memory is None else dict(memory.numbers),
        )
        return BoundObjective(self.objective, steps)

    def _end_objective(self, bound: BoundObjective, memory: Memory | None) -> None:
        """Put what the client keeps from now on into its memory."""
        steps = bound.end()
        if memory is None or not bound.objective.keeps:
            return
        for name in bound.objective.keeps:
            values, dense = self.sub_model.entries(steps.kept[name])
            # copies, since from a GPU entries come in pinned memory, which is not for keeping
            memory.values[name] = values.numpy().copy()
            memory.dense[name] = dense.numpy().copy()
        memory.numbers = steps.numbers

    def score(self, task: Assignment) -> float:
        """Return the validation accuracy of the sub-model just trained.

        It is measured on the subset that scores all clients. Static batch norms take their
        statistics from the batches that the client has just trained on.
        """
        size, steps = self.data.pool_size("score"), self.config.train.steps
        batches = self.data.pool_batches("score", 0, size)
        with self.sub_model.in_use() as net:
            if self.layout.num_statistics:
                own = self.data.train_batches(task.client, task.first_step, steps)
                net.statistics.copy_(measure_statistics(net, own))
            hits, _ = evaluate(net, batches, self.loss, self.hits)
        return hits / self.data.num_scored("score")

    def _make_losses(self, client: int) -> tuple[Loss, SoftLoss]:
        """Return a client's loss towards labels and its loss towards a teacher."""
        kind, absent = self.config.train.loss, self._absent_classes(client)
        minimised = loss_of(self.objective, self.loss)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return minimised(hide_classes(logits, absent), labels)

        def teacher_loss(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
            seen = hide_classes(logits, absent), hide_classes(teacher, absent)
            return soft_loss(kind, *seen, labels)

        return loss, teacher_loss

    def _absent_classes(self, client: int) -> Tensor | None:
        """Mark the classes [C] of which a client has no training sample; None to hide no class."""
        if not self.config.train.masked_loss or self.data.dataset.is_text:
            return None
        model = run_model(self.config, self.data.num_classes)
        num_outputs = model.count_outputs(self.data.dataset.input_shape)
        absent = torch.ones(num_outputs, dtype=torch.bool)
        absent[torch.from_numpy(self.data.held_classes(client))] = False
        return absent.to(self._device)

    def _draw_dropout_seed(self, task: Assignment) -> int:
        rng = make_rng(self.config.seed, "dropout", task.client, task.first_step)
        return int(rng.integers(2**62))

    def _extra_arguments(self, task: Assignment, teacher_loss: SoftLoss) -> dict[str, Any]:
        """Return the arguments of `train` that only some kinds of sub-model have."""
        submodel = self.config.submodel
        if self.sums_squares:
            return {"sum_grad_squares": True}
        if submodel.kind != "ordered_dropout":
            return {}
        # FjORD draws the width of each step among those up to the client's own
        rates = sorted({r for r in submodel.width_rates if r <= task.density} | {task.density})
        rng = make_rng(self.config.seed, "width", task.client, task.first_step)
        drawn = rng.integers(len(rates), size=self.config.train.steps)
        densities = [rates[index] for index in drawn]
        distils = self.config.train.distillation
        return {"densities": densities, "soft_loss": teacher_loss if distils else None}
