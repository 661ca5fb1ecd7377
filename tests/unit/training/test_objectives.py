"""Objectives by hand: FedProx, control variates, one of a user's, and what clients keep for them.

The net has one weight an output: images [B, n] of s give outputs s w, and with targets s t the loss
is half the squared distance, so the gradient is s^2 (w - t), with s = 1 unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.client_memory import Memories
from fedgmr_hpc.fl.submodels import width_masks
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import hide_classes, run_layout, run_weights
from fedgmr_hpc.runtime.server import prunable_layers
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.masked import MaskedModel
from fedgmr_hpc.training.objectives import LocalSteps, Objective
from fedgmr_hpc.training.objectives.contract import BoundObjective
from fedgmr_hpc.training.objectives.fedprox import FedProx
from fedgmr_hpc.training.objectives.scaffold import Scaffold
from fedgmr_hpc.training.sgd import SgdConfig

FEW = settings(max_examples=40, deadline=None)
numbers = st.floats(-4, 4, width=32)


class Weights:
    """Outputs [B, n] = images [B, n] * w."""

    def __init__(self, size: int) -> None:
        self.flat = torch.zeros(size)
        self.parameter = nn.Parameter(self.flat)

    def split(self, flat: Tensor) -> list[Tensor]:
        return [flat]

    def trainable(self) -> list[nn.Parameter]:
        return [self.parameter]

    def __call__(self, images: Tensor, training: bool = False) -> Tensor:
        return images * self.parameter


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * ((outputs - targets) ** 2).sum(1)


def bind(
    objective: Objective,
    model: MaskedModel,
    rate: float,
    last: LocalSteps | None = None,
    version: int = 0,
    same_since: int = 0,
) -> BoundObjective:
    """Have an objective look at what a model has loaded, after its client's last steps."""
    steps = LocalSteps(
        weights=model.net.flat,
        received=model.net.flat.clone(),
        mask=model.mask,
        parameters=model.net.trainable(),
        split=model.net.split,
        client=0,
        version=version,
        same_since=same_since,
        learning_rate=rate,
        kept={} if last is None else last.kept,
        numbers={} if last is None else last.numbers,
    )
    return BoundObjective(objective, steps)


class Clients:
    """Clients of one weight vector, each with targets and entries of its own.

    Args:
        targets: [C, n].
        held: positions that each holds; None for all.
        slopes: s of each client.
    """

    def __init__(self, objective: Objective | None, targets, held=None, slopes=None, **sgd) -> None:
        self.objective, self.targets = objective, torch.tensor(targets, dtype=torch.float32)
        size = self.targets.shape[1]
        self.held, self.slopes = held or [None] * len(targets), slopes or [1.0] * len(targets)
        self.model, self.sgd = MaskedModel(Weights(size), size, []), SgdConfig(**sgd)
        self.kept: dict[int, LocalSteps] = {}
        self.version = self.same_since = 0

    def train(self, client: int, weights: Tensor, rate: float, steps: int) -> Tensor:
        """Return the weights [n] that a client has trained, zeros outside its mask."""
        held, model = self.held[client], self.model
        at = None if held is None else torch.tensor(held)
        model.load(weights if at is None else weights[at], torch.zeros(0), at, mask_id=client)
        bound = self._bind(client, rate)
        slope = self.slopes[client]
        batch = torch.full((1, len(weights)), slope), slope * self.targets[client : client + 1]
        change = None if bound is None else bound.change
        model.train(
            iter([batch] * steps), half_square, learning_rate=rate, sgd=self.sgd, change=change
        )
        if bound is not None:
            self.kept[client] = bound.end()
        return model.net.flat.clone()

    def _bind(self, client: int, rate: float) -> BoundObjective | None:
        if self.objective is None:
            return None
        versions = self.version, self.same_since
        return bind(self.objective, self.model, rate, self.kept.get(client), *versions)

    def round(self, weights: Tensor, rate: float, steps: int) -> Tensor:
        """Return the mean over the holders of each entry."""
        trained = torch.stack(
            [self.train(c, weights, rate, steps) for c in range(len(self.targets))]
        )
        return mean_of_holders(trained, self.is_held(), weights)

    def is_held(self) -> Tensor:
        held = torch.zeros_like(self.targets)
        for row, at in zip(held, self.held, strict=True):
            row[slice(None) if at is None else at] = 1.0
        return held


