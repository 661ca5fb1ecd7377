"""Static batch norms: no statistics in training or on the wire, and true ones for evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fedgmr_hpc
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import FlatNet, initial_weights, make_layout, run_layout, run_weights
from fedgmr_hpc.models.layers import Forward
from fedgmr_hpc.results.verify import verify
from fedgmr_hpc.training.chunks import Evaluation, Part
from fedgmr_hpc.training.evaluator import VersionEvaluator
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.sgd import evaluate, measure_statistics
from fedgmr_hpc.transport.contract import Shared

NUM_STATISTICS = 9600  # a mean and a variance of each of the 4,800 channels of ResNet-18's norms
RESNET = (
    "method=heterofl", "data.name=synthetic_cifar10", "model.name=resnet18", "data.max_train=120",
    "data.max_test=20", "eval.chunk=20", "eval.client_samples=20", "train.steps=1",
    "run.max_rounds=1", "run.interval_rounds=1", "progress=quiet", "checkpoint.every_s=null",
)  # fmt: skip


@pytest.mark.parametrize("row", ["heterofl", "fedrolex", "heterofl+aux+gmr"])
def test_rows_of_the_width_methods_have_static_norms(row: str) -> None:
    config = load_config(None, [f"method={row}"])
    assert (config.train.batch_norm, config.train.clip_norm) == ("static", 1.0)


@pytest.mark.parametrize("kind", ["width_prefix", "importance", "full"])
def test_statistics_lie_behind_what_is_trained_and_sent(kind: Any) -> None:
    tracked, static = (make_layout("resnet18", kind, batch_norm=b) for b in ("tracked", "static"))
    assert static.num_statistics == NUM_STATISTICS and tracked.num_statistics == 0
    assert static.num_weights == static.num_trainable == tracked.num_weights - NUM_STATISTICS
    assert all(entry.trainable for entry in static.entries)
    offset = static.num_weights
    for entry in static.statistics:
        assert (entry.offset, entry.trainable) == (offset, False)
        offset += entry.size


@pytest.mark.parametrize("model", ["digits_cnn", "transformer"])
def test_a_model_without_batch_norms_is_the_same_either_way(model: str) -> None:
    tracked, static = (make_layout(model, "width_prefix", 0.5, b) for b in ("tracked", "static"))
    assert tracked == static
    one, other = (initial_weights(model, 0, "width_prefix", b) for b in ("tracked", "static"))
    assert np.array_equal(one, other)


def test_a_batch_norms_passes_by_hand() -> None:
    values = {"weight": 2.0, "bias": 10.0, "running_mean": 1.0, "running_var": 4.0}
    tensors = {f"n.{part}": torch.tensor([value]) for part, value in values.items()}
    images = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)  # mean 3, variance 4, unbiased 8
    own = pytest.approx([8.0, 12.0], abs=1e-5)
    training = Forward(tensors, True, torch.Generator(), {}, "batch")
    assert training.batch_norm("n", images).flatten().tolist() == own
    assert (float(tensors["n.running_mean"]), float(tensors["n.running_var"])) == (1.0, 4.0)
    measuring = Forward(tensors, False, torch.Generator(), {}, "measured")
    assert measuring.batch_norm("n", images).flatten().tolist() == own
    assert (float(tensors["n.running_mean"]), float(tensors["n.running_var"])) == (3.0, 8.0)


def test_statistics_do_not_depend_on_who_measures_which_chunk() -> None:
    """Ranks that have done other things before, chunks in any order: the same bits."""
    config = load_config(None, RESNET)
    data, weights = FederatedData(config), torch.from_numpy(run_weights(config))
    num = run_layout(config).num_prunable
    starts = range(0, data.pool_size("norms"), 20)
    assert len(starts) == 5  # 120 samples, a tenth of each client's for validation, whole batches
    found = []
    for num_ranks in (1, 2, 4):
        ranks = [VersionEvaluator(config, data) for _ in range(num_ranks)]
        for rank in ranks:
            rank.load_version(weights[:num], weights[num:])
        chunks = dict.fromkeys(starts)
        evaluation = Evaluation(1, Shared(), {Part("norms"): chunks}, waiting={None: []})
        for index, start in enumerate(reversed(starts)):
            rank = ranks[index % num_ranks]
            chunks[start] = rank.measure_statistics(start, start + 20).tolist()
        evaluation.finish_norms(None)
        found.append(evaluation.statistics[None].tobytes())
    assert len(set(found)) == 1
    batches = list(data.pool_batches("norms", 0, data.pool_size("norms")))
    whole = FlatNet("resnet18", kind="width_prefix", batch_norm="static")
    whole.flat.copy_(weights)
    assert measure_statistics(whole, batches).numpy().tobytes() == found[0]


def narrow_net(config: Any, weights: torch.Tensor, density: float) -> FlatNet:
    """The first units of every layer of the whole model."""
    whole = FlatNet("resnet18", kind="width_prefix", batch_norm="static")
    narrow = FlatNet("resnet18", "cpu", "width_prefix", density, batch_norm="static")
    whole.flat.copy_(weights[: len(whole.flat)])
    for entry in narrow.layout.entries:
        corner = whole.tensors[entry.name][tuple(map(slice, entry.shape))]
        narrow.tensors[entry.name].data.copy_(corner)
    return narrow


@pytest.mark.parametrize("shares", [(1.0, 0.05, 0.05)])
def test_a_merge_of_any_widths_has_the_true_running_variance(shares: Any, tmp_path: Path) -> None:
    """Of norm1, without training. With tracked norms and the scaler it was 1.56 to 18.92 times the
    true one, the square of one over the share of units that is left."""
    config = load_config(None, [
        *RESNET, f"clients.shares={list(shares)}", f"clients.count={len(shares)}",
        f"results.path={tmp_path / 'run.h5'}", "train.learning_rate=1e-12", "eval.submodels=true",
    ])  # fmt: skip
    result = fedgmr_hpc.run(config)
    layout, data = run_layout(config), FederatedData(config)
    weights = torch.from_numpy(result.weights)
    assert len(weights) == layout.num_weights + NUM_STATISTICS
    conv1, variance = (weights[layout[name].span] for name in ("conv1.weight", "norm1.running_var"))
    parts = [
        F.conv2d(images, conv1.view(64, 3, 7, 7), stride=2, padding=3).var((0, 2, 3))
        for images, _ in data.pool_batches("norms", 0, data.pool_size("norms"))
    ]
    assert torch.allclose(variance / torch.stack(parts).mean(0), torch.ones(64), rtol=1e-4)
    assert verify(result.path) == []  # its hash is that of weights and statistics
    check_levels(config, data, weights, result)


def check_levels(config: Any, data: FederatedData, weights: torch.Tensor, result: Any) -> None:
    """Sub-models are scored with statistics of their own, and without the scaler."""
    rows, training = result.submodels, LocalTraining(config, data)
    assert len(rows["density"])
    for index, density in enumerate(rows["density"]):
        net = narrow_net(config, weights, density)
        batches = data.pool_batches("norms", 0, data.pool_size("norms"))
        net.statistics.copy_(measure_statistics(net, batches))
        pool = data.pool_batches("test", 0, data.pool_size("test"))
        _, loss_sum = evaluate(net, pool, training.loss, training.hits)
        found = rows["test_loss"][index] * data.num_scored("test")
        assert found == pytest.approx(loss_sum, rel=1e-4)


def test_local_models_are_scored_by_statistics_of_their_own_batches() -> None:
    config = load_config(None, [*RESNET, "train.learning_rate=1e-12"])
    data = FederatedData(config)
    training, density = LocalTraining(config, data), 0.05
    weights = torch.from_numpy(run_weights(config))
    net = narrow_net(config, weights, density)
    num = net.layout.num_prunable
    task = Assignment(3, 0, 1, 0, density, num, 0, 1e-12, True)
    training.train(task, net.flat[:num].clone(), net.flat[num:].clone(), None)
    score = training.score(task)
    net.statistics.copy_(measure_statistics(net, data.train_batches(3, 0, 1)))
    assert torch.allclose(training.sub_model.net.statistics, net.statistics, rtol=1e-4, atol=1e-5)
    pool = data.pool_batches("score", 0, data.pool_size("score"))
    hits, _ = evaluate(net, pool, training.loss, training.hits)
    assert score == pytest.approx(hits / data.pool_size("score"))


@pytest.mark.parametrize(
    ("words", "size"),
    [([], 4992), (["eval.norm_samples=null"], 7936), (["eval.norm_samples=9"], 9)],
)
def test_the_pass_is_over_whole_batches_of_distinct_training_samples(words: Any, size: int) -> None:
    names = ["data.name=synthetic_cifar10", "model.name=cifar_cnn", "data.max_train=8900"]
    data = FederatedData(load_config(None, [*names, *words]))
    pool = data._pools["norms"]
    assert len(pool) == len(set(pool)) == size
    assert not set(pool) & set(np.concatenate(data.validation_parts))


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("train.batch=1", "train.batch"),
        ("eval.norm_samples=1", "eval.norm_samples"),
    ],
)
def test_batches_of_one_are_refused_where_norms_need_a_variance(word: str, key: str) -> None:
    words = [each for each in RESNET if not each.startswith(word.partition("=")[0])]
    need = "must be at least 2 when model.name is 'resnet18' and images are 3x32x32 .got 1"
    with pytest.raises(ValueError, match=f"^{key} {need}"):
        FederatedData(load_config(None, [*words, word]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["method=heterofl", "train.batch_norm=tracked"],
            "submodel.scaler must be false when train.batch_norm is 'tracked'",
        ),
        (
            ["method=fedgmr", "train.distillation=true"],
            "train.distillation must be false when submodel.kind is 'importance'",
        ),
    ],
)
def test_what_rules_one_another_out(words: list[str], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        load_config(None, words)
