"""Weights of a result file as a state dict and as a module."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.models import (
    FlatNet,
    initial_weights,
    make_layout,
    module_with_weights,
    run_layout,
    state_dict_of,
)

LAYOUT = """{
    "columns": ["name", "shape", "offset"],
    "tensors": [["a", [2, 2], 0], ["b", [1], 4]]
}"""


def test_every_tensor_is_cut_from_a_copy_of_the_weights() -> None:
    weights = np.arange(5, dtype=np.float32)
    tensors = state_dict_of(LAYOUT, weights)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "a": [[0, 1], [2, 3]],
        "b": [4],
    }
    tensors["b"].fill_(9)
    assert weights.tolist() == [0, 1, 2, 3, 4]


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="weights must have 5 entries, as the layout .got 4."):
        state_dict_of(LAYOUT, np.zeros(4, np.float32))


@pytest.mark.parametrize("model", ["digits_cnn", "resnet18", "transformer"])
@pytest.mark.parametrize("method", ["fedgmr", "heterofl"])
def test_a_built_in_model_as_a_module_answers_alike(model: str, method: str) -> None:
    config = load_config(None, [f"method={method}", f"model.name={model}"])
    layout, choices = run_layout(config), (config.submodel.kind, config.train.batch_norm)
    net = FlatNet(model, kind=choices[0], batch_norm=choices[1])
    net.flat.copy_(torch.from_numpy(initial_weights(model, 1, *choices)))
    net.statistics.fill_(0.5)
    weights = torch.cat([net.flat, net.statistics]).detach().numpy()
    module = module_with_weights(config, layout.to_json(), weights)
    shape = (9,) if model == "transformer" else (3, 32, 32) if model == "resnet18" else (1, 8, 8)
    samples = torch.ones(2, *shape, dtype=torch.long if model == "transformer" else torch.float32)
    with torch.no_grad():
        assert torch.equal(module(samples), net(samples))
    assert set(module.state_dict()) == {e.name for e in (*layout.entries, *layout.statistics)}
    assert len(list(module.parameters())) == len(layout.trainable)


def as_module(model: str) -> torch.nn.Module:
    config = load_config(None, ["data.name=synthetic_cifar10", f"model.name={model}"])
    return module_with_weights(config, make_layout(model).to_json(), initial_weights(model, 0))


def test_such_a_module_trains() -> None:
    module = as_module("resnet18")
    assert not module.training
    module.train()(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.get_buffer("norm1.running_mean").abs().max() > 0


def test_such_a_module_is_saved_and_moved() -> None:
    module, tokens = as_module("transformer"), torch.ones(1, 3, dtype=torch.long)
    other = pickle.loads(pickle.dumps(module)).to(torch.float64)
    with torch.no_grad():
        assert other(tokens).dtype == torch.float64
        assert torch.allclose(other(tokens).float(), module(tokens), atol=1e-5)
