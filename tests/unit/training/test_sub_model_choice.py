"""Which layers train compact, and which runs say what computes them (docs/compact-training.md)."""

from __future__ import annotations

import pytest

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.sections import CompactBelow
from fedgmr_hpc.models import make_layout
from fedgmr_hpc.training.compact import CompactModel
from fedgmr_hpc.training.kernels.choice import make_kernels
from fedgmr_hpc.training.masked import MaskedModel
from fedgmr_hpc.training.sub_models import compact_choice, kernels_in_use, make_sub_model

NEVER = [f"train.compact_below.{kind}=0" for kind in ("linear", "conv", "embedding")]


@pytest.mark.parametrize(
    ("model", "weight", "density", "is_compact"),
    [
        ("conv2", "fc1.weight", 0.29, True),
        ("conv2", "fc1.weight", 0.31, False),
        ("conv2", "conv2.weight", 0.09, True),
        ("conv2", "conv2.weight", 0.11, False),
        ("transformer", "tokens.weight", 0.49, True),
        ("transformer", "tokens.weight", 0.51, False),
        ("transformer", "positions.weight", 0.01, False),  # small
        ("transformer", "encoder1.q.weight", 0.01, False),  # likewise
        ("digits_cnn", "fc1.weight", 0.01, True),
        ("digits_cnn", "conv2.weight", 0.01, True),
        ("conv2", "fc1.bias", 0.01, False),
    ],
)
def test_a_layer_is_compact_by_its_kind_size_and_density(model, weight, density, is_compact):
    choice = compact_choice(CompactBelow(linear=0.3, conv=0.1, embedding=0.5))
    entry = make_layout(model)[weight]
    assert choice(entry, round(density * entry.size)) == is_compact


@pytest.mark.parametrize("method", ["fedgmr", "wo_gmr", "gmr_fa", "fedgmr_wg"])
def test_methods_of_importance_have_kernels(method):
    config = load_config("digits", [f"method={method}"])
    assert kernels_in_use(config) == make_kernels().name
    assert isinstance(make_sub_model(config), CompactModel)


@pytest.mark.parametrize("words", [["method=fedavg"], ["method=heterofl"], NEVER])
def test_where_no_layer_can_be_compact_no_kernels_are_named(words):
    config = load_config("digits", words)
    assert kernels_in_use(config) == ""
    model = make_sub_model(config)
    assert not isinstance(model, CompactModel)
    assert isinstance(model, MaskedModel) == (words != ["method=heterofl"])


def test_no_layer_is_compact_on_a_gpu():
    assert kernels_in_use(load_config("digits"), "cuda") == ""
