"""Layers from kept weights against dense layers in double precision, and their bits."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgmr_hpc.training.kernels import library
from fedgmr_hpc.training.kernels.compiled import CompiledKernels
from fedgmr_hpc.training.kernels.contract import Kernels, Pattern

LOADED = library.load()
if LOADED is None:
    pytest.skip("the kernels are not compiled (make kernels)", allow_module_level=True)
VARIANTS = library.variants(LOADED)
EVERY = [CompiledKernels(library.Library(LOADED, variant)) for variant in VARIANTS]
BATCHES = (1, 16, 20, 33, 128)


@dataclass
class Dense:
    """The same layers by torch, from whole weights."""

    name: str = "dense"
    whole: Callable[[Pattern, Tensor], Tensor] = field(default=lambda *given: spread(*given))

    def linear(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor) -> Tensor:
        return F.linear(x, self.whole(pattern, values), bias)

    def conv(
        self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, **moves: int
    ) -> Tensor:
        return F.conv2d(x, self.whole(pattern, values), bias, **moves)

    def embedding(self, rows: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        return F.embedding(rows, self.whole(pattern, values))


def spread(pattern: Pattern, values: Tensor) -> Tensor:
    whole = values.new_zeros(math.prod(pattern.shape))
    return whole.index_put((pattern.positions.long(),), values).view(pattern.shape)


def make_pattern(shape: tuple[int, ...], density: float, seed: int = 0) -> Pattern:
    """Keep a share of a layer's weights; the first output unit has all, the second none."""
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    if 0 < density < 1 and shape[0] > 2:
        kept[0], kept[1] = True, False
    return Pattern(shape, torch.nonzero(kept.flatten()).flatten().int())


@dataclass
class Case:
    """One layer and what enters it."""

    kind: str
    x: Tensor
    pattern: Pattern
    has_bias: bool = True
    moves: dict[str, int] = field(default_factory=dict)

    def run(
        self,
        kernels: Kernels | Dense,
        dtype: torch.dtype = torch.float32,
        of: Callable[[Tensor], Tensor] = torch.clone,
    ) -> list[Tensor]:
        """Return the output and the gradients of input, values and bias, of these numbers or
        their magnitudes.
        """
        torch.manual_seed(3)
        values = of(torch.randn(len(self.pattern.positions))).to(dtype).requires_grad_()
        bias = of(torch.randn(self.pattern.shape[0])).to(dtype).requires_grad_()
        x = self.x.detach()
        if x.is_floating_point():
            x = of(x).to(dtype).requires_grad_()
        given: dict[str, Any] = self.moves
        if self.kind == "embedding":
            y, learnt = kernels.embedding(x, values, self.pattern), [values]
        else:
            layer = getattr(kernels, self.kind)
            y = layer(x, values, self.pattern, bias if self.has_bias else None, **given)
            learnt = [x, values] + [bias] * self.has_bias
        return [y.detach(), *torch.autograd.grad(y, learnt, of(torch.randn(y.shape)).to(dtype))]


def check(case: Case) -> None:
    """Variants give the same bits, and what dense layers give in double precision: each sum is
    off by no more than a millionth of the sum of its terms' magnitudes.
    """
    oracle, results = case.run(Dense(), torch.float64), [case.run(kernels) for kernels in EVERY]
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))
    magnitudes = case.run(Dense(), torch.float64, torch.abs)
    for ours, right, magnitude in zip(results[0], oracle, magnitudes, strict=True):
        assert ours.shape == right.shape and ours.dtype == torch.float32
        assert ((ours - right).abs() <= 1e-6 * magnitude).all()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(5, 3), (62, 37), (16, 64)])
def test_linear_layers_agree_with_dense_ones(batch, density, shape):
    x = torch.randn(batch, shape[1], generator=torch.Generator().manual_seed(batch))
    check(Case("linear", x, make_pattern(shape, density)))


def test_a_linear_layer_takes_any_leading_dimensions():
    check(Case("linear", torch.randn(3, 7, 12), make_pattern((9, 12), 0.3)))


WINDOWS = [  # inputs, outputs, kernel, H, W, stride, padding
    (1, 3, 5, 28, 28, 1, 2),
    (3, 5, 3, 8, 9, 2, 1),
    (20, 18, 5, 14, 14, 1, 2),
    (4, 5, 1, 6, 6, 2, 0),
    (3, 4, 3, 4, 4, 1, 0),
    (5, 6, 3, 2, 2, 1, 1),
    (3, 4, 7, 21, 19, 2, 3),
    (2, 3, 3, 11, 8, 3, 1),
    (2, 17, 2, 1, 9, 1, 2),
]


def images(batch: int, channels: int, height: int, width: int, is_last: bool) -> Tensor:
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(batch))
    return x.contiguous(memory_format=torch.channels_last) if is_last else x


@pytest.mark.parametrize("batch", [1, 20, 33])
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_convolutions_agree_with_dense_ones(batch, is_last, window):
    inputs, outputs, kernel, height, width, stride, padding = window
    pattern = make_pattern((outputs, inputs, kernel, kernel), 0.2)
    moves = {"stride": stride, "padding": padding}
    x = images(batch, inputs, height, width, is_last)
    check(Case("conv", x, pattern, batch != 33, moves))


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_a_convolution_may_keep_nothing_or_everything(density):
    pattern = make_pattern((4, 3, 3, 3), density)
    check(Case("conv", images(20, 3, 6, 6, True), pattern, True, {"stride": 1, "padding": 1}))


