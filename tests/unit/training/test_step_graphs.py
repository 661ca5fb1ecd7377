"""Steps that are recorded and replayed: what holds on any device, with a recorder that runs again
what it was given; and CUDA's own recorder where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedgmr_hpc.models import FlatNet, initial_weights, loss_function
from fedgmr_hpc.training.masked import MaskedModel
from fedgmr_hpc.training.sgd import Batch, LocalSgd, Net, SgdConfig
from fedgmr_hpc.training.step_graphs import MAX_GRAPHS, PLAIN_FIRST, CudaRecorder, StepGraphs

LOSS = partial(loss_function, "cross_entropy")
SETTINGS = [SgdConfig(), SgdConfig(0.9, 0.01, 0.5)]
DISPATCHES = [(0.1, 4), (0.02, 5)]  # learning rate, steps


class Again:
    """Runs a step again wherever it is to be replayed."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def record(self, net: Net, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.num_recorded += 1
        result = torch.zeros(())
        return lambda: step_into(result, step), result


class Idle(Again):
    """Replays nothing, as if a graph had missed the work of a step."""

    def record(self, net: Net, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        return lambda: None, torch.zeros(())


class Refusing(Again):
    """Cannot record."""

    def record(self, net: Net, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")


def step_into(result: Tensor, step: Callable[[], Tensor]) -> None:
    result.copy_(step())


def make_batch(seed: int, name: str, size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    if name == "transformer":
        tokens = torch.randint(1, 1000, (2, 5), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]
    samples = torch.rand(size, 1, 8, 8, generator=generator)
    return samples, torch.randint(10, (size,), generator=generator)


def train(
    run: Callable[[LocalSgd, Batch], Tensor] | None,
    sgd: SgdConfig,
    name: str = "digits_cnn",
    device: str = "cpu",
    sizes: Callable[[int], int] = lambda number: 6,
) -> tuple[Tensor, list[float]]:
    """Train half of a network's weights in some dispatches; return weights and mean losses."""
    model = FlatNet(name, device)
    size = model.layout.num_prunable
    weights = torch.from_numpy(initial_weights(name, 0))
    positions = torch.randperm(size, generator=torch.Generator().manual_seed(1))[: size // 2]
    masked, means, number = MaskedModel(model, size, []), [], 0
    if run is not None:
        masked.run_step = run
    for rate, steps in DISPATCHES:
        masked.load(weights[positions], weights[size:], positions)
        model.generator.manual_seed(number)
        batches = [make_batch(number + each, name, sizes(each)) for each in range(steps)]
        trained = masked.train(
            iter([(x.to(device), y.to(device)) for x, y in batches]),
            LOSS,
            learning_rate=rate,
            sgd=sgd,
            sum_grad_squares=True,
        )
        means.append(trained.mean_loss)
        number += steps
    assert trained.grad_squares is not None
    return torch.cat([model.flat, trained.grad_squares]).cpu(), means


@contextmanager
def same_bits_wanted() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("sgd", SETTINGS)
def test_replayed_steps_are_the_plain_ones(sgd: SgdConfig) -> None:
    graphs = StepGraphs(recorder := Again())
    plain, replayed = train(None, sgd), train(graphs.run, sgd)
    assert torch.equal(plain[0], replayed[0]) and plain[1] == replayed[1]
    num_steps = sum(steps for _, steps in DISPATCHES)
    # the second dispatch has another rate, and replays what was recorded in the first
    assert (recorder.num_recorded, graphs.num_replayed) == (1, num_steps - PLAIN_FIRST - 1)
    assert graphs.summary == f"replayed {graphs.num_replayed} steps"


def test_dropout_goes_on_where_the_plain_step_would() -> None:
    graphs = StepGraphs(Again())
    plain, replayed = (train(run, SgdConfig(), "transformer") for run in (None, graphs.run))
    assert torch.equal(plain[0], replayed[0]) and graphs.num_replayed


@pytest.mark.parametrize("wants_bits", [False, True])
@pytest.mark.parametrize("sgd", SETTINGS)
def test_a_replay_that_differs_is_never_used(sgd: SgdConfig, wants_bits: bool) -> None:
    graphs = StepGraphs(Idle())
    plain = train(None, sgd)
    if wants_bits:
        with same_bits_wanted():
            tried = train(graphs.run, sgd)
    else:
        tried = train(graphs.run, sgd)
    assert torch.equal(plain[0], tried[0]) and plain[1] == tried[1]
    assert graphs.num_replayed == 0 and "had not the result of the plain step" in graphs.summary


def test_a_difference_of_one_bit_counts_only_where_the_same_bits_are_wanted() -> None:
    class Rounding(Again):
        def record(self, net: Net, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
            replay, result = super().record(net, step)
            return lambda: (replay(), net.flat.mul_(1 + 2**-23)), result  # type: ignore[return-value]

    close, exact = StepGraphs(Rounding()), StepGraphs(Rounding())
    train(close.run, SgdConfig())
    with same_bits_wanted():
        train(exact.run, SgdConfig())
    assert close.num_replayed and not close.why_plain
    assert exact.why_plain and not exact.num_replayed


def test_what_cannot_be_recorded_stays_plain_and_says_why() -> None:
    graphs = StepGraphs(Refusing())
    plain, tried = (train(run, SgdConfig()) for run in (None, graphs.run))
    assert torch.equal(plain[0], tried[0])
    assert graphs.summary == (
        "a step could not be recorded: operation not permitted when stream is capturing"
    )


def test_a_rare_shape_is_not_recorded() -> None:
    graphs = StepGraphs(recorder := Again())
    sizes = lambda number: 2 if number == 1 else 6  # noqa: E731
    plain, tried = (train(run, SgdConfig(), sizes=sizes) for run in (None, graphs.run))
    assert torch.equal(plain[0], tried[0])
    assert recorder.num_recorded == 1 and graphs.num_replayed


def test_the_number_of_graphs_is_limited() -> None:
    graphs, net = StepGraphs(recorder := Again()), FlatNet("digits_cnn")
    step = LocalSgd(net, LOSS, 0.01, SgdConfig())
    for size in range(2, MAX_GRAPHS + 5):
        for _ in range(PLAIN_FIRST + 1):
            graphs.run(step, make_batch(0, "digits_cnn", size))
    assert recorder.num_recorded == MAX_GRAPHS


def test_steps_that_differ_from_dispatch_to_dispatch_are_plain() -> None:
    graphs, net = StepGraphs(recorder := Again()), FlatNet("digits_cnn")
    step = LocalSgd(net, LOSS, 0.01, SgdConfig(), change=lambda gradients: gradients)
    for _ in range(PLAIN_FIRST + 2):
        graphs.run(step, make_batch(0, "digits_cnn"))
    assert recorder.num_recorded == 0 and graphs.summary == "an objective changes gradients"


class Waits(TorchDispatchMode):
    """Counts the operations for which a host would wait for a GPU."""

    WAIT = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")
    BY_MASK = ("aten::index", "aten::index_put_")  # of as many entries as the mask says

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name
        by_mask = name in self.BY_MASK and any(each.dtype == torch.bool for each in args[1])
        if name in self.WAIT or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["digits_cnn", "transformer"])
@pytest.mark.parametrize("sgd", SETTINGS)
def test_a_step_waits_for_nothing(name: str, sgd: SgdConfig) -> None:
    net = FlatNet(name)
    step = LocalSgd(net, LOSS, 0.01, sgd, torch.ones_like(net.flat), torch.zeros_like(net.flat))
    with Waits() as waits:
        step.run(make_batch(0, name))
    assert waits.found == []
    with waits:
        torch.ones(2)[torch.ones(2) > 0].sum().item()
    assert waits.found == ["aten::index", "aten::_local_scalar_dense"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["digits_cnn", "transformer"])
@pytest.mark.parametrize("sgd", SETTINGS)
def test_cuda_graphs_take_the_plain_steps(name: str, sgd: SgdConfig) -> None:
    graphs = StepGraphs(CudaRecorder())
    with torch.cuda.stream(torch.cuda.Stream()), same_bits_wanted():
        plain, replayed = (train(run, sgd, name, "cuda") for run in (None, graphs.run))
    assert graphs.why_plain == "" and graphs.num_replayed
    assert torch.equal(plain[0], replayed[0]) and plain[1] == replayed[1]


@pytest.mark.gpu
def test_replaying_waits_for_nothing() -> None:
    graphs, net = StepGraphs(CudaRecorder()), FlatNet("digits_cnn", "cuda")
    batch = tuple(each.cuda() for each in make_batch(0, "digits_cnn"))
    step = LocalSgd(net, LOSS, 0.01, SgdConfig(0.9))
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(PLAIN_FIRST + 1):
            graphs.run(step, batch)  # type: ignore[arg-type]
        torch.cuda.set_sync_debug_mode("error")
        try:
            graphs.run(step, batch)  # type: ignore[arg-type]
            step.run(batch)  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert graphs.num_replayed == 1
