"""Arrays that users bring in an .npz file: layouts, types, and every kind of damage."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.datasets import load_dataset, prepare
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.data.own import npz
from fedgmr_hpc.data.own.arrays import Arrays, make_splits
from fedgmr_hpc.data.registry import describe_missing
from fedgmr_hpc.data.splits import fingerprint

RNG = np.random.default_rng(0)


def arrays(shape=(6, 5, 7), num_test=3, **changes):
    """Random arrays that are right, with some of them replaced or, by None, left out."""
    made = {
        "x_train": RNG.integers(0, 256, shape, dtype=np.uint8),
        "y_train": np.arange(shape[0]) % 3,
        "x_test": RNG.integers(0, 256, (num_test, *shape[1:]), dtype=np.uint8),
        "y_test": np.arange(num_test) % 3,
    } | changes
    return {name: array for name, array in made.items() if array is not None}


@pytest.fixture
def load(tmp_path):
    def load_from(made, save=np.savez, **keys):
        path = tmp_path / "mine.npz"
        if made is not None:
            save(path, **made)
        return load_dataset(configure(tmp_path, path, **keys), seed=0)

    return load_from


def configure(tmp_path, root, **keys):
    return DataConfig(name="npz", root=str(root), cache=str(tmp_path / "cache"), **keys)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_grey_images_are_stored_as_they_are(load, save):
    made = arrays(group_train=np.array([9, 9, -4, 9, 2**40, 0]))
    data = load(made, save)
    assert np.array_equal(data.train.x, made["x_train"][:, None])
    assert np.array_equal(data.test.x, made["x_test"][:, None])
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([0, 1, 2, 0, 1, 2], [0, 1, 2])
    assert data.train.group.tolist() == [2, 2, 0, 2, 3, 1]
    assert (data.num_classes, data.input_shape, data.augment) == (3, (1, 5, 7), "none")
    assert data.traits.has_groups and not data.is_text
    images, _ = data.batch(data.train, np.array([4]))
    assert images.flatten().tolist() == pytest.approx(made["x_train"][4].ravel() / 255)


def test_channels_come_first_or_last(load):
    first = arrays((6, 3, 8, 5))
    last = {
        name: np.ascontiguousarray(a.transpose(0, 2, 3, 1)) if a.ndim == 4 else a
        for name, a in first.items()
    }
    one, other = load(first), load(last)
    assert one.input_shape == other.input_shape == (3, 8, 5)
    assert np.array_equal(one.train.x, first["x_train"])
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("dtype", ["f2", "f4", "<f8", ">f8"])
def test_floats_become_the_nearest_bytes(load, dtype):
    x = np.array([0, 0.5, 1, 0.2, 1 / 255, 0.9999], dtype).reshape(6, 1, 1)
    data = load(arrays((6, 1, 1), x_train=x))
    assert data.train.x.ravel().tolist() == [0, 128, 255, 51, 1, 255]


def test_labels_may_be_a_column_of_any_integers_and_groups_text(load):
    made = arrays(y_train=np.array([[0], [1], [2], [0], [1], [6]], np.uint8))
    data = load(made | {"group_train": np.array(["b", "a", "b", "c", "c", "a"])})
    assert data.train.y.tolist() == [0, 1, 2, 0, 1, 6]
    assert data.num_classes == 7
    assert data.train.group.tolist() == [1, 0, 1, 2, 2, 0]


def test_subsets_augmentation_partition_and_preparation_are_those_of_all_data_sets(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays((60, 28, 28), 20, group_train=np.arange(60) // 6))
    words = (
        *("data.name=npz", f"data.root={path}", f"data.cache={tmp_path / 'cache'}"),
        *("model.name=conv2_small", "clients.count=5", "data.augment=crop_flip"),
    )
    data = FederatedData(load_config(None, [*words, "data.partition=group"]))
    assert [len(part) for part in data.train_parts] == [10] * 5
    ((images, classes),) = data.train_batches(0, 0, 1)
    assert images.shape == (20, 1, 28, 28) and classes.shape == (20,)
    draws = data.dataset.draw_changes(9, np.random.default_rng(0))
    plain, moved = (
        data.dataset.batch(data.dataset.train, np.arange(9), each)[0] for each in (None, draws)
    )
    assert not torch.equal(plain, moved)
    few = FederatedData(load_config(None, [*words, "data.partition=iid", "data.max_train=30"]))
    assert sum(map(len, few.train_parts + few.validation_parts)) == 30
    text = prepare(configure(tmp_path, tmp_path))
    assert "npz: ready, 3 classes, images 1x28x28" in text and "10 writers with 6 / 6 / 6" in text


def test_a_model_that_does_not_fit_is_one_line(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays((60, 20, 20), 20))
    words = ("data.name=npz", f"data.root={path}", f"data.cache={tmp_path}", "model.name=conv2")
    with pytest.raises(ValueError) as error:
        FederatedData(load_config(None, words))
    assert str(error.value) == (
        "model.name must fit the data when data.name is 'npz' (got 'conv2'): "
        "conv2 takes images (1, 28, 28), not (1, 20, 20)"
    )


def test_the_root_is_the_file_or_the_folder_of_one_file(tmp_path):
    (path,) = describe_missing("npz", str(tmp_path))
    assert path == str(tmp_path / "*.npz")
    assert describe_missing("npz", str(tmp_path / "gone.npz")) == [str(tmp_path / "gone.npz")]
    np.savez(tmp_path / "one.npz", **arrays())
    (tmp_path / "._one.npz").write_bytes(b"\0\5\26\7Mac OS X")
    for root in (tmp_path, tmp_path / "one.npz"):
        assert describe_missing("npz", str(root)) == []
    np.savez(tmp_path / "two.npz", **arrays())
    (said,) = describe_missing("npz", str(tmp_path))
    assert said == str(tmp_path / "*.npz (one, not 2; data.root may name one)")
    with pytest.raises(ValueError, match=r"data\.root must hold all files of npz .* \(one, not 2"):
        load_dataset(configure(tmp_path, tmp_path), seed=0)


X = np.zeros((6, 5, 7), np.uint8)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"y_test": None}, "has no array y_test (it has x_train, y_train, x_test), expected x_tr"),
        ({"groups": np.arange(6)}, "has an array groups, which has no meaning here, expected x_t"),
        ({"x_train": X.astype(np.int64)}, "x_train is of type int64, expected bytes (uint8), or"),
        ({"x_train": X.astype(bool)}, "x_train is of type bool, expected bytes (uint8), or floats"),
        ({"x_train": X.astype("c8")}, "x_train is of type complex64, expected bytes"),
        ({"x_train": X.astype(object)}, "x_train holds Python objects, expected numbers, which"),
        ({"y_train": np.array([1] * 6, object)}, "y_train holds Python objects, expected numbers"),
        ({"x_train": np.full(X.shape, np.nan)}, "x_train: sample 0 has a pixel of nan, expected"),
        ({"x_train": X + 1.5}, "x_train: sample 0 has a pixel of 1.5, expected floats from 0 to 1"),
        (
            {"x_test": X[:3] - 0.1},
            "x_test: sample 0 has a pixel of -0.1, expected floats",
        ),
        ({"x_train": X[0, 0, 0]}, "x_train is a single value, expected an array"),
        ({"x_train": X[:, 0, 0]}, "x_train has shape [6], expected images [N,H,W], [N,H,W,C]"),
        ({"x_train": X[:0]}, "x_train is empty, expected at least one sample"),
        ({"x_train": np.zeros((6, 0, 5), np.uint8)}, "x_train has images of 0x5, expected 1 to"),
        ({"x_train": np.zeros((6, 5, 5000), np.uint8)}, "x_train has images of 5x5000, expected 1"),
        ({"x_train": np.zeros((6, 3, 9, 3), np.uint8)}, "[6, 3, 9, 3], where both could be the ch"),
        ({"x_train": np.zeros((6, 9, 9, 9), np.uint8)}, "[6, 9, 9, 9], where neither can be the c"),
        ({"x_train": np.zeros((6, 1, 1, 1, 1), np.uint8)}, "x_train has shape [6, 1, 1, 1, 1], ex"),
        ({"x_train": np.asfortranarray(X)}, "x_train is in Fortran order, expected C order: save"),
        ({"x_test": X[:3, :4]}, "x_test has images of 1x4x7, expected 1x5x7, as x_train"),
        ({"x_train": np.ones((6, 9), np.int64)}, "[6, 9]; sequences of tokens are not supported"),
        ({"y_train": np.arange(5)}, "y_train has shape [5], expected [6], a label for each sample"),
        ({"y_train": np.eye(6, dtype=int)}, "y_train has shape [6, 6], expected [6], a label"),
        ({"y_train": np.zeros(6)}, "y_train is of type float64, expected integers, the classes fr"),
        ({"y_train": np.array(["a"] * 6)}, "y_train is of type <U1, expected integers"),
        ({"y_train": np.arange(6) - 1}, "y_train has label -1, expected 0..65535"),
        ({"y_train": np.full(6, 2**64 - 1, np.uint64)}, "y_train has label 18446744073709551615"),
        ({"y_test": np.array([0, 1, 3])}, "y_test: sample 2 has label 3, expected 0..2"),
        ({"group_train": np.zeros(5, int)}, "group_train has shape [5], expected [6], a group for"),
        ({"group_train": np.zeros(6)}, "group_train is of type float64, expected integers or text"),
    ],
)
def test_what_an_array_must_be_is_one_line_with_its_name(tmp_path, load, changes, said):
    with pytest.raises(ValueError) as error:
        load(arrays(**changes))
    assert str(error.value).startswith(f"{tmp_path / 'mine.npz'}: ")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not [p for p in (tmp_path / "cache").glob("npz-*") if p.is_dir()]


def packed(**changes):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays(**changes))
    return buffer.getvalue()


def with_member(name, content):
    """A right file whose array of this name has other bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed())) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            new.writestr(
                info.filename, content if info.filename == f"{name}.npy" else old.read(info)
            )
    return buffer.getvalue()


