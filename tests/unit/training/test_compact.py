"""Compact sub-models against masked ones of the same weights (docs/compact-training.md)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.models import FlatNet, initial_weights, loss_function
from fedgmr_hpc.training.compact import CompactModel
from fedgmr_hpc.training.compact_net import CompactNet
from fedgmr_hpc.training.kernels.torch_csr import TorchKernels
from fedgmr_hpc.training.masked import MaskedModel
from fedgmr_hpc.training.sgd import SgdConfig, evaluate
from fedgmr_hpc.training.sub_models import gated_biases

MODELS = {  # sample shape, or tokens; batch
    "digits_cnn": ((1, 8, 8), 6),
    "conv2_small": ((1, 28, 28), 3),
    "resnet18": ((3, 64, 64), 4),
    "transformer": (12, 3),
}


def always(entry, num_kept):
    return True


def never(entry, num_kept):
    return False


def only(kind):
    return lambda entry, num_kept: entry.kind == kind


def draw_positions(net, density, seed=0):
    """Return positions in the order of two increments, each ascending."""
    generator = torch.Generator().manual_seed(seed)
    size = net.layout.num_prunable
    mixed = torch.randperm(size, generator=generator)[: max(2, int(density * size))]
    half = len(mixed) // 2
    return torch.cat([mixed[:half].sort()[0], mixed[half:].sort()[0]])


def batches_of(name, steps=5):
    shape, size = MODELS[name]
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        if name == "transformer":
            tokens = torch.randint(1, 10_000, (size, shape + 1), generator=generator)
            yield tokens[:, :-1], tokens[:, 1:]
        else:
            images = torch.rand(size, *shape, generator=generator)
            yield images, torch.randint(10, (size,), generator=generator)


def cross_entropy(logits, labels):
    return loss_function("cross_entropy", logits, labels)


class Pair:
    """The same model as a masked and as a compact one."""

    def __init__(self, name, is_compact=always, batch_norm="tracked", has_threshold=False):
        self.name = name
        self.weights = torch.from_numpy(initial_weights(name, 0, batch_norm=batch_norm))
        nets = [FlatNet(name, batch_norm=batch_norm) for _ in range(2)]
        self.layout, gated = nets[0].layout, gated_biases(nets[0].layout)
        spans = self.layout.prunable_spans if has_threshold else ()
        self.masked = MaskedModel(nets[0], self.layout.num_prunable, gated, spans)
        kernels = TorchKernels()
        self.compact = CompactModel(nets[1], gated, is_compact, kernels, has_threshold)
        self.models = self.masked, self.compact

    def load(self, positions, mask_id=0):
        size = self.layout.num_prunable
        values = self.weights[:size] if positions is None else self.weights[positions]
        for model in self.models:
            model.load(values, self.weights[size:], positions, mask_id=mask_id)

    def train(self, steps=5, squares=False, learning_rate=0.05, **sgd):
        found = []
        for model in self.models:
            model.net.generator.manual_seed(3)
            found.append(
                model.train(
                    batches_of(self.name, steps),
                    cross_entropy,
                    learning_rate=learning_rate,
                    sgd=SgdConfig(**sgd),
                    sum_grad_squares=squares,
                )
            )
        return found

    def assert_close(self):
        for wanted, found in zip(self.masked.entries(), self.compact.entries(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "density", "steps"),
    [
        ("digits_cnn", 0.05, 5),
        ("digits_cnn", 0.3, 5),
        ("conv2_small", 0.1, 5),
        ("transformer", 0.1, 5),
        ("resnet18", 0.05, 1),  # batch norms of few samples make much of a rounding
    ],
)
def test_a_compact_model_trains_as_the_masked_one(name, density, steps):
    pair = Pair(name)
    pair.load(draw_positions(pair.compact.whole, density))
    assert isinstance(pair.compact.net, CompactNet)
    assert len(pair.compact.net.flat) < 0.6 * len(pair.masked.net.flat)
    masked, compact = pair.train(steps, momentum=0.9, weight_decay=1e-3)
    assert compact.mean_loss == pytest.approx(masked.mean_loss, rel=1e-4)
    pair.assert_close()


@pytest.mark.parametrize("kind", ["linear", "conv", "embedding"])
def test_dense_layers_stay_masked_beside_compact_ones(kind):
    pair = Pair("transformer" if kind == "embedding" else "digits_cnn", only(kind))
    pair.load(draw_positions(pair.compact.whole, 0.2))
    pair.train(momentum=0.9, weight_decay=1e-3, clip_norm=0.5)
    pair.assert_close()
    own, front = pair.compact, pair.compact.net.flat[: pair.compact._front]
    assert len(front) > len(own.entries()[0])  # the whole weights of the others
    assert not front[own.mask[: len(front)] == 0].any()


@pytest.mark.parametrize("density", [0.02, 0.1, 0.6, 0.9])
def test_densities_of_which_some_layers_are_compact(density):
    pair = Pair("digits_cnn", lambda entry, num_kept: num_kept < 0.5 * entry.size)
    pair.load(draw_positions(pair.compact.whole, density))
    assert isinstance(pair.compact.net, CompactNet) == (density < 0.5)
    pair.train()
    pair.assert_close()


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients_pass_through_the_thresholds_of_compact_layers(kind, density):
    pair = Pair("digits_cnn", only(kind), has_threshold=True)
    positions = draw_positions(pair.compact.whole, density)
    for mask_id in (0, 1):  # another mask's thresholds are not kept
        pair.load(positions, mask_id)
        assert isinstance(pair.compact.net, CompactNet)
        pair.train(momentum=0.9, weight_decay=1e-3)
        pair.assert_close()
        seen = []
        for model in pair.models:  # without the weights that fell below their thresholds
            with model.in_use() as net:
                seen.append((model.entries()[0] == 0).sum() if net else None)
        assert seen[0] == seen[1] > 0
    free = Pair("digits_cnn", only(kind))
    free.load(positions)
    free.train(momentum=0.9, weight_decay=1e-3)
    assert not torch.allclose(free.compact.entries()[0], pair.compact.entries()[0], 1e-4, 1e-5)
    pair.load(None)  # the whole model has no threshold
    assert pair.compact.net is pair.compact.whole and pair.train()
    pair.assert_close()


def test_squared_gradients_are_those_of_the_masked_model():
    pair = Pair("digits_cnn", only("linear"))
    pair.load(draw_positions(pair.compact.whole, 0.1))
    masked, compact = pair.train(squares=True)
    parts = zip(
        pair.masked.entries(masked.grad_squares),
        pair.compact.entries(compact.grad_squares),
        strict=True,
    )
    for wanted, found in parts:
        assert wanted.any()
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("is_compact", [never, always])
def test_density_one_is_the_dense_parent_bit_for_bit(is_compact):
    pair = Pair("digits_cnn", is_compact)
    pair.load(None)
    pair.train(momentum=0.9)
    assert torch.equal(pair.masked.net.flat, pair.compact.net.flat)


def test_no_compact_layer_is_the_masked_model_bit_for_bit():
    pair = Pair("digits_cnn", never)
    pair.load(draw_positions(pair.compact.whole, 0.1))
    pair.train(momentum=0.9)
    assert torch.equal(pair.masked.net.flat, pair.compact.net.flat)


@pytest.mark.parametrize("is_compact", [always, only("linear")])
def test_a_client_that_learns_nothing_returns_what_it_received(is_compact):
    pair = Pair("digits_cnn", is_compact)
    positions = draw_positions(pair.compact.whole, 0.02)  # so few that units are lost
    pair.load(positions)
    assert any(lost.any() for lost in pair.compact.net.place.lost.values())
    pair.train(learning_rate=0.0, momentum=0.9)
    values, dense = pair.compact.entries()
    assert torch.equal(values, pair.weights[positions])
    assert torch.equal(dense, pair.weights[pair.layout.num_prunable :])


def test_a_gated_bias_is_zero_while_it_trains_and_returns_unchanged():
    pair = Pair("digits_cnn")
    pair.load(torch.tensor([3, 5]))  # of the first unit of conv1
    lost = pair.compact.net.place.lost["conv1.weight"]
    assert lost.tolist() == [False] + [True] * 15
    pair.train(momentum=0.9)
    bias = pair.compact.net.tensors["conv1.bias"]
    assert bias[0] != 0 and not bias[1:].any()
    start = pair.layout["conv1.bias"].offset - pair.layout.num_prunable
    found = pair.compact.entries()[1][start + 1 : start + 16]
    assert torch.equal(found, pair.weights[pair.layout["conv1.bias"].span][1:])


def test_entries_are_copies_and_spread_is_their_inverse():
    pair = Pair("digits_cnn", only("linear"))
    pair.load(draw_positions(pair.compact.whole, 0.2))
    model = pair.compact
    values, dense = model.entries()
    flat = model.spread(values, dense)
    assert len(flat) == len(model.net.flat)
    assert all(torch.equal(*two) for two in zip(model.entries(flat), (values, dense), strict=True))
    before = values.clone()
    model.net.flat.fill_(-1)
    assert torch.equal(values, before)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.05, 0.2, 0.8, 1.0])), max_size=6))
def test_a_model_that_served_other_clients_is_as_good_as_new(served):
    """Compact and whole networks of three refreshes, one after the other."""

    def is_compact(entry, num_kept):
        return num_kept < 0.5 * entry.size

    used = Pair("digits_cnn", is_compact)
    for mask_id, density in served:
        fresh = Pair("digits_cnn", is_compact)
        positions = draw_positions(fresh.compact.whole, density, seed=mask_id)
        for pair in (used, fresh):
            pair.load(None if density == 1 else positions, mask_id)
            pair.train(steps=1, momentum=0.9)
        pairs = zip(used.compact.entries(), fresh.compact.entries(), strict=True)
        assert all(torch.equal(*two) for two in pairs)


@pytest.mark.parametrize("name", ["digits_cnn", "resnet18"])
def test_a_compact_model_is_scored_as_the_masked_one(name):
    """Static norms take their statistics from batches."""
    pair = Pair(name, batch_norm="static")
    pair.load(draw_positions(pair.compact.whole, 0.2))
    found = []
    for model in pair.models:
        with model.in_use() as net:
            for images, _ in batches_of(name, 1):
                statistics = net.measure(images)
                assert torch.equal(net.statistics, statistics)
            losses = evaluate(net, batches_of(name), cross_entropy, lambda *_: torch.tensor(0))
        found.append((losses[1], statistics))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-5)
