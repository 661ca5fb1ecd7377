"""The transformer (docs/method.md#models) against torch's own encoder layers, its gradient,
causality and dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.fl.submodels import cut_masks, rank_entries
from fedgmr_hpc.models import FlatNet, initial_weights, loss_function, make_layout
from fedgmr_hpc.models.layers import Forward
from fedgmr_hpc.runtime.server import prunable_layers

ENCODER_COSTS = {"q": 1, "k": 1, "v": 1, "o": 1, "linear1": 0.6667, "linear2": 0.6667}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loaded(seed: int = 0) -> FlatNet:
    net = FlatNet("transformer")
    net.flat.copy_(torch.from_numpy(initial_weights("transformer", seed)))
    return net


def tiny() -> FlatNet:
    """8 units, 32 of the FFN, 4 heads: 2 of 24 parts; random weights, norms around 1."""
    net, generator = FlatNet("transformer", kind="width_prefix", density=0.01), torch.Generator()
    generator.manual_seed(0)
    for name, tensor in net.tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        with torch.no_grad():
            tensor.copy_(0.4 * noise + ("norm" in name and name.endswith("weight")))
    return net


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(10_000, (batch, length), generator=torch.Generator().manual_seed(1))


def encoder_of_torch(tensors: dict[str, Tensor], name: str) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(96, 4, 384, 0.0, F.gelu, batch_first=True)
    state = {
        f"self_attn.in_proj_{part}": torch.cat([tensors[f"{name}.{x}.{part}"] for x in "qkv"])
        for part in ("weight", "bias")
    }
    pairs = {"self_attn.out_proj": "o", "linear1": "linear1", "linear2": "linear2"}
    for theirs, ours in {**pairs, "norm1": "norm1", "norm2": "norm2"}.items():
        for part in ("weight", "bias"):
            state[f"{theirs}.{part}"] = tensors[f"{name}.{ours}.{part}"]
    layer.load_state_dict(state)
    return layer


def logits_of_torch(tensors: dict[str, Tensor], samples: Tensor) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (96,), tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    length = samples.shape[1]
    future = nn.Transformer.generate_square_subsequent_mask(length)
    x = norm("norm", tensors["tokens.weight"][samples] + tensors["positions.weight"][:length])
    for name in ("encoder1", "encoder2"):
        x = encoder_of_torch(tensors, name)(x, src_mask=future)
    return linear("decoder.linear2", norm("decoder.norm", F.gelu(linear("decoder.linear1", x))))


def test_prunable_layers_with_their_costs():
    prunable = {e.name: e.cost for e in make_layout("transformer").entries if e.prunable}
    encoders = {
        f"encoder{number}.{name}.weight": cost
        for number in (1, 2)
        for name, cost in ENCODER_COSTS.items()
    }
    embeddings = {"positions.weight": 5.0, "tokens.weight": 0.5}
    assert prunable == {**embeddings, **encoders, "decoder.linear1.weight": 1.0}


ENCODER_SHARES = {  # kept of the encoders' weights, which start much smaller than the embeddings
    None: {0.05: 0.02, 0.1: 0.031, 0.2: 0.078, 0.5: 0.346, 1.0: 1.0},  # what the model asks for
    False: {0.05: 0.02, 0.1: 0.02, 0.2: 0.02, 0.5: 0.02, 1.0: 1.0},
}


@pytest.mark.parametrize("layer_mean", ENCODER_SHARES)
def test_importance_counts_relative_to_a_layers_mean(layer_mean):
    config = make_config({"model": {"name": "transformer"}, "submodel": {"layer_mean": layer_mean}})
    layout, flat = make_layout("transformer"), initial_weights("transformer", 0)
    layers = prunable_layers(config)
    weights = flat[: layout.num_prunable].copy()
    keys = rank_entries(weights, weights, layers, floor_frac=0.02)
    masks = cut_masks(keys, list(ENCODER_SHARES[None]), mask_id=1)
    assert masks.perm is not None
    encoders = np.zeros(layout.num_prunable, np.bool_)
    for entry in layout.entries:
        if entry.prunable and entry.name.startswith("encoder"):
            encoders[entry.span] = True
    shares = {
        density: round(encoders[masks.perm[:count]].sum() / encoders.sum(), 3)
        for density, count in zip(masks.densities, masks.counts, strict=True)
    }
    assert shares == pytest.approx(ENCODER_SHARES[layer_mean], abs=0.006)


def test_biases_of_prunable_layers_are_gated():
    gates = {e.name: e.gated_by for e in make_layout("transformer").entries if e.gated_by}
    layers = [f"encoder{number}.{name}" for number in (1, 2) for name in ENCODER_COSTS]
    assert gates == {f"{name}.bias": f"{name}.weight" for name in [*layers, "decoder.linear1"]}


@pytest.mark.parametrize("length", [1, 7, 128])
def test_forward_pass_is_the_architecture_of_section_8(length):
    net, samples = loaded(), tokens(2, length)
    with torch.no_grad():
        for tensor in net.tensors.values():  # norms and biases that say something
            tensor += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
        expected = logits_of_torch(net.tensors, samples)
        assert torch.allclose(net(samples), expected, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():  # takes another linear kernel
        assert torch.allclose(net(samples), expected, rtol=1e-4, atol=1e-4)


def test_a_token_changes_no_logits_before_it():
    net, samples = tiny(), tokens(1, 6)
    with torch.no_grad():
        logits = net(samples)
        for at in range(6):
            changed = samples.clone()
            changed[0, at] += 1
            differs = (net(changed) != logits).any(2)[0].tolist()
            assert differs == [False] * at + [True] * (6 - at)


def test_gradient_is_the_finite_difference(double):
    net, samples = tiny(), tokens(2, 3)
    labels = torch.tensor([[3, 1, 4], [1, 5, -1]])

    def loss() -> Tensor:
        net.generator.manual_seed(7)  # the same dropout each time
        return loss_function("cross_entropy", net(samples, training=True), labels).sum()

    gradients = torch.autograd.grad(loss(), net.trainable())
    generator, step = torch.Generator().manual_seed(3), 1e-6
    with torch.no_grad():
        for entry, parameter, gradient in zip(
            net.layout.trainable, net.trainable(), gradients, strict=True
        ):
            direction = torch.randn(parameter.shape, generator=generator)
            start = parameter.clone()
            parameter.copy_(start + step * direction)
            above = loss()
            parameter.copy_(start - step * direction)
            slope = float(above - loss()) / (2 * step)
            parameter.copy_(start)
            expected = float((gradient * direction).sum())
            # softmax does not see a shift of all keys: the k bias has no slope
            assert slope == pytest.approx(expected, rel=1e-6, abs=1e-6), entry.name


def test_dropout_draws_from_the_nets_own_generator():
    net, samples, state = tiny(), tokens(2, 5), torch.get_rng_state()
    outcomes = []
    for seed in (5, 5, 6):
        net.generator.manual_seed(seed)
        outcomes.append(net(samples, training=True))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net(samples), net(samples))


def test_dropout_zeroes_a_tenth_and_keeps_the_mean():
    forward = Forward({}, True, torch.Generator().manual_seed(0), {})
    dropped = forward.dropout(torch.full((10_000,), 1.8))
    assert set(dropped.tolist()) == {0.0, 2.0}
    assert 900 < int((dropped == 0).sum()) < 1100  # deviation 30
