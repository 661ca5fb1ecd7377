"""The models (docs/method.md#models) and their layer costs (docs/method.md#layer-costs)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.rules import USED_WITH
from fedgmr_hpc.models import (
    MODELS,
    FlatNet,
    accepts,
    find_model,
    initial_weights,
    input_shape,
    make_layout,
    run_weights,
)
from fedgmr_hpc.models.layers import with_kaiming_convolutions

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.gpu),
]
CONVNETS = ("digits_cnn", "conv2", "vgg11")
CONV2_COSTS = {"conv1": 5.56e-6, "conv2": 4.106e-5, "fc1": 6.525e-6}
VGG11_COSTS = {
    "conv1": 5.56e-6,
    "conv2": 5.03e-5,
    "conv3": 1.80e-5,
    "conv4": 1.95e-5,
    "conv5": 1.07e-5,
    "conv6": 1.20e-5,
    "conv7": 1.48e-5,
    "conv8": 9.60e-6,
    "fc1": 8.13e-6,
    "fc2": 6.78e-6,
}
BOUNDS = {  # (model, tensor): half width of its uniform start
    ("conv2", "conv1.weight"): 1 / 5,  # fan in 25
    ("conv2", "conv1.bias"): 1 / 5,
    ("conv2", "conv2.weight"): 1 / math.sqrt(800),
    ("conv2", "conv2.bias"): 1 / math.sqrt(800),
    ("conv2", "fc1.weight"): math.sqrt(6 / 2048),  # Kaiming fan out
    ("conv2", "fc1.bias"): 1 / 56,  # fan in 3136
    ("conv2", "fc2.weight"): math.sqrt(6 / 62),
    ("conv2", "fc2.bias"): 1 / math.sqrt(2048),
    ("vgg11", "conv1.weight"): 1 / math.sqrt(27),
    ("vgg11", "conv8.weight"): 1 / math.sqrt(4608),
    ("vgg11", "fc1.weight"): math.sqrt(6 / 512),  # Kaiming fan in, a = 0
    ("vgg11", "fc2.weight"): math.sqrt(6 / 512),
    ("vgg11", "fc3.weight"): math.sqrt(6 / (3.25 * 512)),  # a = 1.5
    ("vgg11", "fc3.bias"): 1 / math.sqrt(512),
    ("resnet18", "fc.weight"): math.sqrt(6 / (3.25 * 512)),
    ("resnet18", "fc.bias"): 1 / math.sqrt(512),
    ("transformer", "encoder2.q.weight"): 1 / math.sqrt(96),
    ("transformer", "encoder1.o.bias"): 1 / math.sqrt(96),
    ("transformer", "encoder1.linear2.bias"): 1 / math.sqrt(384),
    ("transformer", "decoder.linear2.weight"): 1 / math.sqrt(96),
}
DEVIATIONS = {  # (model, tensor): standard deviation of its normal start
    ("resnet18", "conv1.weight"): math.sqrt(2 / (64 * 49)),  # Kaiming fan out
    ("resnet18", "stage3.block1.conv1.weight"): math.sqrt(2 / (256 * 9)),
    ("resnet18", "stage3.block1.shortcut.weight"): math.sqrt(2 / 256),
    ("transformer", "tokens.weight"): 1.0,
    ("transformer", "positions.weight"): 1.0,
    ("transformer", "encoder2.linear1.weight"): 0.02,
    ("transformer", "encoder1.linear2.weight"): 0.02,
}
CONSTANTS = {
    ("resnet18", "norm1.weight"): 1,
    ("resnet18", "stage2.block1.shortcut_norm.bias"): 0,
    ("resnet18", "stage4.block2.norm2.running_mean"): 0,
    ("resnet18", "stage4.block2.norm2.running_var"): 1,
    ("transformer", "encoder1.norm2.weight"): 1,
    ("transformer", "decoder.norm.bias"): 0,
}


def conv2_of_torch() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 2048), nn.ReLU(), nn.Linear(2048, 62),
    )  # fmt: skip


def vgg11_of_torch() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    layers += [nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10))


def copy_parameters(net: FlatNet, parent: nn.Sequential) -> None:
    """Layer by layer in forward order, whatever the order in the flat vector."""
    names = list(dict.fromkeys(e.name.split(".")[0] for e in net.layout.entries))
    modules = [m for m in parent if hasattr(m, "weight")]
    with torch.no_grad():
        for name, module in zip(names, modules, strict=True):
            module.weight.copy_(net.tensors[f"{name}.weight"])
            module.bias.copy_(net.tensors[f"{name}.bias"])


@pytest.mark.parametrize(
    ("model", "num_weights", "num_prunable"),
    [
        ("conv2", 6_603_710, 6_474_528),
        ("vgg11", 9_750_922, 9_742_016),
        # 144 + 4,608 + 65,536 prunable; 1,280 of the output layer, 16 + 32 + 128 + 10 biases
        ("digits_cnn", 71_754, 70_288),
        ("resnet18", 11_227_812, 11_046_080),
        ("transformer", 2_175_760, 1_202_784),
    ],
)
def test_parameter_counts(model, num_weights, num_prunable):
    layout = make_layout(model)
    assert (layout.num_trainable, layout.num_prunable) == (num_weights, num_prunable)
    # 20 norms over 64 (5), 128, 256 and 512 (5 each) channels have two statistics a channel
    num_buffers = 9_600 if model == "resnet18" else 0
    assert layout.num_weights == num_weights + num_buffers
    assert len(initial_weights(model, 0)) == layout.num_weights


@pytest.mark.parametrize(
    ("model", "shape", "classes"),
    [
        ("conv2", (1, 28, 28), 62),
        ("vgg11", (3, 32, 32), 10),
        ("digits_cnn", (1, 8, 8), 10),
        ("resnet18", (3, 168, 168), 100),
    ],
)
def test_images_and_classes(model, shape, classes):
    assert (input_shape(model), find_model(model).num_outputs) == (shape, classes)
    assert FlatNet(model)(torch.zeros(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    ("model", "shape", "num_classes", "wrong"),
    [
        ("conv2", (1, 28, 28), 62, None),
        ("vgg11", (3, 32, 32), 8, None),  # outputs may be left over
        ("vgg11", (3, 28, 28), 10, "takes images (3, 32, 32), not (3, 28, 28)"),
        ("vgg11", (20,), 10, "takes images (3, 32, 32), not (20,)"),
        ("conv2", (1, 28, 28), 63, "has 62 outputs, not 63"),
        ("resnet18", (3, 32, 32), 100, None),
        ("resnet18", (3, 168, 168), 101, "has 100 outputs, not 101"),
        (
            "resnet18",
            (3, 31, 31),
            100,
            "takes square images (3, size, size) of size 32 or more, not (3, 31, 31)",
        ),
        (
            "resnet18",
            (3, 64, 32),
            100,
            "takes square images (3, size, size) of size 32 or more, not (3, 64, 32)",
        ),
        ("transformer", (128,), 10_000, None),
        ("transformer", (129,), 10_000, "takes sequences of 1 to 128 tokens, not (129,)"),
        ("transformer", (1, 8, 8), 10, "takes sequences of 1 to 128 tokens, not (1, 8, 8)"),
        ("transformer", (20,), 10_001, "has 10000 outputs, not 10001"),
    ],
)
def test_which_data_fit(model, shape, num_classes, wrong):
    assert accepts(model, shape, num_classes) == wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("vgg16",),
            "model.name must be 'digits_cnn', 'cifar_cnn', 'conv2', 'conv2_small', 'vgg11', ",
        ),
        (("conv2", "width"), "submodel.kind must be 'full', 'importance', "),
        (("conv2", "width_prefix", 0.0), "density must be more than 0 and at most 1 when "),
        (("conv2", "full", 0.5), "density must be 1 when submodel.kind is 'full' (got 0.5)"),
    ],
)
def test_what_no_layout_is_for(arguments, message):
    with pytest.raises(ValueError) as error:
        make_layout(*arguments)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("model", list(MODELS.homes))
def test_prunable_tensors_come_first_without_gaps(model):
    layout = make_layout(model)
    ends = [entry.offset + entry.size for entry in layout.entries]
    assert [entry.offset for entry in layout.entries] == [0, *ends[:-1]]
    assert ends[-1] == layout.num_weights
    places = [(not entry.prunable, not entry.trainable) for entry in layout.entries]
    assert places == sorted(places)
    prunable = [entry for entry in layout.entries if entry.prunable]
    assert prunable[-1].offset + prunable[-1].size == layout.num_prunable


def test_conv2_offsets():
    offsets = {e.name: e.offset for e in make_layout("conv2").entries}
    prunable = {"conv1.weight": 0, "conv2.weight": 800, "fc1.weight": 52_000}
    assert {name: offsets[name] for name in prunable} == prunable
    assert min(v for name, v in offsets.items() if name not in prunable) == 6_474_528


@pytest.mark.parametrize("model", CONVNETS)
def test_biases_and_the_output_layer_are_dense(model):
    layout = make_layout(model)
    output = max(e.name for e in layout.entries if e.name.startswith("fc")).split(".")[0]
    dense = {e.name for e in layout.entries if not e.prunable}
    assert dense == {e.name for e in layout.entries if e.name.endswith("bias")} | {
        f"{output}.weight"
    }


@pytest.mark.parametrize("model", CONVNETS)
def test_each_bias_is_gated_by_its_own_prunable_weight(model):
    layout = make_layout(model)
    for entry in layout.entries:
        layer, kind = entry.name.split(".")
        is_gated = kind == "bias" and layout[f"{layer}.weight"].prunable
        assert entry.gated_by == (f"{layer}.weight" if is_gated else None)


@pytest.mark.parametrize(("model", "costs"), [("conv2", CONV2_COSTS), ("vgg11", VGG11_COSTS)])
def test_layer_costs(model, costs):
    prunable = [e for e in make_layout(model).entries if e.prunable]
    assert {e.name.removesuffix(".weight"): e.cost for e in prunable} == costs


def test_missing_layer_costs_are_one():
    assert {e.cost for e in make_layout("digits_cnn").entries} == {1.0}


@pytest.mark.parametrize(("model", "tensor"), list(BOUNDS))
def test_initial_bounds(model, tensor):
    values = initial_weights(model, 0)[make_layout(model)[tensor].span]
    bound = BOUNDS[model, tensor]
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert np.abs(values).max() > bound * (1 - 8 / len(values))  # misses once in e^8 draws
    assert abs(values.mean()) < 4 * bound / math.sqrt(3 * len(values))
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=3 / math.sqrt(len(values)))


@pytest.mark.parametrize(("model", "tensor"), list(DEVIATIONS))
def test_initial_deviations(model, tensor):
    values = initial_weights(model, 0)[make_layout(model)[tensor].span]
    deviation = DEVIATIONS[model, tensor]
    assert values.std() == pytest.approx(deviation, rel=3 / math.sqrt(2 * len(values)))
    assert abs(values.mean()) < 4 * deviation / math.sqrt(len(values))
    assert np.abs(values).max() > 2.5 * deviation  # a uniform of that deviation ends at 1.7


@pytest.mark.parametrize(("model", "tensor"), list(CONSTANTS))
def test_initial_constants(model, tensor):
    values = initial_weights(model, 0)[make_layout(model)[tensor].span]
    assert set(values) == {CONSTANTS[model, tensor]}


@pytest.mark.parametrize("model", ["resnet18", "transformer"])
def test_initial_weights_do_not_depend_on_how_sub_models_are_cut(model):
    one, other = initial_weights(model, 1), initial_weights(model, 1, "width_prefix")
    layout, other_layout = make_layout(model), make_layout(model, "width_prefix")
    assert [e.name for e in layout.entries] != [e.name for e in other_layout.entries]
    for entry in layout.entries:
        assert np.array_equal(one[entry.span], other[other_layout[entry.name].span])


@pytest.mark.parametrize(
    ("model", "tensor", "variance"),
    [
        ("conv2", "conv1.weight", 2 / 25),
        ("vgg11", "conv1.weight", 2 / 27),
        ("vgg11", "conv8.weight", 2 / 4608),
        ("vgg11", "conv8.bias", 1 / (3 * 4608)),  # as torch starts it
        ("vgg11", "fc1.weight", 2 / 512),
    ],
)
def test_kaiming_gives_convolutions_a_variance_of_two_over_fan_in(model, tensor, variance):
    config = load_config(None, [f"model.name={model}", "model.init=kaiming"])
    values = run_weights(config)[make_layout(model)[tensor].span]
    assert values.var() == pytest.approx(variance, rel=6 / math.sqrt(len(values)))
    assert np.abs(values).max() <= math.sqrt(3 * variance) * (1 + 1e-6)


def test_kaiming_changes_the_weights_of_convolutions_alone_by_a_factor():
    paper, kaiming = (
        run_weights(load_config(None, [f"model.init={init}"])) for init in ("paper", "kaiming")
    )
    assert paper.tobytes() == initial_weights("digits_cnn", 0).tobytes()
    for entry in make_layout("digits_cnn").entries:
        factor = math.sqrt(6) if entry.name in ("conv1.weight", "conv2.weight") else 1.0
        np.testing.assert_allclose(kaiming[entry.span], factor * paper[entry.span], rtol=1e-5)


def test_kaiming_is_for_the_models_that_it_changes():
    changed = {
        name
        for name in MODELS.homes
        if with_kaiming_convolutions(MODELS[name].layers) != MODELS[name].layers
    }
    assert changed == set(USED_WITH["model.init"][1])


def test_initial_weights_are_a_function_of_the_seed():
    one, again, other = (initial_weights("digits_cnn", seed) for seed in (3, 3, 4))
    assert one.dtype == np.float32
    assert one.tobytes() == again.tobytes()
    assert not np.any(one == other)


def test_layers_of_one_shape_start_apart():
    layout, flat = make_layout("transformer"), initial_weights("transformer", 0)
    q, k, q_above = (
        flat[layout[f"{name}.weight"].span] for name in ("encoder1.q", "encoder1.k", "encoder2.q")
    )
    assert not np.any(q == k) and not np.any(q == q_above)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", [*CONVNETS, "resnet18", "transformer"])
def test_writing_the_flat_vector_loads_the_model(model, device):
    net = FlatNet(model, device)
    assert net.flat.device.type == device
    net.flat.copy_(torch.arange(len(net.flat)))
    for entry, parameter in zip(net.layout.trainable, net.trainable(), strict=True):
        assert parameter.shape == entry.shape
        assert parameter.data_ptr() == net.flat.data_ptr() + 4 * entry.offset
        assert parameter.flatten()[0] == entry.offset


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("model", "parent"), [("conv2", conv2_of_torch), ("vgg11", vgg11_of_torch)]
)
def test_forward_pass_is_the_architecture_of_section_8(model, parent, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    net, parent = FlatNet(model, device), parent().to(device)
    net.flat.copy_(torch.from_numpy(initial_weights(model, 1)))
    copy_parameters(net, parent)
    images = torch.rand(3, *input_shape(model), generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    with torch.no_grad():
        expected = parent(images)
        assert torch.allclose(net(images), expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():  # takes another linear kernel
        assert torch.allclose(net(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", CONVNETS)
def test_logits_do_not_depend_on_how_images_lie_in_memory(model):
    net, (channels, height, width) = FlatNet(model), input_shape(model)
    net.flat.copy_(torch.from_numpy(initial_weights(model, 1)))
    generator = torch.Generator().manual_seed(0)
    turned = torch.rand(2, channels, width, height, generator=generator).transpose(2, 3)
    strided = torch.rand(4, channels, height, width, generator=generator)[::2]
    with torch.no_grad():
        for images in (turned, strided):
            expected = net(images.contiguous())
            assert torch.allclose(net(images), expected, rtol=1e-4, atol=1e-5)


def test_layout_as_json_names_every_tensor():
    layout = make_layout("conv2")
    parsed = json.loads(layout.to_json())
    rows = [dict(zip(parsed["columns"], row, strict=True)) for row in parsed["tensors"]]
    fc1 = {"shape": [2048, 3136], "offset": 52_000, "prunable": True, "trainable": True}
    assert {"name": "fc1.weight", **fc1} in rows
    assert len(rows) == len(layout.entries) == 8
