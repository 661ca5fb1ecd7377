"""ResNet-18 against a parent of torch modules (docs/method.md#models) and its norms by hand."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgmr_hpc.models import FlatNet, make_layout
from fedgmr_hpc.models.layers import Forward, NormUse
from fedgmr_hpc.training.sgd import measure_statistics

COSTS = [
    5.56e-6, 1.73e-5, 5.57e-5, 5.84e-5, 2.68e-5, 3.39e-5, 1.62e-5, 1.72e-5, 8.93e-6,
    3.87e-5, 8.13e-6, 6.55e-6, 5.75e-6, 1.05e-5, 1.30e-5, 9.30e-6, 9.92e-6, 3.62e-5,
]  # fmt: skip


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        if stride > 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if hasattr(self, "shortcut"):
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(x + y)


class Parent(nn.Module):
    """Names its tensors as the layout does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, outputs in enumerate((64, 128, 256, 512), 1):
            first = Block(inputs, outputs, 1 if stage == 1 else 2)
            blocks = nn.ModuleDict({"block1": first, "block2": Block(outputs, outputs, 1)})
            self.add_module(f"stage{stage}", blocks)
            inputs = outputs
        self.fc = nn.Linear(512, 100)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(images))), 3, 2, 1)
        for stage in range(1, 5):
            for block in self.get_submodule(f"stage{stage}").values():
                x = block(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def parent() -> Parent:
    torch.manual_seed(0)
    model = Parent()
    for tensor_name, tensor in model.state_dict().items():
        if tensor_name.split(".")[-2].endswith(("norm", "norm1", "norm2")) and tensor.dim():
            tensor.uniform_(0.5, 1.5)
    return model


def net_like(parent: Parent) -> FlatNet:
    net, state = FlatNet("resnet18"), parent.state_dict()
    with torch.no_grad():
        for name, tensor in net.tensors.items():
            tensor.copy_(state[name])
    return net


def images(size: int) -> Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_tensors_are_those_of_the_parent(parent):
    shapes = {e.name: torch.Size(e.shape) for e in make_layout("resnet18").entries}
    state = parent.state_dict().items()
    assert shapes == {n: t.shape for n, t in state if not n.endswith("num_batches_tracked")}


@pytest.mark.parametrize("size", [32, 75])
def test_evaluation_uses_the_running_statistics(parent, size):
    net, x = net_like(parent), images(size)
    before = net.flat.clone()
    with torch.inference_mode():
        logits, expected = net(x), parent.eval()(x)
        assert torch.allclose(logits, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(net.flat, before)


def test_training_uses_the_batch_and_updates_the_running_statistics(parent):
    net, x, labels = net_like(parent), images(64), torch.tensor([0, 1, 2, 3])
    logits, expected = net(x, training=True), parent.train()(x)
    assert torch.allclose(logits, expected, rtol=1e-3, atol=1e-4)
    loss, parent_loss = (F.cross_entropy(z, labels) for z in (logits, expected))
    gradients = torch.autograd.grad(loss, net.trainable())
    by_name = dict(zip([e.name for e in net.layout.trainable], gradients, strict=True))
    for name, gradient in zip(
        dict(parent.named_parameters()),
        torch.autograd.grad(parent_loss, list(parent.parameters())),
        strict=True,
    ):
        assert (by_name[name] - gradient).norm() < 1e-3 * gradient.norm()
    for entry in net.layout.entries:
        if not entry.trainable:
            running = net.flat[entry.span]
            assert torch.allclose(running, parent.state_dict()[entry.name], rtol=1e-4, atol=1e-5)


def test_prunable_layers_in_order_with_their_costs():
    prunable = [e for e in make_layout("resnet18").entries if e.prunable]
    assert [e.cost for e in prunable] == COSTS
    assert [len(e.shape) for e in prunable] == [4] * 17 + [2]
    assert not any("shortcut" in e.name for e in prunable)


def test_only_the_output_bias_is_gated():
    gates = {e.name: e.gated_by for e in make_layout("resnet18").entries if e.gated_by}
    assert gates == {"fc.bias": "fc.weight"}


def test_buffers_end_the_vector_and_do_not_train():
    layout = make_layout("resnet18")
    buffers = [e for e in layout.entries if not e.trainable]
    assert buffers == list(layout.entries[-40:])
    assert {e.name.rsplit(".", 1)[1] for e in buffers} == {"running_mean", "running_var"}
    net = FlatNet("resnet18")
    assert len(net.trainable()) == len(net.split(net.flat)) == len(layout.entries) - 40
    for parameter, view in zip(net.trainable(), net.split(net.flat), strict=True):
        assert (parameter.shape, parameter.data_ptr()) == (view.shape, view.data_ptr())


def test_measured_statistics_are_those_of_torchs_cumulative_average(parent):
    """A pass in training mode over norms with momentum None, as HeteroFL's code makes it."""
    net, reference = FlatNet("resnet18", batch_norm="static"), deepcopy(parent).train()
    state = parent.state_dict()
    for entry in net.layout.entries:
        net.flat[entry.span] = state[entry.name].flatten()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.rand(4, 3, 32, 32, generator=generator), torch.zeros(4)) for _ in range(3)]
    with torch.no_grad():
        for images, _ in batches:
            reference(images)
    expected, found = reference.state_dict(), measure_statistics(net, batches)
    start = net.layout.num_weights
    for entry in net.layout.statistics:
        own = found[entry.offset - start : entry.offset - start + entry.size]
        assert torch.allclose(own, expected[entry.name], rtol=1e-3, atol=1e-4)


def norm(training: bool, variance: float) -> tuple[Forward, dict[str, Tensor]]:
    values = {"weight": 2.0, "bias": 10.0, "running_mean": 1.0, "running_var": variance}
    tensors = {f"n.{part}": torch.tensor([value]) for part, value in values.items()}
    use: NormUse = "tracked" if training else "given"
    return Forward(tensors, training, torch.Generator(), {}, use), tensors


def test_batch_norm_by_hand_in_training():
    forward, tensors = norm(training=True, variance=4.0)
    # 1 and 5: mean 3, variance 4, unbiased 8
    normalised = forward.batch_norm("n", torch.tensor([1.0, 5.0]).view(2, 1, 1, 1))
    assert normalised.flatten().tolist() == pytest.approx([8.0, 12.0], abs=1e-5)
    assert float(tensors["n.running_mean"]) == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert float(tensors["n.running_var"]) == pytest.approx(0.9 * 4 + 0.1 * 8)


@pytest.mark.parametrize(("variance", "expected"), [(4.0, 14.0), (-4.0, 10 + 8 / 1e-5**0.5)])
def test_batch_norm_by_hand_in_evaluation(variance, expected):
    forward, tensors = norm(training=False, variance=variance)
    normalised = forward.batch_norm("n", torch.tensor([5.0]).view(1, 1, 1, 1))
    assert float(normalised) == pytest.approx(expected, rel=1e-5)
    assert float(tensors["n.running_var"]) == variance
