"""Layers from kept weights by torch's sparse matrices, against dense layers of the same weights."""

import pytest
import torch
import torch.nn.functional as F

from fedgmr_hpc.training.kernels.contract import Pattern
from fedgmr_hpc.training.kernels.torch_csr import TorchKernels

KERNELS = TorchKernels()


def draw(shape, density, seed=0):
    """Return a layer's kept weights, its pattern, and the whole weight with zeros elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(shape, generator=generator)
    whole *= torch.rand(shape, generator=generator) < density
    positions = whole.flatten().nonzero().flatten().int()
    return whole.flatten()[positions.long()], Pattern(shape, positions), whole


def compare(values, pattern, whole, inputs, compute, expected):
    """Compare outputs and the gradients of values and inputs (floating ones only)."""
    values, whole = values.requires_grad_(), whole.requires_grad_()
    found, wanted = compute(values), expected(whole)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(9))
    others = [each for each in inputs if each.requires_grad]
    of_values, *rest = torch.autograd.grad(found, [values, *others], weights)
    of_whole, *dense = torch.autograd.grad(wanted, [whole, *others], weights)
    torch.testing.assert_close(of_values, of_whole.flatten()[pattern.positions.long()])
    torch.testing.assert_close(rest, dense)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("leading", [(3,), (2, 3), (1,)])
def test_a_linear_layer_is_that_of_the_whole_weight(density, leading):
    values, pattern, whole = draw((6, 5), density)
    x, bias = torch.randn(*leading, 5, requires_grad=True), torch.randn(6, requires_grad=True)
    compare(
        values,
        pattern,
        whole,
        [x, bias],
        lambda each: KERNELS.linear(x, each, pattern, bias),
        lambda each: F.linear(x, each, bias),
    )


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (5, 1, 2), (3, 2, 1), (7, 2, 3)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_that_of_the_whole_weight(density, kernel, stride, padding, layout):
    values, pattern, whole = draw((4, 3, kernel, kernel), density)
    x = torch.randn(2, 3, 7, 6).contiguous(memory_format=layout).requires_grad_()
    bias = torch.randn(4, requires_grad=True) if kernel != 5 else None
    compare(
        values,
        pattern,
        whole,
        [x] if bias is None else [x, bias],
        lambda each: KERNELS.conv(x, each, pattern, bias, stride=stride, padding=padding),
        lambda each: F.conv2d(x, each, bias, stride, padding),
    )


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_a_table_is_that_of_the_whole_weight(density):
    values, pattern, whole = draw((7, 4), density)
    rows = torch.tensor([[0, 3, 3], [6, 0, 3]])
    compare(
        values,
        pattern,
        whole,
        [],
        lambda each: KERNELS.embedding(rows, each, pattern),
        lambda each: F.embedding(rows, each),
    )


def test_the_same_arguments_give_the_same_bits():
    values, pattern, _ = draw((64, 300), 0.2)
    x, bias = torch.randn(20, 300, requires_grad=True), torch.zeros(64)
    values.requires_grad_()

    def run():
        found = KERNELS.linear(x, values, pattern, bias)
        return torch.autograd.grad(found.square().sum(), [values, x])

    first, second = run(), run()
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
