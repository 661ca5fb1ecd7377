"""Narrower networks in training: loading, ordered dropout, momentum.

The network has 3 inputs, a hidden layer of 4 units with ReLU, and 2 outputs; what its widths are
checked against is written out on slices of its tensors.
"""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.submodels import PrunableLayer, width_masks
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.fl.widths import Axis, kept_units
from fedgmr_hpc.models import loss_function, make_layout
from fedgmr_hpc.training import narrow as sliced
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.narrow import MAX_NETS, NarrowModel, OrderedDropoutSgd
from fedgmr_hpc.training.sgd import SgdConfig
from fedgmr_hpc.training.sub_models import make_sub_model

HIDDEN, INPUTS, OUTPUTS = Axis(4), Axis(3, cut="whole"), Axis(2, cut="whole")
TENSORS = [(HIDDEN, INPUTS), (HIDDEN,), (OUTPUTS, HIDDEN), (OUTPUTS,)]
SPANS = [slice(0, 12), slice(12, 16), slice(16, 24)]
LAYERS = [PrunableLayer("", span.start, span.stop, 1.0, axes)
          for span, axes in zip(SPANS, TENSORS, strict=False)]  # fmt: skip
NUM_PRUNABLE = 24
NUM_UNITS = {1.0: 4, 0.5625: 3, 0.25: 2, 0.0625: 1}
FEW = settings(max_examples=60, deadline=None)