def mean_of_holders(rows: Tensor, held: Tensor, otherwise: Tensor) -> Tensor:
    total = held.sum(0)
    return torch.where(total > 0, (rows * held).sum(0) / total.clamp_min(1), otherwise)


# --- FedProx


def test_three_steps_of_fedprox_by_hand():
    """w = 1, target 0, rate 0.1, mu 0.5: gradients 1, 0.9 - 0.05, 0.815 - 0.0925."""
    clients = Clients(FedProx(proximal_mu=0.5), [[0.0]])
    for steps, expected in ((1, 0.9), (2, 0.815), (3, 0.74275)):
        found = clients.train(0, torch.tensor([1.0]), 0.1, steps)
        assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_proximal_term_is_clipped_with_the_loss_and_leaves_squares_alone():
    model, sgd = MaskedModel(Weights(1), 1, []), SgdConfig(clip_norm=1.0)
    model.load(torch.tensor([1.0]), torch.zeros(0), None)
    bound = bind(FedProx(proximal_mu=2.0), model, 0.5)
    batch = torch.ones(1, 1), torch.zeros(1, 1)
    trained = model.train(
        iter([batch] * 2), half_square, learning_rate=0.5, sgd=sgd,
        sum_grad_squares=True, change=bound.change,
    )  # fmt: skip
    # 1 -> 0.5 along 1; then along 0.5 + 2 (0.5 - 1) = -0.5, which is no longer than 1
    assert model.net.flat.item() == pytest.approx(0.75, rel=1e-5)
    assert trained.grad_squares is not None
    assert trained.grad_squares.item() == pytest.approx(1 + 0.5**2, rel=1e-5)


@FEW
@given(st.lists(numbers, min_size=3, max_size=3), st.lists(numbers, min_size=3, max_size=3),
       st.sampled_from([None, [0, 2], [1]]), st.sampled_from([0.0, 0.9]))  # fmt: skip
def test_without_mu_and_at_a_first_dispatch_steps_are_plain_to_the_bit(w, t, held, momentum):
    def trained(objective: Objective | None) -> bytes:
        clients = Clients(objective, [t], [held], momentum=momentum, weight_decay=0.1)
        return clients.train(0, torch.tensor(w), 0.3, 4).numpy().tobytes()

    plain = trained(None)
    assert trained(FedProx(proximal_mu=0.0)) == plain
    assert trained(Scaffold()) == plain
    assert trained(Objective()) == plain


# --- control variates


def test_two_rounds_of_scaffold_by_hand():
    """Targets 0 and 3, two steps at rate 0.5, so K eta = 1.

    Round 1, from 4, without variates: 4, 2, 1 and 4, 3.5, 3.25; c = (3, 0.75), mean 1.875.
    Round 2, from 2.125: client 0 steps along w - 3 + 1.875, client 1 along w - 3 - 0.75 + 1.875:
    2.125, 1.625, 1.375 and 2.125, 2, 1.9375.
    """
    clients = Clients(Scaffold(), [[0.0], [3.0]])
    weights = torch.tensor([4.0])
    assert [clients.train(c, weights, 0.5, 2).item() for c in (0, 1)] == [1.0, 3.25]
    assert [clients.kept[c].kept["variate"].item() for c in (0, 1)] == [3.0, 0.75]
    weights = torch.tensor([2.125])
    assert [clients.train(c, weights, 0.5, 2).item() for c in (0, 1)] == [1.375, 1.9375]
    # c_i - c + (x - y): 3 - 1.875 + 0.75 and 0.75 - 1.875 + 0.1875
    assert [clients.kept[c].kept["variate"].item() for c in (0, 1)] == [1.875, -0.9375]


