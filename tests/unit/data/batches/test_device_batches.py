"""Batches made on a device have the bits of those made on the host, for every data set and pool.

The operations of the device run on CPU tensors here; where there is a GPU, on that, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.data import imagenet, stackoverflow
from fedgmr_hpc.data.batches import device_batches, on_device, on_host
from fedgmr_hpc.data.batches.device_batches import DeviceBatches, fits
from fedgmr_hpc.data.batches.draws import BatchSpec, draw_changes
from fedgmr_hpc.data.datasets import Dataset
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.data.splits import RowGuard, Split, row_checksums

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.gpu),
]
KINDS = ("digits", "femnist", "cifar10", "imagenet100", "stackoverflow")
MODELS = {"digits": "digits_cnn", "femnist": "conv2_small", "cifar10": "cifar_cnn"}
FEW = ("data.max_train=90", "data.max_test=30", "clients.count=3", "train.batch=7", "eval.chunk=8")


def federated(kind: str, *words: str) -> FederatedData:
    """Return few samples with the traits of a data set; stand-ins where it needs files."""
    base = kind if kind in MODELS else "cifar10"
    name = "digits" if base == "digits" else f"synthetic_{base}"
    keys = [f"data.name={name}", f"model.name={MODELS[base]}", "data.partition=iid", *FEW, *words]
    data = FederatedData(load_config(None, keys))
    if kind == "imagenet100":
        traits = replace(imagenet.TRAITS, input_shape=(3, 32, 32))
        data.dataset = replace(data.dataset, traits=traits)
    if kind == "stackoverflow":
        splits = [
            sentences(len(each), len(each)) for each in (data.dataset.train, data.dataset.test)
        ]
        data.dataset = Dataset("text", *splits, traits=stackoverflow.TRAITS)
    return data


def sentences(num: int, seed: int) -> Split:
    """Return sentences of 2 to 12 of 40,000 words, which 16 bits with a sign do not hold."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 13, num)
    x = rng.integers(1, 40_000, (num, 16)) * (np.arange(16) < lengths[:, None])
    return Split(x.astype(np.uint16), lengths - 1, np.zeros(num, np.int32))


def assert_same(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> None:
    for each, other in zip(found, wanted, strict=True):
        assert (each.dtype, each.shape) == (other.dtype, other.shape)
        assert each.is_contiguous() and torch.equal(each.cpu(), other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "sent"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_a_device_are_those_of_the_host(kind: str, keeps: bool, device: str) -> None:
    data = federated(kind)
    steps = [(2, 5, 3), (0, 0, 1), (1, 4, 4)]  # (client, first, number), in any order
    made = [lambda args=args: data.train_batches(*args) for args in steps]
    pools = ("test", "validation", "score", "norms")
    made += [lambda pool=pool: data.pool_batches(pool, 1, 18) for pool in pools]
    host = [list(make()) for make in made]
    data._on_device = DeviceBatches(data.dataset, torch.device(device), keeps)
    for make, wanted in [*zip(made, host, strict=True)][::-1]:
        found = list(make())
        assert {tensor.device.type for batch in found for tensor in batch} == {device}
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop"])
def test_every_change_can_be_asked_of_any_images(augment: str) -> None:
    data = federated("femnist", f"data.augment={augment}")
    host = list(data.train_batches(1, 0, 3))
    data._on_device = DeviceBatches(data.dataset, torch.device("cpu"), keeps=True)
    for one, other in zip(data.train_batches(1, 0, 3), host, strict=True):
        assert_same(one, other)
    plain = next(federated("femnist").train_batches(1, 0, 1))
    assert not torch.equal(host[0][0], plain[0]) and torch.equal(host[0][1], plain[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(5, 40), st.integers(5, 40), st.integers(0, 2**31))
def test_crops_and_shifts_of_any_size_have_the_bits_of_the_host(
    channels: int, height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (6, channels, height, width), dtype=np.uint8)
    for augment, change in on_host.CHANGES.items():
        draws = draw_changes(augment, 6, height, width, rng)  # type: ignore[arg-type]
        assert draws is not None
        found = on_device.CHANGES[augment](torch.from_numpy(x), torch.from_numpy(draws))
        assert np.array_equal(found.numpy(), change(x, draws))


def test_every_crop_of_an_edge_is_resized_as_on_the_host() -> None:
    size = 48
    sizes = np.arange(1, size + 1)
    boxes = np.stack([0 * sizes, size - sizes[::-1], sizes, sizes[::-1], sizes % 2], axis=1)
    x = np.random.default_rng(0).integers(0, 256, (size, 3, size, size), dtype=np.uint8)
    found = on_device.crop_and_resize(torch.from_numpy(x), torch.from_numpy(boxes))
    assert np.array_equal(found.numpy(), on_host.crop_and_resize(x, boxes))


def damaged(data: Dataset) -> Dataset:
    """Sample 3 of the training split has other bytes than its checksum says."""
    x = data.train.x.copy()
    guard = RowGuard(row_checksums(x), "train_x.npy")
    x[3] += 1
    return replace(data, train=Split(x, data.train.y, data.train.group, guard=guard))


def test_a_damaged_sample_is_found_on_its_way_to_the_device() -> None:
    data, cpu = damaged(federated("digits").dataset), torch.device("cpu")
    with pytest.raises(RunError, match="sample 3 was damaged"):
        DeviceBatches(data, cpu, keeps=True)
    sent = DeviceBatches(data, cpu, keeps=False).make(
        data.train, [BatchSpec(np.array(rows)) for rows in ([1], [2], [1, 3], [4])]
    )
    assert [next(sent)[1].tolist() for _ in range(2)] == [[data.train.y[1]], [data.train.y[2]]]
    with pytest.raises(RunError, match="sample 3 was damaged"):
        next(sent)


def test_samples_are_kept_where_they_fit_into_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    data = federated("digits").dataset  # 120 images of 64 bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 120 * 64, 10**9))
    fit = [fits(data, torch.device("cuda"), frac) for frac in (0.25, 0.2499, 0.0)]
    assert fit == [True, False, False]


def test_a_device_is_filled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = federated("digits")
    filled: list[torch.device] = []

    def record(dataset: Dataset, device: torch.device, keeps: bool) -> DeviceBatches:
        filled.append(device)
        made = DeviceBatches(dataset, torch.device("cpu"), keeps)
        made.device = device
        return made

    monkeypatch.setattr("fedgmr_hpc.data.federated.DeviceBatches", record)
    monkeypatch.setattr("fedgmr_hpc.data.federated.fits", lambda *_: True)
    for device in ("cpu", "cuda:1", "cuda:1"):
        data.place(device)
    assert filled == [torch.device("cuda:1")]


def test_only_positions_and_draws_travel_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = federated("cifar10")
    data._on_device = DeviceBatches(data.dataset, torch.device("cpu"), keeps=True)
    sent: list[torch.Size] = []
    pinned: Callable[..., torch.Tensor] = device_batches._pinned
    monkeypatch.setattr(
        device_batches, "_pinned", lambda x, device: sent.append(x.shape) or pinned(x, device)
    )
    assert len(list(data.train_batches(0, 0, 5))) == 5
    assert sent == [(5 * 7, 1 + 3)]
