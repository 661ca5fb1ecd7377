"""Local training and evaluation, on nets of a few weights (docs/method.md#local-training)."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedgmr_hpc.models import FlatNet, initial_weights, loss_function, make_layout
from fedgmr_hpc.training.masked import GatedBias, MaskedModel
from fedgmr_hpc.training.sgd import SgdConfig, evaluate

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.gpu),
]
GATED = [GatedBias(slice(4, 6), slice(0, 4), 2)]


class TwoUnits:
    """Logits [B, 2] = images [B, 2] @ weight.T + bias; flat: weight [2, 2], bias [2]."""

    shapes = ((2, 2), (2,))

    def __init__(self, device: str = "cpu") -> None:
        self.flat = torch.zeros(6, device=device)
        self.parameters = [nn.Parameter(view) for view in self.split(self.flat)]

    def split(self, flat: Tensor) -> list[Tensor]:
        return [flat[:4].view(2, 2), flat[4:].view(2)]

    def trainable(self) -> list[nn.Parameter]:
        return self.parameters

    def __call__(self, images: Tensor, training: bool = False) -> Tensor:
        weight, bias = self.parameters
        return images @ weight.T + bias


class OneWeight:
    """Outputs [B] = w x."""

    def __init__(self) -> None:
        self.flat = torch.zeros(1)
        self.parameter = nn.Parameter(self.flat)

    def split(self, flat: Tensor) -> list[Tensor]:
        return [flat]

    def trainable(self) -> list[nn.Parameter]:
        return [self.parameter]

    def __call__(self, images: Tensor, training: bool = False) -> Tensor:
        return images * self.parameter


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Gradient w x^2 for target 0."""
    return 0.5 * (outputs - targets) ** 2


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).sum()


def sum_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * ((outputs - targets) ** 2).sum(1)


def ones(steps: int):
    return iter([(torch.ones(1), torch.zeros(1))] * steps)


def train_one(
    steps: int, learning_rate=0.1, w=1.0, momentum=0.0, decay=0.0, clip_norm=None, **more
):
    sub_model = MaskedModel(OneWeight(), 1, [])
    sub_model.load(torch.tensor([w]), torch.zeros(0), None)
    sgd = SgdConfig(momentum, decay, clip_norm)
    trained = sub_model.train(
        ones(steps), half_square, learning_rate=learning_rate, sgd=sgd, **more
    )
    return float(sub_model.net.flat), trained


def load_two(positions, values, bias=(5.0, 7.0), device="cpu") -> MaskedModel:
    sub_model = MaskedModel(TwoUnits(device), 4, GATED)
    at = None if positions is None else torch.tensor(positions)
    sub_model.load(torch.tensor(values), torch.tensor(bias), at)
    return sub_model


def random_batches(seed: int, steps: int, shape, classes: int):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        images = torch.rand(4, *shape, generator=generator)
        yield images, torch.randint(classes, (4,), generator=generator)


