"""Factories of modules: how they are registered, what they make, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgmr_hpc.models import MODELS, find_model, register_model
from fedgmr_hpc.models.modules.model import ModuleModel
from fedgmr_hpc.models.modules.streams import seeded

SHAPE = (1, 8, 8)


def linear(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, num_classes))


def model(make: object, shape: tuple[int | None, ...] = SHAPE) -> ModuleModel:
    return ModuleModel("mine", make, shape)  # type: ignore[arg-type]


@pytest.fixture
def registered() -> Iterator[None]:
    yield
    MODELS.forget(__name__)


class Answering(nn.Module):
    """Answers with whatever it is told."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.linear, self.answer = nn.Linear(64, 10), answer

    def forward(self, images: Tensor) -> object:
        return self.answer(self.linear(images.flatten(1)))  # type: ignore[operator]


class Forgetful(nn.Module):
    """Has state that does not travel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen += len(images)
        return self.linear(images.flatten(1))


class Restless(Forgetful):
    """Changes its weights in evaluation."""

    def forward(self, images: Tensor) -> Tensor:
        self.linear.bias.data.add_(1)
        return self.linear(images.flatten(1))


def test_initial_weights_are_those_of_the_module_under_the_seed() -> None:
    own = model(linear)
    flat = own.initial_weights(7, "importance", "tracked")
    torch.manual_seed(7)
    state = linear().state_dict()
    layout = own.layout("importance", 1.0, "tracked")
    for entry in layout.entries:
        assert flat[entry.span].tobytes() == state[entry.name].numpy().tobytes()
    assert (layout.num_prunable, layout.num_weights) == (512, 610)
    assert flat.tobytes() != own.initial_weights(8, "importance", "tracked").tobytes()


def test_a_factory_draws_from_seeded_streams_and_leaves_them_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), np.random.rand(), random.random()

    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(1)
    expected = draw()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(1)
    with seeded(5):
        inside = draw()
    assert draw() == expected
    with seeded(5):
        assert draw() == inside


def test_importance_is_relative_where_an_embedding_may_be_cut() -> None:
    def embedding() -> nn.Module:
        return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5))

    assert model(embedding).has_relative_scores and not model(linear).has_relative_scores


@pytest.mark.parametrize(
    ("shape", "given", "is_text", "fits"),
    [
        ((1, 8, 8), (1, 8, 8), False, True),
        ((1, 8, 8), (3, 8, 8), False, False),
        ((1, None, None), (1, 8, 8), False, True),
        ((1, None, None), (64,), False, False),
        ((64,), (64,), False, True),
        ((64,), (63,), False, False),
        ((20,), (7,), True, True),
        ((20,), (21,), True, False),
    ],
)
def test_which_shapes_fit(
    shape: tuple[int | None, ...], given: tuple[int, ...], is_text: bool, fits: bool
) -> None:
    def text() -> nn.Module:
        return nn.Sequential(nn.Embedding(30, 4), nn.Linear(4, 30))

    wrong = model(text if is_text else linear, shape).misfit(given, 10, is_text)
    assert (wrong is None) == fits
    assert fits or str(wrong).endswith(f", not {given}")


def test_it_may_have_more_outputs_than_there_are_classes() -> None:
    assert model(linear).misfit(SHAPE, 9) is None
    assert model(linear).misfit(SHAPE, 11) == "has 10 outputs, not 11"
    assert model(linear).count_outputs(SHAPE) == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Answering(lambda x: (x, x)),
         "returns a tuple, where logits [B, classes] are needed"),
        (lambda: Answering(lambda x: x.argmax(1)),
         "returns int64 numbers, where logits [B, classes] are needed"),
        (lambda: Answering(lambda x: x[0]),
         "returns [10] of a batch [2, 1, 8, 8], not logits [B, classes]"),
        (lambda: Answering(lambda x: x * random.random()),
         "draws random numbers of Python or NumPy, where only torch's are repeatable"),
        (Forgetful, "changes seen in training, which does not travel with the model: "
         "a persistent float32 buffer would"),
        (Restless, "changes linear.bias in evaluation, where nothing may change"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 10)),
         "fails on samples (1, 8, 8): RuntimeError: mat1 and mat2 shapes cannot be multiplied "
         "(2x64 and 3x10)"),
    ],
)  # fmt: skip
def test_what_would_fail_in_the_middle_of_a_run_is_found_before(make: object, message: str) -> None:
    assert str(model(make).misfit(SHAPE, 10)).startswith(message)


def test_sparse_gradients_are_refused() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Embedding(30, 4, sparse=True), nn.Linear(4, 30))

    need = "has sparse gradients of 0.weight, where dense ones are needed"
    assert model(make, (9,)).misfit((9,), 30, is_text=True) == need


def broken() -> nn.Module:
    raise RuntimeError("no such\nthing")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken, "model mine: its factory fails: RuntimeError: no such thing ("),
        (lambda: 3, "what model mine makes must be an nn.Module (got int)"),
        (lambda: ONE, "what model mine makes must be new each time: several networks"),
        (nn.ReLU, "model mine: it must have parameters that are trained"),
    ],
)
def test_factories_that_fail_are_told_in_one_sentence(make: object, message: str) -> None:
    own = model(make)
    with pytest.raises(ValueError) as error:
        own.build(0)
        own.layout("importance", 1.0, "tracked")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


ONE = nn.Linear(1, 1)


def test_the_place_of_a_failure_is_named() -> None:
    with pytest.raises(ValueError, match=rf"\({Path(__file__)}:\d+\)"):
        model(broken).build(0)


def test_width_kinds_ask_for_axes() -> None:
    with pytest.raises(ValueError) as error:
        model(linear).layout("width_prefix", 1.0, "tracked")
    assert str(error.value) == (
        "submodel.kind must be 'importance', 'magnitude' or 'full' when model.name is 'mine' "
        "(got 'width_prefix'): a module does not say along which axes it can become narrower"
    )


def test_a_factory_may_take_the_number_of_classes(registered: None) -> None:
    register_model("told", input_shape=SHAPE)(linear)
    register_model("untold", input_shape=SHAPE)(lambda: linear(4))
    assert find_model("told", 7).count_outputs(SHAPE) == 7
    assert find_model("told").count_outputs(SHAPE) == 10
    assert find_model("untold", 7).count_outputs(SHAPE) == 4
    layouts = [find_model(n, 7).layout("full", 1.0, "tracked") for n in ("told", "untold")]
    assert [layout.num_classes for layout in layouts] == [7, None]
    assert '"num_classes": 7' in layouts[0].to_json() and "num_cl" not in layouts[1].to_json()


def test_a_class_of_modules_is_a_factory_and_names_may_be_one_text(registered: None) -> None:
    @register_model("as_class", input_shape=[1, 8, 8], prunable="linear.weight")
    class Net(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.linear = nn.Linear(64, num_classes)

        def forward(self, images: Tensor) -> Tensor:
            return F.relu(self.linear(images.flatten(1)))

    own = find_model("as_class", 3)
    assert isinstance(own.build(0), Net)
    assert own.misfit(SHAPE, 3) is None
    assert own.layout("importance", 1.0, "tracked").num_prunable == 192
