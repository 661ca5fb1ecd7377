"""Precision: who has it, what it changes in a network, and what stays fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fedgmr_hpc
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.models import run_net, run_weights
from fedgmr_hpc.runtime.roles import check_device
from fedgmr_hpc.training import precision
from fedgmr_hpc.training.evaluator import VersionEvaluator
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.numeric_settings import settled
from fedgmr_hpc.training.precision import (
    AutocastNet,
    computing_in,
    cpu_flags,
    cpu_lacks,
    cuda_lacks,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
IMAGES = {"digits_cnn": (1, 8, 8), "conv2_small": (1, 28, 28), "cifar_cnn": (3, 32, 32)}
IMAGES |= {"resnet18": (3, 32, 32)}


@pytest.mark.parametrize(
    ("wanted", "flags", "reason"),
    [
        ("fp32", (), ""),
        ("bf16", ("avx2", "avx512_bf16"), ""),
        ("bf16", ("asimd", "svebf16"), ""),
        ("bf16", ("avx2", "avx512f", "avx512_vnni"), "this CPU would emulate bf16, having none"),
        ("bf16", (), "this CPU would emulate bf16"),
        ("tf32", ("amx_bf16",), "TF32 is a format of CUDA devices"),
    ],
)
def test_a_cpu_has_what_its_flags_say(wanted: str, flags: tuple[str, ...], reason: str) -> None:
    found = cpu_lacks(wanted, flags)  # type: ignore[arg-type]
    assert found.startswith(reason) and bool(found) == bool(reason)


@pytest.mark.parametrize("wanted", ["bf16", "tf32"])
def test_a_cuda_device_has_what_its_capability_says(wanted: str) -> None:
    assert cuda_lacks(wanted, "H100", (9, 0)) == cuda_lacks(wanted, "A100", (8, 0)) == ""  # type: ignore[arg-type]
    found = cuda_lacks(wanted, "Tesla T4", (7, 5))  # type: ignore[arg-type]
    assert found == f"Tesla T4 has compute capability 7.5, {wanted} needs 8.0"
    assert cuda_lacks("fp32", "Tesla T4", (7, 5)) == ""


def test_flags_are_those_of_the_first_cpu(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: x\nflags\t\t: fpu avx2 amx_bf16\n\nflags\t\t: other\n")
    assert cpu_flags(str(path)) == {"fpu", "avx2", "amx_bf16"}
    path.write_text("Features\t: fp asimd svebf16\n")
    assert "svebf16" in cpu_flags(str(path))
    assert cpu_flags(str(tmp_path / "none")) == frozenset()


def test_a_run_is_refused_where_bf16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(ValueError, match="^train.precision must be 'fp32' when this process on"):
        fedgmr_hpc.run("digits", {"train.precision": "bf16", "device": "cpu"})
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    check_device(load_config("digits", ["train.precision=bf16", "device=cpu"]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", [*IMAGES, "transformer"])
def test_passes_round_to_bf16_and_give_fp32(model: str, device: str) -> None:
    config = load_config(None, [f"model.name={model}"])
    net = run_net(config, device=device)
    net.flat.copy_(torch.from_numpy(run_weights(config)))
    samples = torch.randint(1, 90, (3, 7), device=device)
    if model in IMAGES:
        samples = torch.rand(3, *IMAGES[model], device=device)
    rounded = AutocastNet(net)
    assert rounded.flat.data_ptr() == net.flat.data_ptr()
    exact, logits = net(samples), rounded(samples)
    assert not torch.equal(logits, exact)
    assert (logits - exact).norm() < 0.05 * exact.norm()
    logits = rounded(samples, training=True)
    assert logits.dtype == torch.float32
    gradients = torch.autograd.grad(logits.square().sum(), rounded.trainable())
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert not torch.is_autocast_enabled(torch.device(device).type)


METHODS = ("fedgmr", "heterofl", "fjord", "fiarse", "scaffold", "fedgmr_wg")


def train(method: str, wanted: str, device: str = "cpu") -> tuple[LocalTraining, float]:
    """Train one client from the initial weights."""
    words = [f"method={method}", "data.max_train=200", "train.steps=3", f"train.precision={wanted}"]
    config = load_config("digits", words)
    training = LocalTraining(config, FederatedData(config), device)
    weights = torch.from_numpy(run_weights(config))
    num = training.layout.num_prunable
    task = Assignment(
        client=0,
        density=1.0,
        level=0,
        mask_id=0,
        base_version=0,
        num_kept=num,
        first_step=0,
        learning_rate=0.1,
        measure=True,
    )
    trained = training.train(task, weights[:num], weights[num:], None)
    assert 0 <= training.score(task) <= 1
    return training, trained.mean_loss


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_sub_model_trains_in_bf16(method: str, device: str) -> None:
    exact, exact_loss = train(method, "fp32", device)
    rounded, loss = train(method, "bf16", device)
    values = [training.sub_model.entries()[0] for training in (exact, rounded)]
    assert values[1].dtype == torch.float32
    assert not torch.equal(*values)
    assert loss == pytest.approx(exact_loss, rel=0.02)
    moved = (values[1] - values[0]).norm() / values[0].norm()
    assert 0 < moved < 0.01


def test_versions_are_evaluated_in_fp32() -> None:
    found = []
    for wanted in ("fp32", "bf16"):
        words = [f"train.precision={wanted}", "data.max_train=200", "eval.submodels=true"]
        config = load_config("digits", words)
        data = FederatedData(config)
        evaluator = VersionEvaluator(config, data)
        weights = torch.from_numpy(run_weights(config))
        num = evaluator.num_prunable
        evaluator.load_version(weights[:num], weights[num:])
        found.append(evaluator.evaluate("test", 0, 64))
    assert found[0] == found[1]


def test_tf32_is_set_by_a_training_and_given_back() -> None:
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("an older torch, with one setting for all")
    with settled():
        assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        with computing_in("tf32"):
            assert (conv.fp32_precision, matmul.fp32_precision) == ("tf32", "tf32")
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        with computing_in("fp32"), computing_in("bf16"):
            assert (conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
