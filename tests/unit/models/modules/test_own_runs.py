"""Runs of own modules in one process: what a result holds is the module that was evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fedgmr_hpc
from fedgmr_hpc.config.choices import plugins
from fedgmr_hpc.config.choices.registry import MODELS
from fedgmr_hpc.data.federated import FederatedData

PLUGIN = Path(__file__).resolve().parents[3] / "own_models.py"
SHORT = {
    "run.max_rounds": 3, "run.interval_rounds": 3, "data.max_train": 300, "data.max_test": 100,
    "train.steps": 2, "clients.count": 3, "progress": "quiet",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_plugins() -> Iterator[None]:
    """Forget what a test has loaded."""
    yield
    MODELS.forget("own_models")
    plugins._loaded.clear()


@pytest.mark.parametrize(
    ("model", "method", "choices"),
    [
        ("own_resnet", "fedgmr", {"submodel.score": "wg"}),
        ("own_resnet_bn", "fedavg", {}),
        ("own_resnet_bn", "fiarse", {"train.batch_norm": "static"}),
        ("own_vit", "fiarse", {"train.masked_loss": True}),
        ("own_vit", "fedgmr", {"submodel.score": "g"}),
    ],
)
def test_the_module_of_a_result_answers_as_the_run_has_recorded(
    model: str, method: str, choices: dict[str, object], tmp_path: Path
) -> None:
    own = {"plugins": [str(PLUGIN)], "model.name": model, "method": method}
    config = fedgmr_hpc.load_config(
        None, {**SHORT, **own, **choices}, results={"path": str(tmp_path / "r.h5")}
    )
    result = fedgmr_hpc.run(config)
    module, data = result.model(), FederatedData(config)
    assert type(module).__name__ in ("ResNet", "VisionTransformer") and not module.training
    batches = data.pool_batches("test", 0, data.pool_size("test"))
    with torch.inference_mode():
        hits = sum(int((module(x).argmax(1) == y).sum()) for x, y in batches)
    assert result.evaluations["test_accuracy"][-1] == hits / data.pool_size("test")
    state, layout = result.state_dict(), module.state_dict()
    assert all(torch.equal(tensor, layout[name]) for name, tensor in state.items())
    assert set(layout) - set(state) == {name for name in layout if "num_batches" in name}