def scaffold_as_published(clients: Clients, weights: Tensor, rates: Sequence[float], steps: int):
    """Algorithm 1, option II, with a server's variate of its own, over the holders of entries."""
    held = clients.is_held()
    own, server = torch.zeros_like(clients.targets), torch.zeros_like(weights)
    for rate in rates:
        trained = weights * held
        for _ in range(steps):
            trained = trained - rate * held * (trained - clients.targets - own + server)
        renewed = own - server + (weights * held - trained) / (steps * rate)
        server = server + mean_of_holders(renewed - own, held, torch.zeros_like(weights))
        weights, own = mean_of_holders(trained, held, weights), renewed
    return weights


@FEW
@given(
    st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=3, max_size=3),
    st.sampled_from([None, [[0, 1, 3], [1, 3], None]]),
    st.lists(st.sampled_from([0.1, 0.25, 0.5]), min_size=1, max_size=6),
)
def test_the_variate_found_in_two_versions_is_the_one_of_the_paper(targets, held, rates):
    clients = Clients(Scaffold(), targets, held)
    start = torch.tensor([1.0, -2.0, 0.5, 3.0])
    weights = start
    for rate in rates:
        weights = clients.round(weights, rate, 3)
    expected = scaffold_as_published(clients, start, rates, 3)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-4)


def test_control_variates_end_where_local_steps_alone_do_not():
    """Client 0 comes to its own optimum four times as fast, and draws plain averages there."""

    def final(objective: Objective | None) -> float:
        clients = Clients(objective, [[0.0], [3.0]], slopes=(2.0, 1.0))
        weights = torch.tensor([4.0])
        for _ in range(100):
            weights = clients.round(weights, 0.2, 5)
        return weights.item()

    assert final(Scaffold()) == pytest.approx(0.6, abs=1e-4)  # 4 w + (w - 3) = 0
    assert final(None) > 1


def test_variates_begin_anew_when_masks_are_cut_anew():
    """Who holds an entry may be others now, and their mean is not c."""
    clients, plain = Clients(Scaffold(), [[1.0, 2.0]]), Clients(None, [[1.0, 2.0]])
    clients.train(0, torch.tensor([4.0, 4.0]), 0.5, 1)
    again = torch.tensor([3.0, 3.0])
    kept = clients.kept[0]
    # c = (4 - 3) / 0.5 = 2 and c_i = 3 and 2: 3 - 0.5 (2 - 3 + 2) and 3 - 0.5 (1 - 2 + 2)
    assert clients.train(0, again, 0.5, 1).tolist() == [2.5, 2.5]
    clients.kept[0], clients.version, clients.same_since = kept, 1, 1
    assert torch.equal(clients.train(0, again, 0.5, 1), plain.train(0, again, 0.5, 1))


@pytest.mark.parametrize("objective", [FedProx(proximal_mu=0.5), Scaffold()])
def test_masked_entries_stay_at_zero(objective):
    clients = Clients(objective, [[1.0, 2.0, 3.0]], [[0, 2]], momentum=0.9, weight_decay=0.1)
    weights = torch.tensor([4.0, 5.0, 6.0])
    for _ in range(3):
        weights = clients.train(0, weights, 0.1, 3)
        assert weights[1] == 0 and (weights[[0, 2]] != 0).all()


# --- in a rank's training of real clients

SMALL = ("data.max_train=300", "data.max_test=20", "train.steps=2")
SCAFFOLD = ("admission.kind=barrier", "submodel.gate_biases=false", "train.objective=scaffold")


class Rank:
    """One client's dispatches on one rank, each of the weights that it is given."""

    def __init__(self, *words: str) -> None:
        self.config = load_config(None, [*SMALL, *words])
        self.training = LocalTraining(self.config, FederatedData(self.config))
        self.weights = torch.from_numpy(run_weights(self.config))
        self.num = run_layout(self.config).num_prunable
        self.memories = Memories(self.num)
        self.num_steps = 0

    def train(self, positions=None, density: float = 1.0, mask_id: int = 1) -> tuple[bytes, bytes]:
        """Train on the present weights; they go half the way, as if another client had stayed."""
        at = None if positions is None else torch.from_numpy(positions)
        values = self.weights[: self.num] if at is None else self.weights[at]
        self.memory = self.memories.open(3, mask_id, positions)
        task = Assignment(3, 0, mask_id, 0, density, len(values), self.num_steps, 0.1, False)
        self.training.train(
            task, values.clone(), self.weights[self.num :].clone(), at, memory=self.memory
        )
        self.num_steps += 2
        values, dense = self.training.sub_model.entries()
        entries = slice(self.num) if at is None else at
        self.weights[entries] = (self.weights[entries] + values) / 2
        self.weights[self.num :].add_(dense).mul_(0.5)
        return values.numpy().tobytes(), dense.numpy().tobytes()


