"""A coordinator on a small network, driven by events, whose clients do as they are told.

The network has one hidden layer of 8 units between 5 inputs and 3 outputs, with a batch norm. Its
tensors are laid out as the kind of sub-model has them, so weights, biases and running statistics
are all covered.

Shapes: P prunable entries, D dense entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.config.axes import WIDTH_KINDS
from fedgmr_hpc.config.choices.registry import ADMISSIONS, AGGREGATIONS
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.methods import merged
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import (
    CloseAt,
    Closed,
    Delivered,
    Dispatch,
    Evaluate,
    Evaluated,
    Event,
    Merged,
    Started,
)
from fedgmr_hpc.fl.scores import needs_grad_squares
from fedgmr_hpc.fl.submodels import PrunableLayer
from fedgmr_hpc.fl.updates import Assignment, Update
from fedgmr_hpc.fl.widths import Axis

SHARES = (1.0, 0.5, 0.2, 0.1, 0.1)
SAMPLES = 20  # of every client
NUM_TURNS = 100  # how often each client delivers at most, where clients go on at once
TENSORS = {  # name: axes, prunable without widths
    "fc1.weight": ((Axis(8), Axis(5, cut="whole")), True),
    "fc1.bias": ((Axis(8),), False),
    "bn.weight": ((Axis(8),), False),
    "bn.running_mean": ((Axis(8),), False),
    "fc2.weight": ((Axis(3, cut="whole"), Axis(8)), True),
    "fc2.bias": ((Axis(3, cut="whole"),), False),
}
SIZE = sum(math.prod(axis.units for axis in axes) for axes, _ in TENSORS.values())
Train = Callable[[Floats, Floats], tuple[Floats, Floats]]


def prunable_layers(kind: str) -> list[PrunableLayer]:
    """Return the prunable tensors of the network for a kind of sub-model."""
    layers: list[PrunableLayer] = []
    start = 0
    for name, (axes, is_prunable) in TENSORS.items():
        if kind in WIDTH_KINDS:
            is_prunable = any(axis.cut != "whole" for axis in axes)
        if is_prunable:
            stop = start + math.prod(axis.units for axis in axes)
            layers.append(PrunableLayer(name, start, stop, 1.0, axes))
            start = stop
    return layers


def initial_weights() -> Floats:
    """Return [P + D] of every run."""
    return np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)


def shifted(step: float) -> Train:
    """Return a training that adds a step to every weight."""
    return lambda values, dense: (values + np.float32(step), dense + np.float32(step))


def unchanged(values: Floats, dense: Floats) -> tuple[Floats, Floats]:
    """Train nothing."""
    return values, dense


def trained(client: int) -> Train:
    """Return a training that is another for every client."""
    step = float(np.random.default_rng(client).standard_normal())
    return lambda values, dense: (values * np.float32(1 + step / 9) + np.float32(step), dense - 1)


class SmallRun:
    """One configuration's coordinator; clients answer with what `train` makes of what they got.

    Attributes:
        sent: the dispatches that are under way, by client.
        close_s: when the open window closes, once that is known.
        merges: what was reported of each merge.
    """

    def __init__(
        self, values: dict[str, Any], shares: Sequence[float] = SHARES, **sections: Any
    ) -> None:
        base = {
            "clients": {"count": len(shares), "shares": list(shares)},
            "run": {"interval_rounds": 1000, "max_rounds": 10_000},
        }
        self.config = make_config(merged(merged(base, values), sections))
        layers = prunable_layers(self.config.submodel.kind)
        self.core = Coordinator(self.config, shares, initial_weights(), layers)
        self.wants_changes = AGGREGATIONS[self.config.aggregation.rule].wants == "changes"
        self.sends_squares = needs_grad_squares(self.config.submodel)
        self.sent: dict[int, tuple[Assignment, Dispatch]] = {}
        self.close_s: float | None = None
        self.now_s = 0.0
        self.score = 0.0  # of the server's model, at every evaluation
        self.merges: list[Merged] = []
        self.send(Started(0.0))

    def send(self, event: Event) -> None:
        """Hand the coordinator an event and do what it commands."""
        for command in self.core.handle(event):
            if isinstance(command, Dispatch):
                self.sent.update({a.client: (a, command) for a in command.assignments})
            elif isinstance(command, CloseAt):
                self.close_s = command.at_s
            elif isinstance(command, Merged):
                self.merges.append(command)
            elif isinstance(command, Evaluate):
                self.send(Evaluated(self.now_s, self.score))

    def deliver(
        self,
        client: int,
        train: Train = unchanged,
        squares: Floats | None = None,
        score: float = math.nan,
    ) -> None:
        """Let a client deliver what it has trained, a second after the last event.

        Args:
            squares: [K] its squared gradients.
            score: of its own model.
        """
        task, sent = self.sent.pop(client)
        held, dense = sent.packed[: task.num_kept], sent.dense
        values, new_dense = train(held.copy(), dense.copy())
        if self.wants_changes:
            values, new_dense = values - held, new_dense - dense
        update = Update(
            client=client,
            base_version=task.base_version,
            mask_id=task.mask_id,
            level=task.level,
            density=task.density,
            values=values.astype(np.float32),
            dense=new_dense.astype(np.float32),
            grad_squares=squares,
            train_loss=(1 + client) / (1 + self.core.version),
            score=score,
            num_samples=SAMPLES,
        )
        self.now_s += 1.0
        self.send(Delivered(self.now_s, update))

    def close(self) -> None:
        """Let the open window close."""
        assert self.close_s is not None, "the window does not close"
        at_s, self.close_s = max(self.close_s, self.now_s), None
        self.now_s = at_s
        self.send(Closed(at_s, at_s))

    def merge(self, train: Callable[[int], Train], order: Sequence[int] | None = None) -> list[int]:
        """Let the clients of the next merge deliver, and merge.

        Args:
            train: of each client.
            order: in which they deliver; None for the pacing one last.

        Returns:
            Who they were, ascending.
        """
        group = self.group()
        merged = []
        goes_on = self.core.admission.sends_at_once and not self._is_built_in
        turn = group if order is None else [c for c in order if c in group]
        for client in turn * (NUM_TURNS if goes_on else 1):
            self.deliver(client, train(client), self._squares(client), score=client / 10)
            merged.append(client)
            if self.close_s is not None and not self._is_built_in:
                break
        self.close()
        return sorted(merged)

    def group(self) -> list[int]:
        """Return the clients of the next merge, the pacing one last: all, or as many as admission
        counts. A plug-in's admission may close before the last of them.
        """
        quota = {"count": self.config.admission.count, "each": 1}.get(self.config.admission.kind)
        return sorted(self.sent, reverse=True)[: quota or len(self.sent)]

    @property
    def _is_built_in(self) -> bool:
        return self.config.admission.kind not in ADMISSIONS.origins

    def _squares(self, client: int) -> Floats | None:
        """Return what a client sends for a score that needs squared gradients."""
        num = self.sent[client][0].num_kept
        return np.arange(num, dtype=np.float32) if self.sends_squares else None

    def model(self) -> Floats:
        """Return all weights, prunable ones in natural order."""
        return np.concatenate([self.core.masks.unpack(self.core.packed), self.core.dense])

    def held(self, client: int) -> NDArray[np.bool_]:
        """Return which weights a client that is training was sent."""
        task, sent = self.sent[client]
        packed = (np.arange(sent.masks.size) < task.num_kept).astype(np.float32)
        held = np.concatenate([sent.masks.unpack(packed), np.ones(len(sent.dense))]) == 1
        return np.asarray(held, np.bool_)
