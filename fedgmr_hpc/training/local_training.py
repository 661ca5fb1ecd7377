"""Train clients' sub-models on one rank, one client after the other.

Any rank can train any client: the sub-model comes with the assignment, and batches, dropout and
drawn widths are functions of the seed, the client and its step. What a client keeps for its
objective between dispatches is handed in and renewed.

Shapes: P prunable entries, K kept entries, D dense entries, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
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
from fedgmr_hpc.training.objectives.contract import (
    BoundObjective,
    LocalSteps,
    loss_of,
    make_objective,
)
from fedgmr_hpc.training.precision import computing_in
from fedgmr_hpc.training.process_settings import prepare_device
from fedgmr_hpc.training.sgd import Loss, SgdConfig, Trained, evaluate, measure_statistics
from fedgmr_hpc.training.step_graphs import CudaRecorder, StepGraphs
from fedgmr_hpc.training.sub_models import kernels_in_use, make_sub_model


class LocalTraining:
    """Trains and scores clients' sub-models.

    Args:
        config: the run's configuration.
        data: the clients' samples.
        device: where training takes place.

    Attributes:
        layout: of the flat vector [P + D] of the whole model.
        sub_model: the sub-model that was loaded last.
        kernels: name of what computes compact layers; "" where none can be.
        loss: the run's loss, before classes are hidden.
        hits: counts correct answers.
        sgd: the optimiser's settings but for the learning rate, which comes with an assignment.
        objective: what clients minimise besides the loss; None for nothing.
        graphs: replays steps on a GPU; None where all steps are plain.
    """

    def __init__(self, config: Config, data: FederatedData, device: str = "cpu") -> None:
        prepare_device(device, config.train.deterministic)
        data.place(device)
        self.config, self.data = config, data
        self.layout = run_layout(config, data.num_classes)
        self.sub_model = make_sub_model(config, device, data.num_classes, config.train.precision)
        self.kernels = kernels_in_use(config, device)
        self.loss = partial(loss_function, config.train.loss)
        self.hits = partial(count_hits, top_k=data.top_k)
        self.sums_squares = needs_grad_squares(config.submodel)
        train = config.train
        self.sgd = SgdConfig(train.momentum, train.weight_decay, train.clip_norm)
        self.objective = make_objective(train)
        self._absent = self._make_absent(device)
        self._minimised: Loss = self.loss
        is_cuda = torch.device(device).type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self.graphs = StepGraphs(CudaRecorder()) if is_cuda and train.cuda_graphs else None
        if self.graphs is not None:
            self.sub_model.run_step = self.graphs.run

    @contextmanager
    def in_stream(self) -> Iterator[None]:
        """Queue what follows in this training's own stream, after all that was queued before."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def train(
        self,
        task: Assignment,
        values: Tensor,
        dense: Tensor,
        positions: Tensor | None,
        after_step: Callable[[], None] = lambda: None,
        memory: Memory | None = None,
    ) -> Trained:
        """Load one client's sub-model and train it, or, on a GPU, queue that.

        Args:
            task: the client, its sub-model and its first local step.
            values: [K] kept entries.
            dense: [D] dense part.
            positions: [K] natural positions of `values`; None if `values` are in natural order.
            after_step: called after every local step, so that the caller can serve its links.
            memory: what the client keeps, where its objective keeps anything; renewed.

        Returns:
            The losses, and what else the sub-model's score needs.
        """
        with self.in_stream(), computing_in(self.config.train.precision):
            return self._train(task, values, dense, positions, after_step, memory)

    def _train(
        self,
        task: Assignment,
        values: Tensor,
        dense: Tensor,
        positions: Tensor | None,
        after_step: Callable[[], None],
        memory: Memory | None,
    ) -> Trained:
        model, train = self.sub_model, self.config.train
        model.load(values, dense, positions, mask_id=task.mask_id, density=task.density)
        model.net.generator.manual_seed(self._draw_dropout_seed(task))
        self._mark_absent(task.client)
        self._minimised = loss_of(self.objective, self.loss)
        bound = self._bind_objective(task, memory)
        trained = model.train(
            self.data.train_batches(task.client, task.first_step, train.steps),
            self._training_loss,
            learning_rate=task.learning_rate,
            sgd=self.sgd,
            change=None if bound is None else bound.change,
            after_step=after_step,
            **self._extra_arguments(task),
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
            client=task.client,
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

    def mean_loss(self, trained: Trained) -> float:
        """Return the mean loss of a training, once a GPU is through with it."""
        with self.in_stream():  # no other stream waits for what is queued in this one
            return trained.mean_loss

    def entries(self, flat: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Copy the trained sub-model's entries to host memory; see `MaskedModel.entries`."""
        with self.in_stream():
            return self.sub_model.entries(flat)

    def score(self, task: Assignment) -> float:
        """Return the validation accuracy of the sub-model just trained.

        It is measured on the subset that scores all clients. Static batch norms take their
        statistics from the batches that the client has just trained on.
        """
        size, steps = self.data.pool_size("score"), self.config.train.steps
        batches = self.data.pool_batches("score", 0, size)
        precision = computing_in(self.config.train.precision)
        with self.in_stream(), precision, self.sub_model.in_use() as net:
            if self.layout.num_statistics:
                own = self.data.train_batches(task.client, task.first_step, steps)
                net.statistics.copy_(measure_statistics(net, own))
            hits, _ = evaluate(net, batches, self.loss, self.hits)
        return hits / self.data.num_scored("score")

    def _training_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._minimised(hide_classes(logits, self._absent), labels)

    def _teacher_loss(self, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        seen = hide_classes(logits, self._absent), hide_classes(teacher, self._absent)
        return soft_loss(self.config.train.loss, *seen, labels)

    def _make_absent(self, device: str) -> Tensor | None:
        """Return a mark [C] of no class; None where no class is ever hidden."""
        if not self.config.train.masked_loss or self.data.dataset.is_text:
            return None
        model = run_model(self.config, self.data.num_classes)
        num_outputs = model.count_outputs(self.data.dataset.input_shape)
        return torch.zeros(num_outputs, dtype=torch.bool, device=device)

    def _mark_absent(self, client: int) -> None:
        """Mark the classes [C] of which a client has no training sample but another has, in place.

        An output without a class, or of a class that nobody has, is learnt to be wrong as by any
        other method: left alone, it would keep its initial weights and often win at a test.
        """
        if self._absent is not None:
            is_absent = torch.zeros(self._absent.shape, dtype=torch.bool)
            is_absent[self._classes] = True
            is_absent[torch.from_numpy(self.data.held_classes(client))] = False
            self._absent.copy_(is_absent)

    @cached_property
    def _classes(self) -> Tensor:
        """The classes of which any client has a training sample."""
        clients = range(self.config.clients.count)
        return torch.from_numpy(np.unique(np.concatenate([*map(self.data.held_classes, clients)])))

    def _draw_dropout_seed(self, task: Assignment) -> int:
        rng = make_rng(self.config.seed, "dropout", task.client, task.first_step)
        return int(rng.integers(2**62))

    def _extra_arguments(self, task: Assignment) -> dict[str, Any]:
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
        return {"densities": densities, "soft_loss": self._teacher_loss if distils else None}
