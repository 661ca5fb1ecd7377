"""Control variates in whole rounds of the server's state machine: in what clients step along, their
mean must vanish.

With c the mean of the c_i, the mean of c - c_i over the holders of an entry, weighted as the server
weights what they return, is 0. That holds for whichever version it is looked at, or all variates
begin anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.records import shared_fields
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.client_memory import Memories
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import (
    Closed,
    Delivered,
    Dispatch,
    Evaluate,
    Evaluated,
    Event,
    Lost,
    Resumed,
    Started,
)
from fedgmr_hpc.fl.updates import Assignment, SubModelKey, Update
from fedgmr_hpc.models import run_layout, run_weights
from fedgmr_hpc.runtime.server import prunable_layers
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.objectives.contract import LocalSteps
from fedgmr_hpc.training.objectives.scaffold import Scaffold

ROWS = ("scaffold", "wo_asyn", "heterofl", "fjord", "fedrolex", "fiarse")
PARTITIONS = ("iid", "dirichlet", "shards")
SMALL = (
    "clients.count=4", "data.max_train=200", "data.max_test=20", "train.steps=2",
    "run.max_rounds=1000",
)  # fmt: skip
ALLOWED = (
    "admission.kind=barrier", "aggregation.rule=mask_aware", "submodel.refresh=interval",
    "submodel.gate_biases=false", "train.objective=scaffold",
)  # fmt: skip
ROUNDING = 1e-4  # of the root mean square of c - c_i


@dataclass
class Corrections:
    """c - c_i of the clients of one dispatch, summed by entry [P + D], times the clients' weights.

    Attributes:
        found: whether each has found one.
    """

    size: int
    found: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total, self.weight, self.squares = np.zeros((3, self.size))

    def add(self, at: NDArray[Any], values: NDArray[Any], weight: int) -> None:
        self.total[at] += weight * values
        self.weight[at] += weight
        self.squares[at] += weight * values**2

    def mean_share(self) -> float:
        """Return the root mean square of the mean, as a share of that of what it is of."""
        held = self.weight > 0
        means = self.total[held] / self.weight[held]
        return float(np.sqrt((means**2).mean() / (self.squares[held] / self.weight[held]).mean()))


class Federation:
    """A coordinator, and clients that train in this process as soon as they are asked to."""

    def __init__(self, *words: str) -> None:
        config = self.config = load_config("digits", [*SMALL, *words])
        self.data = FederatedData(config)
        self.training, classes = LocalTraining(config, self.data), self.data.num_classes
        self.weights, layers = run_weights(config, classes), prunable_layers(config, classes)
        self.num = layers[-1].stop
        self.server = Coordinator(
            config, config.clients.bandwidth_shares(), self.weights, layers, None,
            run_layout(config, classes).num_trained,
        )  # fmt: skip
        self.memories, self.updates = Memories(self.num), {}
        self.dispatches: list[Corrections] = []
        self.training.objective = self._watching()
        self.send(Started(0.0))

    def _watching(self) -> Scaffold:
        federation = self

        class Watching(Scaffold):
            def begin(self, steps: LocalSteps) -> None:
                super().begin(steps)
                federation.correction = None if steps.own is None else steps.own.clone()

        return Watching()

    def send(self, event: Event) -> None:
        for command in self.server.handle(event):
            if isinstance(command, Dispatch):
                self.dispatches.append(Corrections(len(self.weights)))
                for task in command.assignments:
                    self.updates[task.client] = self._train(command, task)
            elif isinstance(command, Evaluate):
                self.send(Evaluated(0.0, 0.1))

    def _train(self, sent: Dispatch, task: Assignment) -> Update:
        num, model = task.num_kept, self.training.sub_model
        perm = sent.masks.perm
        at = None if perm is None else perm[:num].astype(np.int64)
        trained = self.training.train(
            task, torch.tensor(sent.packed[:num]), torch.tensor(sent.dense),
            None if at is None else torch.from_numpy(at),
            memory=self.memories.open(task.client, task.mask_id, at),
        )  # fmt: skip
        self._note(at, trained.num_samples)
        values, dense = (part.numpy().copy() for part in model.entries())
        return Update(
            **shared_fields(task, SubModelKey), values=values, dense=dense, grad_squares=None,
            score=float("nan"), num_samples=trained.num_samples,
        )  # fmt: skip

    def _note(self, at: NDArray[Any] | None, weight: int) -> None:
        noted = self.dispatches[-1]
        noted.found.append(self.correction is not None)
        if self.correction is not None:
            parts = [part.numpy() for part in self.training.sub_model.entries(self.correction)]
            noted.add(np.arange(self.num) if at is None else at, parts[0], weight)
            noted.add(np.arange(self.num, len(self.weights)), parts[1], weight)

    def deliver(self, *clients: int) -> None:
        for client in clients:
            self.send(Delivered(1.0, self.updates.pop(client)))

    def close(self) -> None:
        self.deliver(*sorted(self.updates))
        self.send(Closed(2.0, 2.0))

    def disturb(self, what: str) -> None:
        """Have something happen when some of this round's updates have arrived."""
        first, second, *_ = sorted(self.updates)
        self.deliver(first)
        if what == "lost":
            del self.updates[second]
            self.send(Lost(1.0, (second,), "silent"))
        elif what == "lost after delivery":
            self.send(Lost(1.0, (first,), "silent"))
        elif what == "quarantined":
            self.updates[second].dense[0] = np.nan
            self.deliver(second)
        elif what == "resumed":
            self.updates.clear()
            self.memories = Memories(self.num)
            self.send(Resumed(1.0))