def header(shape, descr="|u1", version=b"\x01\x00"):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + text


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "cannot be read (File is not a zip file), expected an .npz file"),
        (packed()[:-30], "cannot be read (File is not a zip file), expected an .npz file"),
        (with_member("x_train", b""), "x_train: cannot be read ("),
        (with_member("y_test", b"\x93NUMPY"), "y_test: cannot be read ("),
        (with_member("x_test", header((3, 5, 7))), "x_test has 7"),
        (
            with_member("x_test", header((10**12, 10**6, 10**6))),
            "x_test has 94 bytes, expected 1000",
        ),
        (with_member("x_test", header((-1, 5, 7))), "x_test has 7"),
        (with_member("x_test", header((3, 5, 7), version=b"\x02\x00")), "x_test: cannot be read ("),
        (with_member("x_test", b"\x93NUMPY\x02\x00\xff\xff\xff\xff"), "x_test: cannot be read ("),
        (with_member("x_train", header((6, 5, 7), "O")), "x_train holds Python objects, expected"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, load, content, said):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(None)
    assert str(error.value).startswith(f"{tmp_path / 'mine.npz'}: {said}")
    assert "\n" not in str(error.value)


def test_an_array_of_terabytes_is_refused_for_want_of_room(tmp_path, load, monkeypatch):
    made = arrays()
    claim = npz._look_at

    def huge(path, name, archive, info):
        member = claim(path, name, archive, info)
        if name != "x_train":
            return member
        return npz._Member(path, name, (10**13, *member.shape[1:]), member.dtype)

    monkeypatch.setattr(npz, "_look_at", huge)
    monkeypatch.setattr(npz, "_write_labels", lambda *words: None)
    with pytest.raises(ValueError, match=r"^data\.cache must have .* GB free"):
        load(made)


