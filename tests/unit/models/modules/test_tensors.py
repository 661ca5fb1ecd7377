"""Which tensors of a module masks may cut, which are dense, and which are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedgmr_hpc.models.modules.tensors import read_tensors


class Shared(nn.Module):
    """An embedding whose weight is the output layer's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight


class Buffers(nn.Module):
    """One buffer of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("state", torch.zeros(3))
        self.register_buffer("constant", torch.full((3,), -torch.inf), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("nothing", None)


def prunable(module: nn.Module, **choices: object) -> list[str]:
    return [entry.name for entry in read_tensors(module, **choices) if entry.prunable]  # type: ignore[arg-type]


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 3, 3), nn.Flatten(),
        nn.Linear(12, 4), nn.Linear(4, 2),
    )  # fmt: skip


def test_weights_of_all_layers_but_the_last_are_prunable() -> None:
    entries = read_tensors(small_net())
    assert [e.name for e in entries if e.prunable] == ["0.weight", "2.weight", "4.weight"]
    assert [e.name for e in entries if not e.trainable] == ["1.running_mean", "1.running_var"]
    dense = ["0.bias", "1.weight", "1.bias", "2.bias", "4.bias", "5.weight", "5.bias"]
    assert [e.name for e in entries if not e.prunable and e.trainable] == dense
    assert {e.cost for e in entries} == {1.0}


def test_a_bias_is_gated_where_its_units_are_rows_of_a_prunable_weight() -> None:
    gates = {e.name: e.gated_by for e in read_tensors(small_net()) if e.gated_by}
    assert gates == {"0.bias": "0.weight", "4.bias": "4.weight"}  # not the transposed one


def test_a_bias_that_masks_cut_is_not_gated_as_well() -> None:
    entries = read_tensors(small_net(), prunable=("0", "4.weight"))
    assert [e.name for e in entries if e.prunable] == ["0.weight", "0.bias", "4.weight"]
    assert {e.name: e.gated_by for e in entries if e.gated_by} == {"4.bias": "4.weight"}


def test_packed_and_separate_projections_of_attention_are_prunable() -> None:
    packed = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 2))
    assert prunable(packed) == ["0.in_proj_weight", "0.out_proj.weight"]
    gates = {e.name: e.gated_by for e in read_tensors(packed) if e.gated_by}
    assert gates["0.in_proj_bias"] == "0.in_proj_weight"
    separate = nn.Sequential(nn.MultiheadAttention(4, 2, kdim=3), nn.Linear(4, 2))
    assert prunable(separate) == [
        *(f"0.{part}_proj_weight" for part in "qkv"),
        "0.out_proj.weight",
    ]


def test_an_only_layer_is_prunable() -> None:
    assert prunable(nn.Linear(3, 2)) == ["weight"]


def test_a_shared_weight_is_there_once_and_dense_if_the_output_layer_uses_it() -> None:
    entries = read_tensors(Shared())
    assert [e.name for e in entries] == ["embed.weight", "hidden.weight", "hidden.bias"]
    assert [e.name for e in entries if e.prunable] == ["hidden.weight"]


def test_only_buffers_of_floats_that_a_state_dict_has_travel() -> None:
    names = [e.name for e in read_tensors(Buffers())]
    assert names == ["linear.weight", "linear.bias", "state"]


def test_frozen_parameters_stay_at_home() -> None:
    net = small_net()
    net[0].requires_grad_(False)
    assert prunable(net) == ["2.weight", "4.weight"]
    assert not any(e.name.startswith("0.") for e in read_tensors(net))


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (["4"], ["4.weight", "4.bias"]),
        (["*.weight"], ["0.weight", "1.weight", "2.weight", "4.weight", "5.weight"]),
        (lambda name, each: each.dim() == 4, ["0.weight", "2.weight"]),
    ],
)
def test_the_author_says_what_is_prunable(choice: object, names: list[str]) -> None:
    assert prunable(small_net(), prunable=choice) == names


def test_costs_are_given_by_name() -> None:
    entries = read_tensors(small_net(), costs={"0.weight": 2.0, "4": 0.5})
    assert {e.name: e.cost for e in entries if e.cost != 1} == {
        "0.weight": 2.0,
        "4.weight": 0.5,
        "4.bias": 0.5,
    }


def cumulative_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, momentum=None))


def with_mask() -> nn.Module:
    module = nn.Linear(1, 1)
    module.register_buffer("mask", torch.full((2,), -torch.inf))
    return module


@pytest.mark.parametrize(
    ("module", "choices", "message"),
    [
        (nn.ReLU(), {}, "it must have parameters that are trained"),
        (nn.Linear(2, 2).requires_grad_(False), {}, "it must have parameters that are trained"),
        (nn.LayerNorm(2), {}, "it must have a convolution, a linear or an embedding layer: else "
         "name with prunable= what masks may cut"),
        (nn.LazyLinear(2), {}, "weight must have a shape: pass a batch through it in the factory"),
        (nn.Linear(2, 2).double(), {}, "weight must be float32 (got float64)"),
        (nn.Linear(2, 2).half(), {}, "weight must be float32 (got float16)"),
        (with_mask(), {}, "mask must be finite: persistent=False keeps a constant out"),
        (cumulative_norm(), {}, "1.momentum must be a number (got null)"),
        (small_net(), {"prunable": ["stem"]},
         "a name must be that of a parameter or module (got 'stem')"),
        (small_net(), {"prunable": ["0.wieght"]}, "a name must be that of a parameter or module "
         "(got '0.wieght'); did you mean '0.weight'?"),
        (small_net(), {"prunable": lambda name, each: False},
         "prunable must choose at least one parameter"),
        (small_net(), {"costs": {"0": 0}}, "the cost of 0 must be more than 0 (got 0)"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_sentence(
    module: nn.Module, choices: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        read_tensors(module, **choices)  # type: ignore[arg-type]
    assert str(error.value) == message
