"""Narrower networks: what the width methods keep of each model, and that it is a network of its own
(docs/method.md#width-methods)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedgmr_hpc.fl.widths import entry_levels
from fedgmr_hpc.models import (
    MODELS,
    WIDTH_KINDS,
    FlatNet,
    initial_weights,
    input_shape,
    make_layout,
)
from fedgmr_hpc.models.layers import Forward

DENSITIES = (1, 0.5, 0.2, 0.1, 0.05)
FRACTIONS = {  # of the parameters, at these densities
    "conv2": (1, 0.513, 0.208, 0.108, 0.056),
    "vgg11": (1, 0.503, 0.201, 0.100, 0.051),
    "resnet18": (1, 0.505, 0.202, 0.102, 0.052),
    "transformer": (1, 0.688, 0.424, 0.303, 0.214),
}


def share(units: int, density: float) -> int:
    return math.ceil(math.sqrt(density) * units)


def resnet18_parameters(density: float) -> int:
    """Worked out from the widths of the four stages."""
    widths = [share(units, density) for units in (64, 128, 256, 512)]
    count = 3 * 49 * widths[0] + 2 * widths[0] + 100 * widths[3] + 100
    for before, width in zip((widths[0], *widths), widths, strict=False):
        count += 9 * before * width + 27 * width**2 + 8 * width
        count += (before != width) * (before * width + 2 * width)
    return count


def transformer_parameters(density: float) -> int:
    """Worked out from model units d, units of all four heads together, and FFN units."""
    d, heads, ffn = share(96, density), 4 * share(24, density), share(384, density)
    encoder = 3 * heads * (d + 1) + d * (heads + 1) + ffn * (d + 1) + d * (ffn + 1) + 4 * d
    return (128 + 10_001 + 2) * d + 2 * encoder + d * (d + 1) + 2 * d + 10_000 * (d + 1)


def is_kept(model: str, density: float, offset: int = 0) -> np.ndarray:
    """[P + D] which entries of the full vector a density keeps."""
    entries = make_layout(model, "width_rolling").entries
    return np.concatenate([entry_levels(e.axes, (density, 1.0), offset) == 0 for e in entries])


def narrow_and_cut(model: str, density: float, offset: int, seed: int = 0):
    """The narrow network, and the whole one with zeros at what the narrow one lacks."""
    full = FlatNet(model, kind="width_rolling")
    narrow = FlatNet(model, kind="width_rolling", density=density)
    full.flat.copy_(torch.from_numpy(initial_weights(model, seed, "width_rolling")))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in full.tensors.items():
        if "norm" in name:
            with torch.no_grad():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    kept = torch.from_numpy(is_kept(model, density, offset))
    narrow.flat.copy_(full.flat[kept])
    full.flat[~kept] = 0
    return narrow, full


@pytest.mark.parametrize("model", FRACTIONS)
def test_true_fractions_of_the_parameters(model):
    counts = [make_layout(model, "width_prefix", d).num_trainable for d in DENSITIES]
    fractions = [count / make_layout(model).num_trainable for count in counts]
    assert [round(fraction, 3) for fraction in fractions] == list(FRACTIONS[model])


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(
    ("model", "expected"),
    [("resnet18", resnet18_parameters), ("transformer", transformer_parameters)],
)
def test_true_counts_of_ceilings_everywhere(model, expected, density):
    assert make_layout(model, "width_prefix", density).num_trainable == expected(density)


@pytest.mark.parametrize("offset", [0, 1, 77])
@pytest.mark.parametrize("density", [0.5, 0.05])
@pytest.mark.parametrize("model", list(MODELS.homes))
def test_the_narrow_layout_is_the_kept_entries_in_natural_order(model, density, offset):
    full, narrow = make_layout(model, "width_rolling"), make_layout(model, "width_rolling", density)
    for whole, part in zip(full.entries, narrow.entries, strict=True):
        levels = entry_levels(whole.axes, (density, 1.0), offset)
        assert (len(levels), int((levels == 0).sum())) == (whole.size, part.size)
        assert (whole.name, whole.prunable) == (part.name, part.prunable)
    assert int(is_kept(model, density, offset)[: full.num_prunable].sum()) == narrow.num_prunable


@pytest.mark.parametrize("offset", [0, 1, 77])
@pytest.mark.parametrize("model", ["digits_cnn", "cifar_cnn", "conv2", "vgg11", "resnet18"])
def test_the_narrow_network_computes_what_the_whole_one_does_without_the_rest(model, offset):
    narrow, cut = narrow_and_cut(model, 0.2, offset)
    shape = (3, 32, 32) if model == "resnet18" else input_shape(model)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits, expected = narrow(images), cut(images)
    assert expected.std() > 1e-3
    assert torch.allclose(logits, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", WIDTH_KINDS)
@pytest.mark.parametrize(
    ("model", "output"), [("conv2", "fc2"), ("resnet18", "fc"), ("transformer", "decoder.linear2")]
)
def test_only_what_every_width_keeps_whole_is_dense(model, output, kind):
    layout = make_layout(model, kind)
    assert [e.name for e in layout.entries if not e.prunable] == [f"{output}.bias"]
    assert [e.gated_by for e in layout.entries if e.gated_by] == []


def test_the_whole_width_is_the_same_network():
    layout, narrow = make_layout("conv2", "width_prefix"), make_layout("conv2")
    assert {e.name: e.shape for e in layout.entries} == {e.name: e.shape for e in narrow.entries}
    assert is_kept("conv2", 1.0).all()


@pytest.mark.parametrize(
    ("model", "shapes"),
    [  # half of all units
        (
            "conv2",
            {
                "conv1.weight": (16, 1, 5, 5),
                "conv2.weight": (32, 16, 5, 5),
                "fc1.weight": (1024, 32 * 49),
                "fc2.weight": (62, 1024),
                "fc2.bias": (62,),
            },
        ),
        (
            "resnet18",
            {
                "conv1.weight": (32, 3, 7, 7),
                "stage2.block1.conv1.weight": (64, 32, 3, 3),
                "stage2.block1.shortcut.weight": (64, 32, 1, 1),
                "stage4.block2.norm2.running_var": (256,),
                "fc.weight": (100, 256),
            },
        ),
        (
            "transformer",
            {
                "positions.weight": (128, 48),
                "tokens.weight": (10_001, 48),
                "encoder1.q.weight": (48, 48),
                "encoder2.linear2.weight": (48, 192),
                "encoder2.norm2.bias": (48,),
                "decoder.linear2.weight": (10_000, 48),
            },
        ),
    ],
)
def test_shapes_at_a_quarter(model, shapes):
    layout = make_layout(model, "width_prefix", 0.25)
    assert {name: layout[name].shape for name in shapes} == shapes


def test_flattened_images_keep_whole_channels():
    # 512 inputs of the digits' first linear layer are 32 channels of 16 pixels, 16 channels stay
    fc1 = make_layout("digits_cnn", "width_prefix")["fc1.weight"]
    levels = entry_levels(fc1.axes, (0.25, 1.0)).reshape(128, 512)
    assert np.array_equal(levels == 0, np.outer(np.arange(128) < 64, np.arange(512) < 256))


def test_streams_of_blocks_keep_their_first_units():
    layout = make_layout("resnet18", "width_prefix")
    levels = entry_levels(layout["stage2.block1.shortcut.weight"].axes, (0.25, 1.0))
    expected = np.outer(np.arange(128) < 64, np.arange(64) < 32)
    assert np.array_equal(levels.reshape(128, 64) == 0, expected)


def test_heads_are_cut_alike():
    # a quarter keeps 12 of each head's 24 units, and the first 48 of the 96 of the stream
    layout = make_layout("transformer", "width_prefix")
    in_heads, in_stream = np.arange(96) % 24 < 12, np.arange(96) < 48
    for name in "qkv":
        levels = entry_levels(layout[f"encoder2.{name}.weight"].axes, (0.25, 1.0))
        assert np.array_equal(levels.reshape(96, 96) == 0, np.outer(in_heads, in_stream))
    levels = entry_levels(layout["encoder2.o.weight"].axes, (0.25, 1.0)).reshape(96, 96)
    assert np.array_equal(levels == 0, np.outer(in_stream, in_heads))


@pytest.mark.parametrize("density", [0.5, 0.05])
def test_the_narrow_transformer_runs_and_trains(density):
    net = FlatNet("transformer", kind="width_prefix", density=density)
    full = torch.from_numpy(initial_weights("transformer", 0, "width_prefix"))
    net.flat.copy_(full[torch.from_numpy(is_kept("transformer", density))])
    tokens = torch.randint(10_000, (2, 5), generator=torch.Generator().manual_seed(0))
    logits = net(tokens, training=True)
    assert logits.shape == (2, 5, 10_000)
    gradients = torch.autograd.grad(logits.square().mean(), net.trainable())
    silent = {
        entry.name
        for entry, gradient in zip(net.layout.trainable, gradients, strict=True)
        if gradient.abs().max() < 1e-12
    }
    assert silent <= {"encoder1.k.bias", "encoder2.k.bias"}  # softmax does not see them


def scaled_logits(density: float, *, scaler: bool, training: bool) -> torch.Tensor:
    net = FlatNet("digits_cnn", kind="width_prefix", density=density, scaler=scaler)
    for name, tensor in net.tensors.items():
        with torch.no_grad():
            tensor.fill_(0.0 if name.endswith("bias") else 0.01)
    return net(torch.ones(1, 1, 8, 8), training=training).detach()


@pytest.mark.parametrize(
    ("density", "factor"),
    [(1.0, 1.0), (0.25, 8.0), (0.2, (16 / 8) * (32 / 15) * (128 / 58))],
)
def test_the_scaler_divides_each_layer_but_the_last_by_its_kept_share(density, factor):
    # without biases ReLU and pooling hand factors on: those of conv1, conv2 and fc1 multiply
    plain = scaled_logits(density, scaler=False, training=True)
    scaled = scaled_logits(density, scaler=True, training=True)
    assert torch.allclose(scaled, factor * plain, rtol=1e-5)
    assert float(plain.min()) > 0
    assert torch.equal(scaled_logits(density, scaler=True, training=False), plain)


def test_the_scaler_by_hand():
    tensors = {
        "fc.weight": torch.tensor([[2.0, 3.0]]),
        "fc.bias": torch.tensor([1.0]),
        "table.weight": torch.tensor([[5.0], [7.0]]),
    }
    forward = Forward(tensors, True, torch.Generator(), {"fc": 0.5, "table": 0.25})
    assert forward.linear("fc", torch.tensor([[1.0, 1.0]])).tolist() == [[12.0]]  # (5 + 1) / 0.5
    assert forward.embedding("table", torch.tensor([1, 0])).tolist() == [[28.0], [20.0]]