def targets_two(steps: int, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.rand(3, 2, generator=generator), torch.rand(3, 2, generator=generator)


def train_two(sub_model: MaskedModel, steps=4, learning_rate=0.1, **choices):
    return sub_model.train(
        targets_two(steps),
        sum_square,
        learning_rate=learning_rate,
        sgd=SgdConfig(**choices),
        sum_grad_squares=True,
    )


# --- the step


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("limit", [0.05, 1.0, 100.0])
def test_clipped_steps_are_torchs(limit, is_masked):
    """`clip_grad_norm_`, then SGD, on a gradient of which a mask leaves what is kept."""
    kept = torch.tensor([1.0, 0.0, 1.0, 1.0] if is_masked else [1.0] * 4).view(2, 2)
    values, bias = torch.tensor([[1.0, 0.0], [-2.0, 3.0]]), torch.tensor([5.0, 7.0])
    weight, shift = (nn.Parameter(each.clone()) for each in (values, bias))
    sgd = torch.optim.SGD([weight, shift], 0.1, momentum=0.9, weight_decay=0.2)
    for images, targets in targets_two(4):
        sgd.zero_grad()
        sum_square(images @ weight.T + shift, targets).mean().backward()
        weight.grad *= kept
        nn.utils.clip_grad_norm_([weight, shift], limit)
        sgd.step()
        weight.data *= kept
    positions = [0, 2, 3] if is_masked else None
    held = [1.0, -2.0, 3.0] if is_masked else values.flatten().tolist()
    sub_model = load_two(positions, held)
    train_two(sub_model, momentum=0.9, weight_decay=0.2, clip_norm=limit)
    expected = torch.cat([weight.detach().flatten(), shift.detach()])
    assert torch.allclose(sub_model.net.flat, expected, rtol=1e-5)
    assert not torch.allclose(sub_model.net.flat[4:], bias, rtol=1e-3)


def test_scores_sum_gradients_as_they_are_before_clipping():
    limits = (None, 0.1)
    plain, clipped = (train_one(1, w=3.0, clip_norm=each, sum_grad_squares=True) for each in limits)
    assert clipped[0] == pytest.approx(3.0 - 0.1 * 0.1, rel=1e-5)
    assert plain[1].grad_squares.tolist() == clipped[1].grad_squares.tolist() == [9.0]


@pytest.mark.parametrize(
    ("choices", "after"),
    [
        ({}, [0.9, 0.81, 0.729]),
        ({"momentum": 0.9}, [0.9, 0.72, 0.486]),  # velocities 1, .9 + .9, 1.62 + .72
        ({"decay": 0.5}, [0.85, 0.7225, 0.614125]),  # gradient w + .5 w
        ({"momentum": 0.5, "decay": 1.0}, [0.8, 0.54, 0.302]),  # velocities 2, 1 + 1.6, 1.3 + 1.08
    ],
)
def test_sgd_literals(choices, after):
    found = [train_one(steps, **choices)[0] for steps in (1, 2, 3)]
    assert found == pytest.approx(after, rel=1e-6)


def test_momentum_is_reset_on_receipt():
    sub_model = MaskedModel(OneWeight(), 1, [])
    found = []
    for _ in range(2):
        sub_model.load(torch.tensor([1.0]), torch.zeros(0), None)
        sub_model.train(ones(2), half_square, learning_rate=0.1, sgd=SgdConfig(0.9))
        found.append(float(sub_model.net.flat))
    assert found == pytest.approx([0.72, 0.72], rel=1e-6)


def test_gradients_are_the_mean_over_the_batch_and_losses_weigh_samples():
    sub_model = MaskedModel(OneWeight(), 1, [])
    sub_model.load(torch.tensor([2.0]), torch.zeros(0), None)
    batches = iter([(torch.tensor([1.0, 3.0]), torch.zeros(2)), (torch.ones(1), torch.zeros(1))])
    trained = sub_model.train(batches, half_square, learning_rate=0.1, sgd=SgdConfig())
    # gradient 2 (1 + 9) / 2 = 10: w = 1; then 1: w = .9; losses (2 + 18) / 2 and .5
    assert float(sub_model.net.flat) == pytest.approx(0.9, rel=1e-6)
    assert trained.num_samples == 3
    assert trained.mean_loss == pytest.approx((2 * 10 + 0.5) / 3, rel=1e-6)


def test_squared_gradients_are_summed_over_steps_without_weight_decay():
    assert train_one(2, sum_grad_squares=True)[1].grad_squares.item() == pytest.approx(1.81)
    decayed = train_one(2, decay=0.5, sum_grad_squares=True)[1].grad_squares.item()
    assert decayed == pytest.approx(1 + 0.85**2)
    assert train_one(1)[1].grad_squares is None


def test_every_step_serves_the_links():
    steps = itertools.count()
    train_one(5, after_step=lambda: next(steps))
    assert next(steps) == 5


@pytest.mark.parametrize("positions", [None, [0, 3], [0, 1]])
def test_a_learning_rate_of_zero_returns_every_bit(positions):
    values = [0.1, -0.2, 0.3, 1e-30][: len(positions or range(4))]
    sub_model = load_two(positions, values)
    train_two(sub_model, learning_rate=0.0, momentum=0.9, weight_decay=0.1)
    kept, dense = sub_model.entries()
    assert torch.equal(kept, torch.tensor(values))
    assert dense.tolist() == [5, 7]


# --- density 1


@pytest.mark.parametrize("as_positions", [False, True])
@pytest.mark.parametrize("choices", [{}, {"momentum": 0.9, "weight_decay": 1e-2}])
def test_density_one_is_the_dense_parent_bit_for_bit(as_positions, choices):
    layout = make_layout("digits_cnn")
    size, flat = layout.num_prunable, torch.from_numpy(initial_weights("digits_cnn", 0))
    net, parent = FlatNet("digits_cnn"), FlatNet("digits_cnn")
    gated = [
        GatedBias(e.span, layout[e.gated_by].span, e.size) for e in layout.entries if e.gated_by
    ]
    sub_model, positions = MaskedModel(net, size, gated), None
    if as_positions:
        generator = torch.Generator().manual_seed(1)
        positions = torch.randperm(size, generator=generator)
    sub_model.load(flat[:size] if positions is None else flat[positions], flat[size:], positions)
    batches = list(random_batches(0, 6, (1, 8, 8), 10))
    sub_model.train(
        iter(batches),
        lambda logits, labels: loss_function("cross_entropy", logits, labels),
        learning_rate=0.1,
        sgd=SgdConfig(**choices),
    )
    parent.flat.copy_(flat)
    optimiser = torch.optim.SGD(parent.trainable(), 0.1, fused=True, **choices)
    for images, labels in batches:
        optimiser.zero_grad()
        nn.functional.cross_entropy(parent(images), labels, reduction="none").mean().backward()
        optimiser.step()
    assert not torch.equal(parent.flat, flat)
    assert torch.equal(net.flat, parent.flat)
    values, dense = sub_model.entries()
    assert torch.equal(values, parent.flat[:size] if positions is None else parent.flat[positions])
    assert torch.equal(dense, parent.flat[size:])


# --- masks


def test_a_sub_model_is_zero_outside_its_mask():
    net = load_two([1, 2], [3.0, 4.0]).net
    assert net.flat.tolist() == [0, 3, 4, 0, 5, 7]


@pytest.mark.parametrize("choices", [{}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_masked_entries_stay_exactly_zero(choices):
    sub_model = load_two([1, 2], [3.0, 4.0])
    trained = train_two(sub_model, steps=20, **choices)
    assert sub_model.net.flat[[0, 3]].tolist() == [0, 0]
    assert trained.grad_squares[[0, 3]].tolist() == [0, 0]
    assert (sub_model.net.flat[[1, 2, 4, 5]] != torch.tensor([3.0, 4, 5, 7])).all()


def test_kept_entries_train_as_in_the_dense_model_with_zeros():
    sub_model = load_two([1, 2], [3.0, 4.0])
    train_two(sub_model, steps=1)
    (images, targets), *_ = targets_two(1)
    weight = torch.tensor([[0.0, 3], [4, 0]])
    errors = images @ weight.T + torch.tensor([5.0, 7]) - targets
    gradient = errors.T @ images / 3
    expected = (weight - 0.1 * gradient).flatten()[[1, 2]]
    assert torch.allclose(sub_model.entries()[0], expected, rtol=1e-5)


def test_loading_again_forgets_the_last_mask():
    sub_model = load_two([1], [3.0])
    train_two(sub_model)
    sub_model.load(torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 7]), None)
    assert sub_model.net.flat.tolist() == [1, 2, 3, 4, 5, 7]
    train_two(sub_model)
    assert (sub_model.net.flat != torch.tensor([1.0, 2, 3, 4, 5, 7])).all()
    sub_model.load(torch.tensor([9.0]), torch.tensor([5.0, 7]), torch.tensor([3]), mask_id=1)
    assert sub_model.net.flat.tolist() == [0, 0, 0, 9, 0, 7]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=8))
