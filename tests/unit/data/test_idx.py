"""MNIST, Fashion-MNIST and EMNIST from idx files: layouts, labels, and every kind of damage."""

import gzip

import numpy as np
import pytest

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.datasets import load_dataset, prepare
from fedgmr_hpc.data.formats import idx
from fedgmr_hpc.data.registry import describe_missing


def encode(values):
    """An idx file of bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def images(num, start=0):
    """Image n has n + `start` in its first row, and 255 in the pixel at row 2, column 5."""
    x = np.zeros((num, 28, 28), np.uint8)
    x[:, 0] = np.arange(num)[:, None] + start
    x[:, 2, 5] = 255
    return x


def write(folder, stems=("train", "t10k"), labels=((5, 0, 9), (3, 1)), pack=False, **changed):
    """Both splits; `changed` has other contents by the first part of a file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, y in zip(stems, labels, strict=True):
        contents = {"images-idx3": encode(images(len(y))), "labels-idx1": encode(np.array(y))}
        for what, content in contents.items():
            content = changed.get(f"{stem}_{what[:6]}", content)
            path = folder / f"{stem}-{what}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(content, mtime=0) if pack else content)


@pytest.fixture
def load(tmp_path):
    def load_from(name="mnist", root=tmp_path, **keys):
        data = DataConfig(name=name, root=str(root), cache=str(tmp_path / "cache"), **keys)
        return load_dataset(data, seed=0)

    return load_from


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    "name, place",
    [
        ("mnist", "."),
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "fashion_mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("fashion_mnist", "."),
    ],
)
def test_four_files_are_read_plain_or_packed(tmp_path, load, name, place, pack):
    write(tmp_path / place, pack=pack)
    data = load(name)
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([5, 0, 9], [3, 1])
    assert data.train.x[:, 0, 0, 9].tolist() == [0, 1, 2]
    assert data.train.x[1, 0, 2, 5] == 255 and data.train.x[1, 0, 5, 2] == 0
    assert (data.num_classes, data.input_shape, data.augment) == (10, (1, 28, 28), "none")
    assert data.batch(data.train, np.array([0]))[0].max() == 1


@pytest.mark.parametrize(
    "name, split, num_classes",
    [("emnist_balanced", "balanced", 47), ("emnist_byclass", "byclass", 62)],
)
def test_emnist_is_set_upright(tmp_path, load, name, split, num_classes):
    stems = f"emnist-{split}-train", f"emnist-{split}-test"
    write(tmp_path / "gzip", stems, ((46, 0), (3,)), pack=True)
    data = load(name)
    assert data.train.y.tolist() == [46, 0]
    assert data.train.x[1, 0, 5, 2] == 255 and data.train.x[1, 0, 2, 5] == 0
    assert data.num_classes == num_classes


def test_letters_are_counted_from_one_in_the_file(tmp_path, load):
    stems = "emnist-letters-train", "emnist-letters-test"
    write(tmp_path, stems, ((1, 26), (2,)))
    data = load("emnist_letters")
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([0, 25], [1])
    assert data.num_classes == 26
    write(tmp_path, stems, ((0, 26), (2,)))
    with pytest.raises(ValueError, match=r"-ubyte: record 0 has label 0, expected 1\.\.26"):
        load("emnist_letters")


BOMB = gzip.compress(bytes([0, 0, 8, 3]) + (2**31).to_bytes(4, "big") * 3 + bytes(1 << 20), mtime=0)
GREAT = bytes([0, 0, 8, 1]) + (2**30).to_bytes(4, "big")


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("train_images", encode(np.zeros(3)), "begins with the number 2049, expected 2051, an idx"),
        ("train_labels", encode(images(3)), "begins with the number 2051, expected 2049, an idx"),
        ("train_images", b"", "begins with the number 0, expected 2051, an idx file of images"),
        ("train_images", encode(images(3))[:9], "ends within its header, expected an idx file of"),
        ("train_images", encode(images(3))[:-1], "holds 2351 of the 2352 values of its header"),
        (
            "train_images",
            encode(images(3)) + b"\0",
            "holds more than the 2352 values of its",
        ),
        ("train_images", encode(images(3)[:, 1:]), "has images of 27x28, expected 28x28"),
        ("train_images", encode(images(0)), "holds 0x28x28 values, expected at least one and at"),
        ("train_images", BOMB, "holds 2147483648x2147483648x2147483648 values, expected at least"),
        (
            "train_labels",
            encode(np.array([1, 2])),
            "3 images and 2 labels, expected as many",
        ),
        ("train_labels", encode(np.array([1, 2, 10])), "record 2 has label 10, expected 0..9"),
        (
            "train_labels",
            gzip.compress(GREAT, mtime=0),
            "holds 0 of the 1073741824 values of its header",
        ),
        (
            "train_labels",
            gzip.compress(encode(np.array([1, 2, 3])), mtime=0)[:-9],
            "cannot be read (",
        ),
        ("train_labels", b"\x1f\x8b" + bytes(20), "cannot be read ("),
    ],
)
def test_damage_is_one_line_with_the_files_name(tmp_path, load, name, content, said):
    write(tmp_path, **{name: content})
    with pytest.raises(ValueError) as error:
        load()
    stem = {"train_images": "train-images-idx3", "train_labels": "train-labels-idx1"}[name]
    assert str(error.value).startswith(f"{tmp_path / stem}-ubyte: {said}")
    assert "\n" not in str(error.value)


def test_other_types_of_values_are_refused(tmp_path):
    path = tmp_path / "floats"
    path.write_bytes(bytes([0, 0, 13, 1]) + (1).to_bytes(4, "big") + bytes(4))
    with pytest.raises(ValueError, match="begins with the number 3329, expected 2049"):
        idx.read_idx(path, idx.LABELS)


def test_what_is_missing_is_named(tmp_path):
    assert describe_missing("mnist", str(tmp_path))[0] == str(
        tmp_path / "mnist" / "train-images-idx3-ubyte"
    )
    write(tmp_path, pack=True)
    assert describe_missing("mnist", str(tmp_path)) == []
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert describe_missing("mnist", str(tmp_path)) == [str(tmp_path / "t10k-labels-idx1-ubyte")]
    data = DataConfig(name="emnist_letters", root=str(tmp_path), cache=str(tmp_path / "cache"))
    text = prepare(data)
    assert "emnist-letters-train-images-idx3-ubyte" in text and "https://www.nist.gov" in text