def test_labels_that_unpack_to_gigabytes_are_never_read(monkeypatch):
    member = npz._Member(Path("a.npz"), "y_train", (2**28,), np.dtype(np.int64))
    with pytest.raises(ValueError, match=r"a\.npz: y_train has 2147483648 bytes, expected at most"):
        member.read()


@settings(deadline=None, max_examples=40)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_changed_byte_is_told_or_changes_nothing(tmp_path_factory, at, bit, cut):
    folder = tmp_path_factory.mktemp("npz")
    content = bytearray(WHOLE)
    place = int(at * len(content))
    content[place] ^= 1 << bit
    (folder / "mine.npz").write_bytes(content[:place] if cut else content)
    try:
        data = load_dataset(configure(folder, folder), seed=0)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert data.fingerprint == FINGERPRINT


def whole_fingerprint():
    with np.load(io.BytesIO(WHOLE)) as made:
        return fingerprint(*make_splits("here", Arrays(*(made[name] for name in Arrays._fields))))


WHOLE = packed(group_train=np.array([0, 1, 1, 0, 2, 2]))
FINGERPRINT = whole_fingerprint()


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, load, monkeypatch):
    made = arrays((40, 5, 7))
    monkeypatch.setattr(npz, "CHUNK_BYTES", 35 * 4)
    append, appended = npz.RowFile.append, []

    def until_the_tenth(self, row):
        if len(appended) == 10:
            raise KeyboardInterrupt
        appended.append(row)
        append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(npz.RowFile, "append", until_the_tenth)
        with pytest.raises(KeyboardInterrupt):
            load(made)
    appended.clear()

    def counted(self, row):
        appended.append(row)
        append(self, row)

    monkeypatch.setattr(npz.RowFile, "append", counted)
    data = load(None)
    assert np.array_equal(data.train.x, made["x_train"][:, None])
    assert len(appended) < 43