def test_a_net_that_served_other_clients_is_as_good_as_new(served):
    """Masks of three refreshes, of any size up to everything, one after the other on one net."""
    orders = ((0, 1, 2, 3), (3, 1, 0, 2), (2, 0, 3, 1))
    used = MaskedModel(TwoUnits(), 4, GATED)
    for mask_id, count in served:
        fresh = MaskedModel(TwoUnits(), 4, GATED)
        for sub_model in (used, fresh):
            positions = torch.tensor(orders[mask_id][:count], dtype=torch.int64)
            values = torch.arange(1.0, count + 1)
            sub_model.load(values, torch.tensor([5.0, 7]), positions, mask_id=mask_id)
            train_two(sub_model, momentum=0.9)
        assert torch.equal(used.net.flat, fresh.net.flat)
        for one, other in zip(used.entries(), fresh.entries(), strict=True):
            assert torch.equal(one, other)


def test_entries_come_in_the_order_of_the_positions():
    sub_model = load_two([2, 0], [4.0, 3.0])
    assert sub_model.net.flat[[0, 2]].tolist() == [3, 4]
    assert sub_model.entries()[0].tolist() == [4, 3]
    other = torch.arange(6.0)
    assert [part.tolist() for part in sub_model.entries(other)] == [[2, 0], [4, 5]]


@pytest.mark.parametrize("positions", [None, [0, 3], [0, 1]])
def test_entries_are_copies(positions):
    sub_model = load_two(positions, [1.0] * len(positions or range(4)))
    kept, dense = sub_model.entries()
    before = kept.tolist(), dense.tolist()
    sub_model.net.flat.fill_(-1)
    assert (kept.tolist(), dense.tolist()) == before


def test_loading_leaves_what_it_was_given():
    values, dense = torch.ones(2), torch.tensor([5.0, 7])
    sub_model = MaskedModel(TwoUnits(), 4, GATED)
    sub_model.load(values, dense, torch.tensor([0, 1]))
    train_two(sub_model)
    assert (values.tolist(), dense.tolist()) == ([1, 1], [5, 7])


# --- bias gating (docs/method.md#prunable-weights)


def test_a_bias_without_incoming_weights_has_no_effect():
    net = load_two([0, 1], [1.0, 1.0]).net  # unit 1 has no weight
    with torch.no_grad():
        assert net(torch.tensor([[1.0, 1.0]])).tolist() == [[7, 0]]


