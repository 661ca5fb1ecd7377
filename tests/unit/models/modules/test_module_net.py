"""A module laid into a flat vector computes and learns what it does by itself, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from own_models import FourGroups, ResNet, VisionTransformer
from torch import Tensor, nn

from fedgmr_hpc.config.choices import registry
from fedgmr_hpc.models.modules.model import ModuleModel
from fedgmr_hpc.models.modules.net import ModuleNet
from fedgmr_hpc.training.sgd import LocalSgd, SgdConfig

registry.MODELS.forget("own_models")  # here its classes are wanted, not the plug-in
MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet(10, FourGroups),
    "resnet_bn": lambda: ResNet(10, nn.BatchNorm2d),
    "vit": lambda: VisionTransformer(10),
    "lstm": lambda: Reader(),
}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.gpu),
]


class Reader(nn.Module):
    """Rows of an image as a sequence; its dropout is drawn inside torch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, 2, dropout=0.5, batch_first=True)
        self.out = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.lstm(images.squeeze(1))[0][:, -1])


class Counting(nn.Module):
    """Replaces its buffer, rather than writing it, and has a branch that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.spare, self.out = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total = self.total + len(x)
        return self.out(self.hidden(x))


def make_model(make: Callable[[], nn.Module]) -> ModuleModel:
    return ModuleModel("mine", make, (1, 8, 8), prunable=["*weight*"])


def make_net(
    make: Callable[[], nn.Module], batch_norm: str = "tracked", seed: int = 3
) -> ModuleNet:
    return make_model(make).make_net("cpu", "importance", 1.0, False, batch_norm, seed)  # type: ignore[arg-type]


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 1, 8, 8, generator=generator)
    return images, torch.arange(size) % 10


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def train(net: ModuleNet, steps: int = 3) -> Tensor:
    step = LocalSgd(net, losses, 0.1, SgdConfig(momentum=0.9))
    for _ in range(steps):
        step.run(batch())
    return net.flat.detach().clone()


@pytest.mark.parametrize("name", MODELS)
def test_training_it_is_training_the_module(name: str) -> None:
    net = make_net(MODELS[name])
    torch.manual_seed(3)
    plain = MODELS[name]()
    torch.manual_seed(5)
    optimiser = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, fused=True)
    for _ in range(3):
        optimiser.zero_grad()
        losses(plain(batch()[0]), batch()[1]).mean().backward()
        optimiser.step()
    net.generator.manual_seed(5)
    flat, state = train(net), plain.state_dict()
    for entry in net.layout.entries:
        assert torch.equal(flat[entry.span].view(entry.shape), state[entry.name]), entry.name
    with torch.inference_mode():
        assert torch.equal(net(batch()[0]), plain.eval()(batch()[0]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_writing_the_flat_vector_loads_the_module(name: str, device: str) -> None:
    net = make_model(MODELS[name]).make_net(device, "full", 1.0, False, "tracked", 0)
    assert net.flat.device.type == device
    net.flat.copy_(torch.arange(len(net.flat)))
    tensors = {**dict(net.module.named_parameters()), **dict(net.module.named_buffers())}
    for entry in net.layout.entries:
        assert tensors[entry.name].flatten()[0] == entry.offset
    for entry, parameter in zip(net.layout.trainable, net.trainable(), strict=True):
        assert parameter is tensors[entry.name]
    net.module(torch.zeros(2, 1, 8, 8, device=device))  # on that device, buffers too


def test_a_shared_weight_is_trained_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.second.weight = self.first.weight
            self.out = nn.Linear(64, 10)

        def forward(self, images: Tensor) -> Tensor:
            return self.out(self.second(self.first(images.flatten(1))))

    net = make_net(Tied)
    train(net)
    assert net.module.second.weight is net.module.first.weight
    assert [e.name for e in net.layout.trainable if "weight" in e.name] == [
        "first.weight",
        "out.weight",
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["vit", "lstm"])
def test_draws_follow_from_the_generator_alone(name: str, device: str) -> None:
    net = make_model(MODELS[name]).make_net(device, "full", 1.0, False, "tracked", 0)
    images = batch()[0].to(device)
    outcomes = []
    for seed, foreign in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(foreign)
        net.generator.manual_seed(seed)
        outcomes.append([net(images, training=True).detach() for _ in range(2)])
        drawn = torch.rand(1)
        torch.manual_seed(foreign)
        assert torch.equal(torch.rand(1), drawn)  # and leave the process's own stream alone
    assert all(map(torch.equal, outcomes[0], outcomes[1]))
    assert not torch.equal(outcomes[0][0], outcomes[2][0])
    assert not torch.equal(outcomes[0][0], outcomes[0][1])  # each step draws anew


def test_ranks_that_are_threads_do_not_disturb_each_other() -> None:
    def work(seed: int) -> None:
        torch.set_num_threads(1)  # of this thread, as a rank does; sums depend on it
        net = make_net(MODELS["vit"])
        net.generator.manual_seed(seed)
        found[seed] = train(net, 5)

    def run(seeds: Iterable[int]) -> None:
        threads = [Thread(target=work, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found: dict[int, Tensor] = {}
    run([0])
    alone = found[0]
    run(range(4))
    assert torch.equal(found[0], alone) and not torch.equal(found[1], alone)


def test_a_module_that_draws_in_evaluation_answers_alike_every_time() -> None:
    class Noisy(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return F.dropout(super().forward(images.flatten(1)), 0.5)

    net = make_net(lambda: Noisy(64, 10))
    assert torch.equal(net(batch()[0]), net(batch()[0]))


def test_a_replaced_buffer_and_an_unused_layer_are_no_trouble() -> None:
    net = make_net(Counting)
    spare = net.layout["spare.weight"].span
    before = net.flat[spare].clone()
    step = LocalSgd(net, lambda a, b: losses(a, b), 0.1, SgdConfig())
    for _ in range(2):
        step.run((torch.ones(4, 2), torch.zeros(4, dtype=torch.long)))
    assert net.flat[net.layout["total"].span].tolist() == [8.0]
    assert torch.equal(net.flat[spare], before)


def test_static_norms_leave_their_statistics_alone_in_training() -> None:
    tracked, static = (make_net(MODELS["resnet_bn"], kind) for kind in ("tracked", "static"))
    assert (tracked.layout.num_statistics, static.layout.num_statistics) == (0, 96)
    assert [e.name for e in static.layout.statistics][:2] == [
        f"stages.0.norm1.running_{part}" for part in ("mean", "var")
    ]
    static.statistics.fill_(7.0)
    flat, other = train(static), train(tracked)
    assert set(static.statistics.tolist()) == {7.0}
    for entry in static.layout.entries:  # training itself is the same
        assert torch.equal(flat[entry.span], other[tracked.layout[entry.name].span])


def test_measured_statistics_are_those_of_the_batch() -> None:
    net = make_net(MODELS["resnet_bn"], "static")
    images = batch()[0]
    with torch.no_grad():
        inside = F.relu(net.module.stem(images))
        inside = net.module.stages[0].conv1(inside)
    measured = net.measure(images)
    spans = {e.name: slice(e.offset - len(net.flat), e.offset - len(net.flat) + 8)
             for e in net.layout.statistics}  # fmt: skip
    mean, variance = (measured[spans[f"stages.0.norm1.running_{p}"]] for p in ("mean", "var"))
    assert torch.allclose(mean, inside.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(variance, inside.var((0, 2, 3)), rtol=1e-5)
    net.module.train()
    net(images, training=True)
    assert torch.equal(net.statistics, measured)
    first = net(images)
    net.statistics.fill_(1.0)
    assert not torch.equal(net(images), first)


def test_a_negative_running_variance_counts_as_zero_and_stays() -> None:
    net = make_net(MODELS["resnet_bn"])
    variances = [e.span for e in net.layout.entries if e.name.endswith("running_var")]
    for span in variances:
        net.flat[span] = 0.0
    expected = net(batch()[0])
    for span in variances:
        net.flat[span] = -1.0
    assert torch.equal(net(batch()[0]), expected) and expected.isfinite().all()
    assert all(set(net.flat[span].tolist()) == {-1.0} for span in variances)
