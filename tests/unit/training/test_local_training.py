"""What a row asks of local training, in a rank's training of real clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import run_layout, run_weights
from fedgmr_hpc.training.local_training import LocalTraining

SHARDS = ("method=heterofl", "data.partition=shards", "data.shards_per_client=2",
          "data.max_train=400", "data.max_test=20", "train.steps=3")  # fmt: skip


def trained(client: int, *words: str) -> tuple[LocalTraining, torch.Tensor, torch.Tensor]:
    """The training, and the weights of the output layer before and after it."""
    config = load_config(None, [*SHARDS, *words])
    training, weights = LocalTraining(config, FederatedData(config)), run_weights(config)
    layout, flat = run_layout(config), torch.from_numpy(weights)
    num, output = layout.num_prunable, layout["fc2.weight"]
    task = Assignment(client, 0, 1, 0, 1.0, num, 0, 0.1, False)
    training.train(task, flat[:num], flat[num:], None)
    after = training.sub_model.net.flat[output.span].view(output.shape)
    return training, flat[output.span].view(output.shape), after


@pytest.mark.parametrize("client", [0, 4])
def test_a_masked_loss_leaves_the_outputs_of_absent_classes_alone(client: int) -> None:
    training, before, after = trained(client)
    data = training.data
    held = np.unique(data.dataset.train.y[data.train_parts[client]])
    assert 0 < len(held) < 10
    assert np.flatnonzero((before != after).any(1)).tolist() == held.tolist()
    _, before, after = trained(client, "train.masked_loss=false")
    assert (before != after).any(1).all()


def test_a_class_that_nobody_has_is_learnt_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """FEMNIST's 62 outputs for ten digits: those that all clients mask would stay as they began."""
    training, *_ = trained(0)
    own, held_by = set(training.data.held_classes(0).tolist()), FederatedData.held_classes
    nobodys = sorted(set(range(10)) - own)[:2]

    def held(data: FederatedData, client: int) -> np.ndarray:
        return np.setdiff1d(held_by(data, client), nobodys)

    monkeypatch.setattr(FederatedData, "held_classes", held)
    _, before, after = trained(0)
    changed = np.flatnonzero((before != after).any(1)).tolist()
    assert changed == sorted({*own, *nobodys}) and len(changed) < 10


def test_clipped_steps_move_no_further_than_the_limit() -> None:
    (_, before, after), (_, _, free) = trained(0, "train.clip_norm=0.01"), trained(0)
    assert 0 < (after - before).norm() <= 3 * 0.1 * 0.01 < (free - before).norm()


@pytest.mark.parametrize(
    ("words", "is_taught"), [(["method=fjord"], True), (["method=fjord+aux+gmr"], True),
                             (["method=fjord", "train.distillation=false"], False)]
)  # fmt: skip
def test_fjord_teaches_its_narrower_parts(words: list[str], is_taught: bool) -> None:
    config = load_config(None, [*words, "data.max_train=100", "data.max_test=20"])
    training = LocalTraining(config, FederatedData(config))
    task = Assignment(0, 0, 1, 0, 1.0, 0, 0, 0.1, False)
    assert (training._extra_arguments(task)["soft_loss"] is not None) == is_taught