def test_a_bias_with_one_incoming_weight_counts():
    net = load_two([0, 3], [1.0, 1.0]).net
    with torch.no_grad():
        assert net(torch.tensor([[1.0, 2.0]])).tolist() == [[6, 9]]


class Operations(TorchDispatchMode):
    """Notes the operations of torch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name().partition("::")[2].partition(".")[0])
        return function(*args, **(kwargs or {}))


def test_to_load_and_to_return_entries_never_waits_for_a_gpu():
    sub_model, values, dense = MaskedModel(TwoUnits(), 4, GATED), torch.ones(2), torch.ones(2)
    with Operations() as seen:
        sub_model.load(values, dense, torch.tensor([0, 1]), mask_id=1, density=0.5)
        assert sub_model.net.flat.tolist() == [1, 1, 0, 0, 1, 0]
        assert sub_model.entries()[1].tolist() == [1, 1]
    assert "clone" in seen.names
    assert seen.names.isdisjoint({"nonzero", "index", "index_put_", "_local_scalar_dense"})


def test_a_kept_weight_of_value_zero_still_opens_its_gate():
    net = load_two([0, 3], [1.0, 0.0]).net
    with torch.no_grad():
        assert net(torch.tensor([[1.0, 2.0]])).tolist() == [[6, 7]]


@pytest.mark.parametrize("choices", [{}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_a_gated_bias_returns_unchanged(choices):
    sub_model = load_two([0, 1], [1.0, 1.0])
    trained = train_two(sub_model, steps=10, **choices)
    _, dense = sub_model.entries()
    assert dense[1] == 7
    assert dense[0] != 5
    assert trained.grad_squares[5] == 0
    with torch.no_grad():
        assert sub_model.net(torch.tensor([[1.0, 1.0]]))[0, 1] == 0


# --- devices: everything is handed over in host memory


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("positions", [None, [0, 3], [0, 1]])
@pytest.mark.parametrize("choices", [{}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_a_device_trains_as_the_cpu(device, positions, choices):
    found = []
    for place in ("cpu", device):
        sub_model = load_two(positions, [1.0, 2, 3, 4][: len(positions or range(4))], device=place)
        trained = train_two(sub_model, **choices)
        assert trained.grad_squares.device.type == place
        parts = [*sub_model.entries(), *sub_model.entries(trained.grad_squares)]
        assert all(part.device.type == "cpu" for part in parts)
        found.append((trained, parts))
    (trained, parts), (other, others) = found
    assert other.num_samples == trained.num_samples
    assert other.mean_loss == pytest.approx(trained.mean_loss, rel=1e-5)
    for part, same in zip(parts, others, strict=True):
        assert torch.allclose(part, same, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_evaluates_as_the_cpu(device):
    net = load_two(None, [1.0, 0, 0, 1], bias=(0.0, 0.0), device=device).net
    batches = [(torch.tensor([[2.0, 1], [1, 2]]), torch.tensor([0, 0]))]
    assert evaluate(net, batches, lambda logits, labels: logits[:, 0] - labels, correct) == (1, 3.0)


@pytest.mark.parametrize("device", DEVICES)
def test_entries_of_a_device_are_pinned(device):
    for part in load_two([0, 3], [1.0, 2], device=device).entries():
        assert part.is_pinned() == (device == "cuda")


def test_positions_move_to_the_device_once_per_mask():
    """The meta device takes the place of one: positions for it must be moved, nothing is worked."""
    sub_model = MaskedModel(TwoUnits("meta"), 4, GATED)
    natural = torch.tensor([3, 2, 1, 0])

    def load(mask_id: int) -> Tensor:
        sub_model.load(torch.ones(4), torch.ones(2), natural.clone(), mask_id=mask_id)
        assert sub_model._kept is not None and sub_model._kept.device.type == "meta"
        return sub_model._kept

    first = load(1)
    assert load(1) is first
    assert load(2) is not first
    assert list(sub_model._moved) == [(2, 4)]  # those of the old mask are let go


# --- evaluation


def test_evaluate_counts_correct_predictions_and_sums_losses():
    net = load_two(None, [1.0, 0, 0, 1], bias=(0.0, 0.0)).net  # logits are the images
    batches = [
        (torch.tensor([[2.0, 1], [1, 2], [5, 0]]), torch.tensor([0, 0, 0])),
        (torch.tensor([[0.0, 1]]), torch.tensor([1])),
    ]
    hits, loss = evaluate(net, batches, lambda logits, labels: logits[:, 0] - labels, correct)
    assert (hits, loss) == (3, 2 + 1 + 5 - 1)
    assert isinstance(hits, int) and isinstance(loss, float)


def test_evaluation_of_nothing_is_zero():
    assert evaluate(OneWeight(), [], half_square, correct) == (0, 0.0)
