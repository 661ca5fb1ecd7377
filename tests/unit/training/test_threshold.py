"""Gradients through the threshold of a mask, by hand (FIARSE; docs/method.md#fiarse)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgmr_hpc.models import FlatNet, initial_weights, loss_function
from fedgmr_hpc.training.masked import MaskedModel
from fedgmr_hpc.training.sgd import SgdConfig
from fedgmr_hpc.training.threshold import Threshold, kept_of

SPANS = (slice(0, 4), slice(4, 6))


class Linear:
    """Two tensors of 4 and 2 prunable weights and one dense weight; output: their sum by sample."""

    def __init__(self, weights=(0.0,) * 7) -> None:
        self.flat = torch.tensor(weights)
        self.parameters = [nn.Parameter(view) for view in self.split(self.flat)]
        self.seen: list[list[float]] = []

    def split(self, flat: Tensor) -> list[Tensor]:
        return [flat[:4], flat[4:6], flat[6:]]

    def trainable(self) -> list[nn.Parameter]:
        return self.parameters

    def __call__(self, slopes: Tensor, training: bool = False) -> Tensor:
        self.seen.append(self.flat.tolist())
        return (torch.cat(list(self.parameters)) * slopes).sum(1)


def identity(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


def train(weights, kept, slopes=(1.0,) * 7, steps=1, learning_rate=1.0, **choices):
    """(entries kept, what the forward passes saw) of a client that holds `kept`."""
    model = MaskedModel(Linear(), 6, [], through_threshold=SPANS)
    whole = torch.tensor(weights)
    model.load(whole[:6][kept], whole[6:], torch.tensor(kept), mask_id=1)
    batches = iter([(torch.tensor([slopes]), torch.zeros(1))] * steps)
    model.train(batches, identity, learning_rate=learning_rate, sgd=SgdConfig(**choices))
    return model.net.flat.tolist(), model.net.seen


WEIGHTS = (1.0, -0.5, 2.0, 0.25, 3.0, -1.0, 7.0)


def test_kept_weights_have_the_factor_of_their_tensors_threshold():
    # thetas: .5 of the first tensor, 3 of the second
    after, _ = train(WEIGHTS, [0, 1, 2, 4])
    factors = [1 + 1 / 1.5**2, 1.5, 1 + 2 / 2.5**2, 0, 1.5, 0]
    expected = [w - factor for w, factor in zip([1, -0.5, 2, 0, 3, 0], factors, strict=True)]
    assert after == pytest.approx([*expected, 7 - 1])  # the dense one as it is


def test_gradients_are_scaled_and_not_replaced():
    slopes = (2.0, -4.0, 0.5, 9.0, 1.0, 9.0, 3.0)
    after, _ = train(WEIGHTS, [0, 1, 2, 4], slopes)
    expected = [1 - 2 * (1 + 1 / 2.25), -0.5 + 4 * 1.5, 2 - 0.5 * 1.32, 0, 3 - 1.5, 0, 7 - 3]
    assert after == pytest.approx(expected)


def test_a_weight_that_falls_below_the_threshold_leaves_the_forward_pass_and_rests():
    # theta 1: the first step takes .1 x 1.5 from the weight at the threshold
    weights, kept = (1.0, 4.0, 0, 0, 2.0, 0, 0.0), [0, 1, 4]
    after, seen = train(weights, kept, (1.0, 0, 0, 0, 0, 0, 0), steps=3, learning_rate=0.1)
    assert [row[0] for row in seen] == pytest.approx([1.0, 0.0, 0.0])
    assert after[0] == pytest.approx(0.85)  # delivered as it is, no further gradient
    assert [row[1] for row in seen] == [4.0] * 3


def test_momentum_can_bring_a_hidden_weight_back():
    # first gradient -1.5 at w = -1, theta 1; slopes push up to -.85, momentum goes on
    after, seen = train((-1.0, -4.0, 0, 0, 1.0, 0, 0), [0, 1, 4], (-1.0, 0, 0, 0, 0, 0, 0),
                        steps=4, learning_rate=0.5, momentum=0.9)  # fmt: skip
    # -1, then -.25 (hidden), +.425 (hidden), +1.0325 (seen)
    assert [row[0] for row in seen] == pytest.approx([-1.0, 0.0, 0.0, 1.0325])
    assert after[0] > 1.0325


def test_weight_decay_acts_on_the_weights_themselves():
    after, _ = train(WEIGHTS, [0, 1, 2, 4], (0.0,) * 7, learning_rate=0.1, weight_decay=0.5)
    assert after == pytest.approx([0.95, -0.475, 1.9, 0, 2.85, 0, 6.65])


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 10), st.floats(0.01, 10), st.sampled_from([-1, 1]))
def test_the_factor_is_the_slope_of_a_smooth_mask(theta, over, sign):
    """By finite differences of w s(|w|), where s is 1 at w and has FIARSE's derivative
    2 theta / (|w| + theta)^2, as (|w| - theta) / (|w| + theta) has."""
    w = sign * (theta + over)

    def smooth(x: float) -> float:
        step = [(abs(y) - theta) / (abs(y) + theta) for y in (x, w)]
        return x * (1 + step[0] - step[1])

    epsilon = 1e-6 * abs(w)
    slope = (smooth(w + epsilon) - smooth(w - epsilon)) / (2 * epsilon)
    net = Linear((w, theta, 0, 0, 1, 1, 0))
    mask = torch.tensor([1.0, 1, 0, 0, 1, 1, 1])
    threshold = Threshold(net, SPANS, kept_of(mask, SPANS))
    threshold.hide()
    passed = threshold.restore([torch.ones(4), torch.ones(2), torch.ones(1)])
    assert float(passed[0][0]) == pytest.approx(slope, rel=1e-4)
    assert float(passed[0][1]) == pytest.approx(1.5, rel=1e-5)


@pytest.mark.parametrize(
    ("surrogate", "factors"), [(True, [1.2777778, 1.4444444, 0.0]), (False, [1.0, 1.0, 0.0])]
)
def test_factors_with_the_papers_surrogate_and_as_the_public_code_has_them(surrogate, factors):
    # theta 1, weights 5, 2, 0.5: 1 + 2 * 5 / 36, 1 + 2 * 2 / 9, hidden
    net = Linear((5.0, 2.0, 1.0, 0.0, 1.0, 1.0, 0.0))
    mask = torch.tensor([1.0, 1, 1, 0, 1, 1, 1])
    threshold = Threshold(net, SPANS, kept_of(mask, SPANS), surrogate)
    net.flat[2] = 0.5  # a step has left it below its threshold
    threshold.hide()
    passed = threshold.restore([torch.ones(4), torch.ones(2), torch.ones(1)])
    assert passed[0][:3].tolist() == pytest.approx(factors)


def test_hiding_and_restoring_leave_every_weight():
    net = Linear((1.0, 0.0, 2.0, 0.0, 3.0, -1.0, 7.0))
    kept = kept_of(torch.tensor([1.0, 0, 1, 0, 1, 1, 1]), SPANS)
    assert kept[0].tolist() == [0, 2] and kept[1] is None  # all of the second tensor
    threshold = Threshold(net, SPANS, kept)
    net.flat[0] = 0.25  # a step has left it below its threshold
    threshold.hide()
    assert net.flat.tolist() == [0, 0, 2, 0, 3, -1, 7]
    threshold.restore([torch.ones(4), torch.ones(2), torch.ones(1)])
    assert net.flat.tolist() == [0.25, 0, 2, 0, 3, -1, 7]


def test_a_tensor_without_kept_entries_is_left_alone():
    after, _ = train((1.0, 2.0, 3.0, 0, 0.0, 0.0, 0.0), [0, 1, 2])
    assert after[4:6] == [0, 0]


@pytest.mark.parametrize("tiny", [1e-20, 1e-30, 1e-38, 0.0, -1e-25])
def test_tiny_weights_have_finite_gradients(tiny):
    after, _ = train((1.0, tiny, 2.0, 0, tiny, tiny, 0.0), [0, 1, 2, 4, 5], learning_rate=0.5)
    assert np.isfinite(after).all()
    factor = 0.0 if abs(tiny) < 1.2e-38 else 1.5  # what is zero, or next to it, is hidden
    assert after[1] == pytest.approx(tiny - 0.5 * factor)


def test_a_tensor_of_zeros_stays_zero():
    after, _ = train((1.0, 2.0, 3.0, 0, 0.0, 0.0, 0.0), [0, 1, 2, 4, 5])
    assert after[4:6] == [0, 0]


def digits_run(through_threshold, positions, mask_id=1) -> Tensor:
    net = FlatNet("digits_cnn", kind="magnitude")
    num_prunable = net.layout.num_prunable
    model = MaskedModel(net, num_prunable, [], through_threshold)
    flat = torch.from_numpy(initial_weights("digits_cnn", 0, "magnitude"))
    values = flat[:num_prunable] if positions is None else flat[positions]
    model.load(values, flat[num_prunable:], positions, mask_id=mask_id)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 1, 8, 8, generator=generator)
    batches = iter([(images, torch.arange(8))] * 4)
    model.train(batches, lambda x, y: loss_function("cross_entropy", x, y), learning_rate=0.1,
                sgd=SgdConfig(momentum=0.9, weight_decay=1e-3))  # fmt: skip
    return model.net.flat.clone()


@pytest.mark.parametrize("as_positions", [False, True])
def test_density_one_is_the_dense_parent_bit_for_bit(as_positions):
    layout = FlatNet("digits_cnn", kind="magnitude").layout
    spans = layout.prunable_spans
    positions = torch.arange(layout.num_prunable) if as_positions else None
    assert torch.equal(digits_run(spans, positions), digits_run((), None))


def test_a_partial_model_trains_otherwise_with_a_threshold_than_without():
    layout = FlatNet("digits_cnn", kind="magnitude").layout
    spans = layout.prunable_spans
    positions = torch.arange(0, layout.num_prunable, 2)
    runs = [digits_run(each, positions) for each in (spans, ())]
    assert not torch.equal(*runs)
    left_out = torch.arange(1, layout.num_prunable, 2)
    assert not runs[0][left_out].any()


@pytest.mark.parametrize("mask_id", [1, 2])
def test_each_receipt_makes_its_own_thresholds(mask_id):
    """The same mask with other weights has other thresholds."""
    model = MaskedModel(Linear(), 6, [], through_threshold=SPANS)
    found = []
    for scale in (1.0, 10.0):
        kept = torch.tensor([0, 1, 4])
        model.load(scale * torch.tensor([2.0, 1.0, 1.0]), torch.zeros(1), kept, mask_id=mask_id)
        batches = iter([(torch.ones(1, 7), torch.zeros(1))])
        model.train(batches, identity, learning_rate=0.01, sgd=SgdConfig())
        found.append([scale * 2 - float(model.net.flat[0]), scale - float(model.net.flat[1])])
    # factors depend on |w| / theta alone: 1 + 2 x 2 / 3^2 and 1.5
    assert found[0] == pytest.approx([0.01 * (1 + 4 / 9), 0.015], rel=1e-3)
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_a_client_uses_its_model_without_what_fell_below_the_threshold():
    model = MaskedModel(Linear(), 6, [], through_threshold=SPANS)
    kept = torch.tensor([0, 1, 4])
    model.load(torch.tensor([2.0, 1.0, 1.0]), torch.zeros(1), kept)
    batches = iter([(torch.ones(1, 7), torch.zeros(1))])
    model.train(batches, identity, learning_rate=0.01, sgd=SgdConfig())
    trained = model.net.flat.clone()  # 1 - 0.015 is below its threshold of 1 now
    with model.in_use() as net:
        assert net.flat[1] == 0.0 and net.flat[0] == trained[0] > 1.0
    assert torch.equal(model.net.flat, trained)