def some_positions(num: int, share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(num)[: int(num * share)]


def test_density_1_trains_as_the_whole_model_to_the_bit():
    words = ("method=wo_asyn", *SCAFFOLD)
    masked, whole = Rank(*words), Rank(*words)
    order = some_positions(masked.num, 1.0)
    for _ in range(3):
        values, dense = masked.train(order)
        assert dense == whole.train()[1]
        assert masked.weights.numpy().tobytes() == whole.weights.numpy().tobytes()


def test_a_memory_weighs_what_the_sub_model_weighs():
    rank = Rank("method=wo_asyn", *SCAFFOLD)
    rank.train(some_positions(rank.num, 0.1))
    assert rank.memory.values.keys() == {"variate", "received"}
    assert {len(each) for each in rank.memory.values.values()} == {int(rank.num * 0.1)}
    assert rank.memory.numbers == {"way": pytest.approx(0.2), "version": 0}


@pytest.mark.parametrize("words", [("method=heterofl",), ("method=fjord",), ("method=wo_asyn",)])
def test_what_is_spread_over_a_sub_model_is_read_back(words):
    rank = Rank(*words)
    if words == ("method=wo_asyn",):
        positions, density = some_positions(rank.num, 0.3), 0.3
    else:
        masks = width_masks(prunable_layers(rank.config), [0.3], offset=0, mask_id=0)
        positions, density = masks.positions(0), 0.3
    positions = np.random.default_rng(1).permutation(positions)
    rank.train(positions, density)
    model = rank.training.sub_model
    values, dense = torch.rand(len(positions)), torch.rand(len(rank.weights) - rank.num)
    again = model.entries(model.spread(values, dense))
    assert [each.tolist() for each in again] == [values.tolist(), dense.tolist()]


@pytest.mark.parametrize("method", ["heterofl", "fjord", "fiarse"])
@pytest.mark.parametrize("objective", ["fedprox", "scaffold"])
def test_every_kind_of_sub_model_can_have_an_objective(method, objective):
    rule = ("admission.kind=barrier", "aggregation.rule=mask_aware", "submodel.refresh=interval")
    plain, own = (
        Rank(f"method={method}", *rule, f"train.objective={each}") for each in ("plain", objective)
    )
    models = [(rank.train(), rank.train()) for rank in (plain, own)]
    assert models[0] != models[1]
    assert torch.isfinite(own.weights).all()


# --- of a user's own


class Smoothed(Objective):
    """A loss of a user's own, and one that counts its dispatches."""

    keeps: ClassVar[tuple[str, ...]] = ("seen",)

    def loss(self, logits, labels, plain):
        return plain(logits, labels) - 0.1 * logits.log_softmax(1).mean(1)

    def end(self, steps: LocalSteps) -> None:
        steps.kept["seen"] = torch.ones_like(steps.weights)
        steps.numbers["dispatches"] = steps.numbers.get("dispatches", 0) + 1
        steps.numbers["client"] = steps.client


def test_an_objective_of_a_users_own_changes_the_loss_and_keeps_numbers():
    rank, plain = Rank("method=fedavg"), Rank("method=fedavg")
    rank.training.objective = Smoothed()
    assert rank.train() != plain.train()
    rank.train()
    assert rank.memory.numbers == {"dispatches": 2, "client": 3}
    assert (rank.memory.values["seen"] == 1).all()


def test_an_own_loss_sees_the_classes_that_a_client_has():
    rank = Rank("method=heterofl", "data.partition=shards", "data.shards_per_client=2")
    seen: list[Tensor] = []

    class Looking(Objective):
        def loss(self, logits, labels, plain):
            seen.append(logits.detach())
            return plain(logits, labels)

    rank.training.objective = Looking()
    rank.train()
    absent = rank.training._absent
    assert absent is not None and absent.any()
    assert all(torch.equal(each, hide_classes(each, absent)) for each in seen)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda losses: losses.sum(), "shape ()"),
        (lambda losses: losses[:, None], "shape (16, 1)"),
        (lambda losses: losses.mean().item(), "float"),
    ],
)
def test_a_loss_that_is_not_one_of_each_item_is_refused(change, found):
    class Summed(Objective):
        def loss(self, logits, labels, plain):
            return change(plain(logits, labels))

    rank = Rank("method=fedavg", "train.batch=16")
    rank.training.objective = Summed()
    with pytest.raises(ValueError) as error:
        rank.train()
    assert str(error.value) == (
        f"Summed must return the loss of each item, a tensor of shape (16,) (got {found})"
    )


