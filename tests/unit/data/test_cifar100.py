"""CIFAR-100: binary and pickled files, of which the fine labels count."""

import pickle

import numpy as np
import pytest

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.datasets import load_dataset
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.data.registry import describe_missing


def pixels(num):
    """Red 10, green 20, blue 30, plus the number of the record."""
    planes = np.repeat(np.array([10, 20, 30], np.uint8), 1024)
    return planes[None] + np.arange(num, dtype=np.uint8)[:, None]


def binary(fine):
    records = zip(fine, pixels(len(fine)), strict=True)
    return b"".join(bytes([label // 5, label]) + row.tobytes() for label, row in records)


def pickled(fine, **changes):
    batch = {
        "filenames": ["a.png"] * len(fine),
        "batch_label": "training batch 1 of 1",
        "fine_labels": list(fine),
        "coarse_labels": [label // 5 for label in fine],
        "data": pixels(len(fine)),
    }
    return pickle.dumps(batch | changes, protocol=2)


def write(folder, encode, suffix):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"train{suffix}").write_bytes(encode([99, 0, 42]))
    (folder / f"test{suffix}").write_bytes(encode([7, 8]))


@pytest.fixture
def load(tmp_path):
    def load_from():
        data = DataConfig(name="cifar100", root=str(tmp_path), cache=str(tmp_path / "cache"))
        return load_dataset(data, seed=0)

    return load_from


@pytest.mark.parametrize(
    "place, encode, suffix",
    [
        ("cifar-100-binary", binary, ".bin"),
        ("cifar-100-python", pickled, ""),
        (".", binary, ".bin"),
        (".", pickled, ""),
    ],
)
def test_fine_labels_and_pixels_of_every_layout(tmp_path, load, place, encode, suffix):
    write(tmp_path / place, encode, suffix)
    assert describe_missing("cifar100", str(tmp_path)) == []
    data = load()
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([99, 0, 42], [7, 8])
    assert data.train.x[2, :, 5, 6].tolist() == [12, 22, 32]
    assert (data.num_classes, data.input_shape) == (100, (3, 32, 32))
    assert data.augment == "crop_flip"


@pytest.mark.parametrize(
    "content, said",
    [
        (
            binary([1])[:-1],
            "3073 bytes, expected a positive whole number of 3074-byte records (2",
        ),
        (binary([1]) + binary([100]), "record 1 has label 100, expected 0..99"),
    ],
)
def test_a_bad_binary_file_is_one_line(tmp_path, load, content, said):
    write(tmp_path, binary, ".bin")
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(ValueError) as error:
        load()
    assert str(error.value).startswith(f"{tmp_path / 'train.bin'}: {said}")


def test_a_pickle_without_fine_labels_is_refused(tmp_path, load):
    write(tmp_path, pickled, "")
    (tmp_path / "test").write_bytes(pickled([1, 2], fine_labels=None))
    with pytest.raises(ValueError, match='test: has no list "fine_labels" of integers, expected'):
        load()


def test_a_model_of_ten_classes_does_not_fit(tmp_path):
    from fedgmr_hpc.config.files import load_config

    write(tmp_path, binary, ".bin")
    words = ("data.name=cifar100", f"data.root={tmp_path}", f"data.cache={tmp_path / 'cache'}")
    with pytest.raises(ValueError, match=r"\(got 'vgg11'\): vgg11 has 10 outputs, not 100$"):
        FederatedData(load_config(None, [*words, "model.name=vgg11"]))