class Narrow:
    """The network with some of the hidden units."""

    def __init__(self, density: float) -> None:
        units = kept_units(HIDDEN, density)
        self.shapes = [(units, 3), (units,), (2, units), (2,)]
        self.flat = torch.zeros(sum(int(np.prod(shape)) for shape in self.shapes))
        self.parameters = [nn.Parameter(view) for view in self.split(self.flat)]
        self.generator = torch.Generator()

    def split(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([int(np.prod(shape)) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def trainable(self) -> list[nn.Parameter]:
        return self.parameters

    def __call__(self, images: Tensor, training: bool = False) -> Tensor:
        return forward(self.parameters, images)


def forward(tensors, images: Tensor) -> Tensor:
    w1, b1, w2, b2 = tensors
    return torch.relu(images @ w1.T + b1) @ w2.T + b2


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).sum(1)


def make_model() -> NarrowModel:
    return NarrowModel(Narrow, TENSORS, NUM_PRUNABLE)


def random_batches(steps: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(5, 3, generator=generator), torch.rand(5, 2, generator=generator))
        for _ in range(steps)
    ]


def random_weights(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


# --- loading


def test_values_come_to_lie_in_natural_order():
    model = make_model()
    # half the width: rows 0 and 1 of w1, b1 0 1, columns 0 1 of both rows of w2
    positions = torch.tensor([20, 0, 13, 1, 12, 2, 21, 3, 17, 4, 16, 5])
    values = positions.float()
    model.load(values, torch.tensor([7.0, 8.0]), positions, mask_id=1, density=0.25)
    natural = [0, 1, 2, 3, 4, 5, 12, 13, 16, 17, 20, 21, 7, 8]
    assert model.net.flat.tolist() == natural
    assert [tuple(t.shape) for t in model.net.parameters] == [(2, 3), (2,), (2, 2), (2,)]


@FEW
@given(
    st.lists(st.sampled_from(sorted(NUM_UNITS)), min_size=1, max_size=4, unique=True),
    st.integers(0, 9),
    st.data(),
)
def test_entries_are_what_was_loaded_in_any_packed_order(densities, offset, data):
    masks = width_masks(LAYERS, densities, offset=offset, mask_id=offset)
    model = make_model()
    for density in data.draw(st.permutations(densities)):
        count = masks.counts[masks.level(density)]
        order = np.arange(count) if masks.perm is None else masks.perm[:count].astype(np.int64)
        shuffled = torch.tensor(data.draw(st.permutations(order.tolist())))
        values, dense = random_weights(count), random_weights(2, 5)
        # another order is another mask
        model.load(values, dense, shuffled, mask_id=data.draw(st.integers(0, 10**6)),
                   density=density)  # fmt: skip
        natural = values[shuffled.argsort()]
        assert torch.equal(model.net.flat, torch.cat([natural, dense]))
        found, found_dense = model.entries()
        assert torch.equal(found, values) and torch.equal(found_dense, dense)


def test_the_order_is_that_of_the_present_mask():
    model, dense = make_model(), torch.zeros(2)
    ascending = torch.arange(24)
    model.load(random_weights(24), dense, ascending, mask_id=1)
    model.load(random_weights(24), dense, ascending.flip(0), mask_id=2)
    assert torch.equal(model.net.flat[:24], random_weights(24).flip(0))
    assert torch.equal(model.entries()[0], random_weights(24))


def test_entries_are_copies_and_loading_leaves_what_it_was_given():
    model, values, dense = make_model(), random_weights(24), torch.zeros(2)
    model.load(values, dense, torch.arange(24).flip(0), mask_id=1)
    before = model.entries()
    model.net.flat.add_(1)
    assert torch.equal(values, random_weights(24)) and dense.tolist() == [0, 0]
    assert torch.equal(before[0], values) and before[1].tolist() == [0, 0]


def test_nets_of_past_densities_are_not_kept_forever():
    alive: weakref.WeakSet[Narrow] = weakref.WeakSet()

    def make_net(density: float) -> Narrow:
        net = Narrow(density)
        alive.add(net)
        return net

    model = NarrowModel(make_net, TENSORS, NUM_PRUNABLE)
    for step in range(3 * MAX_NETS):
        density = 0.5 + step / 2000  # 3 of 4 units
        model.load(torch.zeros(18), torch.zeros(2), None, mask_id=step, density=density)
    gc.collect()
    assert len(alive) <= MAX_NETS + 1
    assert torch.equal(model.entries()[0], torch.zeros(18))


# --- ordered dropout against torch.optim.SGD on the whole network


def train_with_torch(
    flat: Tensor, batches, units, learning_rate, momentum=0.0, decay=0.0, *, held=4, taught=False
):
    """Steps of `torch.optim.SGD` on the `held` first units of the hidden layer, each with the
    gradient of the first `units` of them: it is zero elsewhere, as autograd has it for slices.

    Args:
        taught: add the loss of all units held, whose outputs then take the targets' place.
    """
    whole = [part.clone() for part in Narrow(1.0).split(flat)]
    leaves = [part.requires_grad_() for part in cut(whole, held)]
    sgd = torch.optim.SGD(leaves, learning_rate, momentum, weight_decay=decay)
    losses = []
    for (images, targets), kept in zip(batches, units, strict=True):
        sgd.zero_grad()
        if taught:
            outputs = forward(leaves, images)
            mean = square(outputs, targets).mean()
            mean.backward()
            targets = outputs.detach()
        partial = square(forward(cut(leaves, kept), images), targets).mean()
        partial.backward()
        sgd.step()
        losses.append(mean.item() if taught else partial.item())
    with torch.no_grad():
        for part, leaf in zip(cut(whole, held, copy=False), leaves, strict=True):
            part.copy_(leaf)
    return torch.cat([tensor.flatten() for tensor in whole]), losses


def cut(tensors, units: int, copy: bool = True) -> list[Tensor]:
    """The tensors of the network of the first units of the hidden layer."""
    w1, b1, w2, b2 = tensors
    parts = [w1[:units], b1[:units], w2[:, :units], b2]
    return [part.detach().clone() for part in parts] if copy and not w1.requires_grad else parts


@pytest.mark.parametrize(
    "densities",
    [
        (0.25,),
        (1.0,),
        (0.0625, 0.25, 0.5625, 1.0),
        (1.0, 0.25, 1.0, 0.0625, 0.25),
        (0.25, 0.25, 0.25),
    ],
)
@pytest.mark.parametrize(
    "choices",
    [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.5, "weight_decay": 0.2}],
)
def test_a_narrower_step_is_a_step_of_torchs_sgd_on_the_whole_network(densities, choices):
    flat, batches = random_weights(26), random_batches(len(densities))
    model = make_model()
    model.load(flat[:24], flat[24:], None)
    trained = model.train(
        iter(batches),
        square,
        learning_rate=0.05,
        sgd=SgdConfig(**choices),
        densities=densities,
    )
    units = [NUM_UNITS[density] for density in densities]
    decay = choices.get("weight_decay", 0.0)
    momentum = choices.get("momentum", 0)
    expected, losses = train_with_torch(flat, batches, units, 0.05, momentum, decay)
    assert torch.allclose(torch.cat(model.entries()), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected, flat)
    assert trained.mean_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert trained.num_samples == 5 * len(densities)


def test_narrower_steps_of_a_narrow_client_are_steps_of_its_network():
    """A client that holds 3 of 4 units and trains 2, then 3, then 1 of them."""
    flat, batches = random_weights(26), random_batches(3)
    is_kept = width_masks(LAYERS, [0.5625, 1.0], offset=0, mask_id=1).positions(0).astype(np.int64)
    model = make_model()
    model.load(flat[is_kept], flat[24:], torch.from_numpy(is_kept), mask_id=1, density=0.5625)
    sgd = SgdConfig(momentum=0.9)
    model.train(iter(batches), square, learning_rate=0.05, sgd=sgd,
                densities=(0.25, 0.5625, 0.0625))  # fmt: skip
    expected, _ = train_with_torch(flat, batches, [2, 3, 1], 0.05, 0.9, held=3)
    values, dense = model.entries()
    assert torch.allclose(values, expected[is_kept], rtol=1e-5, atol=1e-6)
    assert torch.allclose(dense, expected[24:], rtol=1e-5, atol=1e-6)


def test_what_a_narrower_step_leaves_out_keeps_every_bit_without_momentum_and_decay():
    flat = random_weights(26)
    model = make_model()
    model.load(flat[:24], flat[24:], None)
    model.train(iter(random_batches(3)), square, learning_rate=0.1, sgd=SgdConfig(),
                densities=(0.25,) * 3)  # fmt: skip
    left_out = [*range(6, 12), 14, 15, 18, 19, 22, 23]
    moved = [place for place in range(26) if place not in left_out]
    after = torch.cat(model.entries())
    assert torch.equal(after[left_out], flat[left_out])
    assert (after[moved] != flat[moved]).any(0)


def test_momentum_outside_a_narrower_step_goes_on():
    """Gradient 1 of every bias of the hidden layer: velocities by hand."""

    class Biases(Narrow):
        def __call__(self, images: Tensor, training: bool = False) -> Tensor:
            return self.parameters[1].sum().expand(len(images))

        def trainable(self) -> list[nn.Parameter]:
            return [self.parameters[1]]

        def split(self, flat: Tensor) -> list[Tensor]:
            whole = super().split(flat)
            return [whole[1]] if hasattr(self, "parameters") else whole

    model = NarrowModel(Biases, TENSORS, NUM_PRUNABLE)
    model.load(torch.zeros(24), torch.zeros(2), None)
    model.train(
        iter([(torch.zeros(1, 3), torch.zeros(1))] * 3),
        lambda outputs, targets: outputs,
        learning_rate=1.0,
        sgd=SgdConfig(momentum=0.5),
        densities=(1.0, 0.25, 1.0),
    )
    # units 0, 1: velocities 1, 1.5, 1.75; units 2, 3: 1, 0.5, 1.25
    assert model.entries()[0][12:16].tolist() == [-4.25, -4.25, -2.75, -2.75]


@pytest.mark.parametrize("densities", [(0.25, 0.0625, 0.5625), (0.5625, 0.25, 0.25)])
def test_self_distillation_adds_the_widest_networks_loss_and_teaches_the_part(densities):
    """A client that holds 3 of 4 units; a step of all of them learns from the labels alone."""
    flat, batches = random_weights(26), random_batches(3)
    is_kept = width_masks(LAYERS, [0.5625, 1.0], offset=0, mask_id=1).positions(0).astype(np.int64)
    model = make_model()
    model.load(flat[is_kept], flat[24:], torch.from_numpy(is_kept), mask_id=1, density=0.5625)
    trained = model.train(
        iter(batches),
        square,
        learning_rate=0.05,
        sgd=SgdConfig(0.9, 0.1),
        densities=densities,
        soft_loss=lambda outputs, teacher, _: square(outputs, teacher),
    )
    units = [NUM_UNITS[density] for density in densities]
    expected, losses = train_with_torch(flat, batches, units, 0.05, 0.9, 0.1, held=3, taught=True)
    assert torch.allclose(model.entries()[0], expected[is_kept], rtol=1e-5, atol=1e-6)
    assert trained.mean_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_pull_towards_the_weights_sent_has_one_anchor_a_dispatch(monkeypatch):
    """FedProx as a step that keeps what it finds when it is made."""

    class Pulled(OrderedDropoutSgd):
        def __init__(self, *args):
            super().__init__(*args)
            self.anchors = [parameter.detach().clone() for parameter in self.parameters]

        def gradients(self, samples, labels):
            own, mean = super().gradients(samples, labels)
            rows = zip(own, self.parameters, self.anchors, strict=True)
            return [g + 0.5 * (w.detach() - anchor) for g, w, anchor in rows], mean

    monkeypatch.setattr(sliced, "OrderedDropoutSgd", Pulled)
    flat, batches = random_weights(26), random_batches(3)
    model = make_model()
    model.load(flat[:24], flat[24:], None)
    model.train(iter(batches), square, learning_rate=0.1, sgd=SgdConfig(),
                densities=(0.25, 1.0, 0.0625))  # fmt: skip
    leaf = flat.clone().requires_grad_()
    for (images, targets), units in zip(batches, (2, 4, 1), strict=True):
        parts = Narrow(1.0).split(leaf)
        loss = square(forward(cut(parts, units), images), targets).mean()
        pulled = loss + 0.25 * (leaf - flat).square().sum()
        leaf = (leaf - 0.1 * torch.autograd.grad(pulled, leaf)[0]).detach().requires_grad_()
    assert torch.allclose(torch.cat(model.entries()), leaf.detach(), rtol=1e-5, atol=1e-6)


def test_momentum_is_reset_on_receipt():
    model, batches = make_model(), random_batches(2)
    found = []
    for _ in range(2):
        model.load(random_weights(24), torch.zeros(2), None)
        sgd = SgdConfig(momentum=0.9)
        model.train(iter(batches), square, learning_rate=0.1, sgd=sgd,
                    densities=(0.25, 1.0))  # fmt: skip
        found.append(torch.cat(model.entries()))
    assert torch.equal(*found)


def test_every_step_of_any_width_serves_the_links():
    calls = []
    model = make_model()
    model.load(random_weights(24), torch.zeros(2), None)
    model.train(iter(random_batches(3)), square, learning_rate=0.1, sgd=SgdConfig(),
                densities=(0.25, 1.0, 0.25), after_step=lambda: calls.append(1))  # fmt: skip
    assert len(calls) == 3


# --- the run's models


def dropout_run(model: NarrowModel, seed: int, density: float, densities=()) -> Tensor:
    """Two steps of a client on the transformer, whose dropout is drawn from `seed`."""
    count = make_layout("transformer", "ordered_dropout", density).num_prunable
    model.load(random_weights(count) / 50, torch.zeros(10_000), None, mask_id=1, density=density)
    model.net.generator.manual_seed(seed)
    tokens = torch.arange(6).view(2, 3)
    batches = iter([(tokens, tokens + 1)] * 2)
    model.train(
        batches,
        lambda logits, labels: loss_function("cross_entropy", logits, labels),
        learning_rate=0.1,
        sgd=SgdConfig(),
        densities=densities,
    )
    return model.entries()[0]


def test_dropout_depends_on_the_seed_alone_whoever_was_trained_before():
    config = load_config(None, ["method=fjord", "model.name=transformer"])
    fresh, used = make_sub_model(config), make_sub_model(config)
    narrow, wide = 1 / 144, 1 / 36  # a twelfth and a sixth of the units
    dropout_run(used, 3, wide, (narrow, wide))
    dropout_run(used, 4, narrow)
    for density, densities in ((wide, (narrow, wide)), (narrow, ())):
        found = [dropout_run(model, 5, density, densities) for model in (fresh, used)]
        assert torch.equal(*found)
        assert not torch.equal(found[0], dropout_run(fresh, 6, density, densities))


def test_steps_of_one_width_draw_different_dropouts():
    config = load_config(None, ["method=fjord", "model.name=transformer"])
    model, narrow = make_sub_model(config), 1 / 144
    dropout_run(model, 5, 1 / 36, (narrow, narrow))
    after_two = model.net.generator.get_state()
    model.net.generator.manual_seed(5)
    assert not torch.equal(after_two, model.net.generator.get_state())


@pytest.fixture(scope="module")
def fjord() -> LocalTraining:
    words = ["method=fjord", "data.max_train=300", "data.max_test=50", "train.steps=400"]
    config = load_config(None, words)
    return LocalTraining(config, FederatedData(config))


def drawn(training: LocalTraining, density: float, client: int = 0, first_step: int = 0):
    """Densities of the steps that a client would make."""
    task = Assignment(client, 0, 1, 0, density, 0, first_step, 0.1, False)
    return training._extra_arguments(task)["densities"]


@pytest.mark.parametrize(
    ("density", "rates"),
    [
        (1.0, {0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0}),
        (0.5, {0.05, 0.1, 0.2, 0.4, 0.5}),
        (0.1, {0.05, 0.1}),
        (0.05, {0.05}),
        (0.02, {0.02}),
    ],
)
def test_widths_are_drawn_uniformly_from_the_rates_up_to_the_clients_own(fjord, density, rates):
    found = drawn(fjord, density)
    assert set(found) == rates
    share = 400 / len(rates)
    for rate in rates:  # within five standard deviations
        assert abs(found.count(rate) - share) <= 5 * np.sqrt(share)


def test_drawn_widths_are_keyed_by_client_and_step(fjord):
    assert drawn(fjord, 1.0, 2, 5) == drawn(fjord, 1.0, 2, 5)
    assert len({tuple(drawn(fjord, 1.0, c, s)) for c, s in ((2, 5), (3, 5), (2, 10))}) == 3