class Leaving(Objective):
    """Leaves what a test tells it to, and keeps `a`."""

    keeps: ClassVar[tuple[str, ...]] = ("a",)

    def end(self, steps: LocalSteps) -> None:
        steps.own(steps)


def leave(objective: Objective, change) -> LocalSteps:
    bound = bind(objective, MaskedModel(Weights(2), 2, []), 0.1)
    bound.steps.own = change
    return bound.end()


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        ({}, "Leaving must leave a in steps.kept: it keeps that"),
        (
            {"a": torch.zeros(2), "b": torch.zeros(2)},
            "Leaving must name in keeps what it leaves in steps.kept ('b')",
        ),
        (
            {"a": torch.zeros(1)},
            "Leaving must leave a vector like steps.weights in steps.kept['a'] "
            "(got float32 of shape (1,))",
        ),
        (
            {"a": torch.zeros(2, dtype=torch.float64)},
            "Leaving must leave a vector like steps.weights in steps.kept['a'] "
            "(got float64 of shape (2,))",
        ),
        (
            {"a": [0.0, 0.0]},
            "Leaving must leave a vector like steps.weights in steps.kept['a'] (got list)",
        ),
    ],
)
def test_what_is_kept_must_be_what_was_named(kept, sentence):
    with pytest.raises(ValueError) as error:
        leave(Leaving(), lambda steps: steps.kept.update(kept))
    assert str(error.value) == sentence


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), torch.tensor(2.0), torch.tensor([2])])
def test_kept_numbers_are_plain(value):
    def change(steps):
        steps.kept["a"], steps.numbers["n"] = torch.zeros(2), value

    number = leave(Leaving(), change).numbers["n"]
    assert type(number) is float and number == 2.0


@pytest.mark.parametrize(("value", "kind"), [(None, "NoneType"), (torch.zeros(2), "Tensor")])
def test_what_is_no_number_is_refused_before_a_checkpoint(value, kind):
    def change(steps):
        steps.kept["a"], steps.numbers["n"] = torch.zeros(2), value

    with pytest.raises(ValueError) as error:
        leave(Leaving(), change)
    assert str(error.value) == f"Leaving must leave a number in steps.numbers['n'] (got {kind})"


def test_numbers_without_vectors_are_refused_with_any_codec():
    class Counting(Objective):
        def end(self, steps: LocalSteps) -> None:
            steps.numbers["dispatches"] = 1

    rank = Rank("method=fedavg")
    rank.training.objective = Counting()
    with pytest.raises(ValueError) as error:
        rank.train()
    assert str(error.value) == (
        "Counting must name a vector in keeps or leave no numbers: "
        "numbers are kept with vectors only"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda gradients: [each.sum() for each in gradients],
         "Changing must return gradient 0 of shape (2,) (got ())"),
        (lambda gradients: [*gradients, *gradients],
         "Changing must return 1 gradients (got 2)"),
    ],
)  # fmt: skip
def test_gradients_of_another_shape_are_not_broadcast(change, sentence):
    class Changing(Objective):
        def gradients(self, steps, gradients):
            return change(gradients)

    with pytest.raises(ValueError) as error:
        Clients(Changing(), [[1.0, 2.0]]).train(0, torch.tensor([4.0, 4.0]), 0.1, 2)
    assert str(error.value) == sentence