def test_a_convolution_keeps_the_layout_of_its_images():
    pattern, moves = make_pattern((4, 3, 3, 3), 0.5), {"stride": 1, "padding": 1}
    for is_last, layout in ((False, torch.contiguous_format), (True, torch.channels_last)):
        x = images(2, 3, 6, 6, is_last)
        for tensor in Case("conv", x, pattern, True, moves).run(EVERY[0])[:2]:
            assert tensor.is_contiguous(memory_format=layout)


def pool(x: Tensor, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return what `of` makes of images, and the gradient that these get."""
    x = x.detach().requires_grad_()
    y = of(x)
    y.backward(torch.arange(1.0, y.numel() + 1).view(y.shape))
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("kernels", EVERY, ids=VARIANTS)
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("size", [(1, 2, 2), (3, 8, 6), (17, 7, 9), (40, 5, 4)], ids=str)
def test_pooled_relus_have_the_bits_of_torch(kernels, is_last, size):
    x = images(3, *size, is_last).mul(2).round()  # many are equal, and many are zero
    x[1, 0, 0, 0], x[2, 0, 1, 1] = math.nan, math.nan
    x[2, 0, 0, 0] = math.inf
    whole = pool(x, lambda x: F.relu(F.max_pool2d(x, 2)))
    for own, dense in zip(pool(x, kernels.pooled_relu), whole, strict=True):
        assert torch.equal(own.nan_to_num(-7.0), dense.nan_to_num(-7.0))
        assert own.stride() == dense.stride()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_embeddings_agree_with_dense_ones(batch, density):
    rows = torch.randint(0, 13, (batch, 3), generator=torch.Generator().manual_seed(batch))
    check(Case("embedding", rows, make_pattern((13, 7), density)))


@pytest.mark.parametrize("row", [-1, 13])
def test_a_row_that_a_table_lacks_is_refused(row):
    pattern = make_pattern((13, 7), 0.3)
    values = torch.ones(len(pattern.positions))
    with pytest.raises(IndexError, match="from 0 to 12"):
        EVERY[0].embedding(torch.tensor([0, row]), values, pattern)
    few = torch.arange(13, dtype=torch.int32)  # as torch takes them, too
    assert torch.equal(EVERY[0].embedding(few, values, pattern), spread(pattern, values))


@pytest.mark.parametrize("x", [torch.ones(2, 6), torch.ones(2, 7, dtype=torch.float64)])
def test_other_inputs_than_those_of_the_layer_are_refused(x):
    pattern, bias = make_pattern((13, 7), 0.3), torch.zeros(13)
    values = torch.ones(len(pattern.positions))
    with pytest.raises(ValueError, match="must have 7 float32 inputs"):
        EVERY[0].linear(x, values, pattern, bias)
    window = Pattern((13, 7, 1, 1), pattern.positions)
    with pytest.raises(ValueError, match="must have 7 float32 inputs"):
        EVERY[0].conv(x[:, :, None, None], values, window, bias, stride=1, padding=0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 9)
)
def test_linear_layers_of_any_shape_and_density(batch, inputs, outputs, density, seed):
    x = torch.randn(batch, inputs, generator=torch.Generator().manual_seed(seed))
    check(Case("linear", x, make_pattern((outputs, inputs), density, seed)))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 18), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1))
def test_convolutions_of_any_window_and_density(data, batch, inputs, outputs, density):
    kernel, stride, padding = (data.draw(st.integers(*ends)) for ends in ((1, 5), (1, 3), (0, 4)))
    least = max(1, kernel - 2 * padding)
    height, width = (data.draw(st.integers(least, least + 20)) for _ in "hw")
    x = images(batch, inputs, height, width, data.draw(st.booleans()))
    pattern = make_pattern((outputs, inputs, kernel, kernel), density)
    check(Case("conv", x, pattern, True, {"stride": stride, "padding": padding}))


def test_inputs_that_need_no_gradient_get_none():
    kernels = EVERY[0]
    moves = {"stride": 1, "padding": 1}
    for case in (
        Case("linear", torch.randn(20, 9), make_pattern((5, 9), 0.4)),
        Case("conv", images(20, 3, 8, 8, True), make_pattern((4, 3, 3, 3), 0.4), True, moves),
    ):
        whole = case.run(kernels)
        values = torch.randn(len(case.pattern.positions)).requires_grad_()
        layer = getattr(kernels, case.kind)
        y = layer(case.x, values, case.pattern, torch.zeros(case.pattern.shape[0]), **case.moves)
        y.sum().backward()
        assert case.x.grad is None and values.grad is not None and y.shape == whole[0].shape


def test_bits_do_not_depend_on_threads_or_on_the_call():
    case = Case("linear", torch.randn(33, 300), make_pattern((200, 300), 0.1))
    first, threads = case.run(EVERY[0]), torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        assert all(map(torch.equal, first, case.run(EVERY[0])))
    torch.set_num_threads(threads)


def test_a_small_step_along_a_gradient_changes_the_loss_by_its_square():
    kernels, pattern = EVERY[0], make_pattern((4, 3, 3, 3), 0.5)
    x, bias = images(5, 3, 6, 6, True), torch.zeros(4)
    values = torch.randn(len(pattern.positions)).requires_grad_()

    def loss(values: Tensor) -> Tensor:
        return kernels.conv(x, values, pattern, bias, stride=2, padding=1).square().mean()

    (gradient,) = torch.autograd.grad(loss(values), values)
    step = 1e-3 / gradient.norm()
    change = (loss(values + step * gradient) - loss(values - step * gradient)).item()
    assert change == pytest.approx(2 * float(step * gradient.square().sum()), rel=1e-2)