EVENTS = ("lost", "lost after delivery", "quarantined", "resumed")


def check(federation: Federation) -> None:
    """All of a dispatch have found a variate or none has, and the mean of those found is 0."""
    for noted in federation.dispatches:
        assert len(set(noted.found)) == 1
        if noted.found[0]:
            assert noted.mean_share() < ROUNDING


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(ROWS), st.sampled_from(PARTITIONS), st.integers(0, 99),
    st.lists(st.sampled_from(("", "", *EVENTS)), min_size=4, max_size=5).filter(
        lambda events: sum(event not in ("", "resumed") for event in events) < 3
    ),
)  # fmt: skip
def test_the_mean_of_what_corrects_steps_is_0(row, partition, seed, events):
    federation = Federation(
        f"method={row}",
        *ALLOWED,
        f"data.partition={partition}",
        f"seed={seed}",
        "run.interval_rounds=3",
    )
    for event in events:
        federation.disturb(event)
        federation.close()
    check(federation)


@pytest.mark.parametrize("row", ("scaffold", "wo_asyn"))
@pytest.mark.parametrize("event", EVENTS)
def test_variates_begin_anew_for_all_in_the_same_round(row, event):
    federation = Federation(f"method={row}", *ALLOWED)
    federation.close()
    federation.close()
    federation.disturb(event)
    for _ in range(3):
        federation.close()
    check(federation)
    whole = [noted.found[0] for noted in federation.dispatches if len(noted.found) > 2]
    again = [False] if event == "resumed" else []
    assert whole == [False, True, True, *again, False, True, True]


@pytest.mark.parametrize("gates", [True, False])
def test_gated_biases_have_another_mean(gates, monkeypatch):
    """Why they are refused: whoever holds a dead bias returns it as it was sent."""
    monkeypatch.setattr("fedgmr_hpc.config.rules._RULES", ())
    words = ("method=wo_asyn", "train.objective=scaffold", "clients.shares=[1, 0.01, 0.01, 0.01]")
    federation = Federation(*words, f"submodel.gate_biases={str(gates).lower()}")
    for _ in range(2):
        federation.close()
    shares = [noted.mean_share() for noted in federation.dispatches[1:]]
    assert all((share > 100 * ROUNDING) == gates for share in shares)
