"""Readers, cache and batches of the data sets, on tiny files made here in every official layout."""

import errno
import fcntl
import json
import os
import pickle
import pwd
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedgmr_hpc.config.choices.registry import DATASETS
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import Reader, build, check_room, open_or_build
from fedgmr_hpc.data.cache import files as cache_files
from fedgmr_hpc.data.datasets import load_dataset, prepare
from fedgmr_hpc.data.registry import describe_missing, find_source
from fedgmr_hpc.data.splits import Split, fingerprint

WHITE, BLACK, GREY = 1.0, 0.0, 0.8
BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
REAL = os.environ.get("FEDGMR_DATA")
needs_real = pytest.mark.skipif(
    not REAL, reason="set FEDGMR_DATA to the folder with the unpacked real data sets"
)


def configure(tmp_path, name, root=None, **keys):
    return DataConfig(
        name=name,
        root=None if root is None else str(root),
        cache=str(tmp_path / "cache"),
        **keys,
    )


@pytest.fixture
def load(tmp_path):
    def load_from(name, *, root=tmp_path, seed=0, **keys):
        return load_dataset(configure(tmp_path, name, root, **keys), seed=seed)

    return load_from


def refusal(load, name, **named):
    """The one line of the ValueError."""
    with pytest.raises(ValueError) as error:
        load(name, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


# LEAF JSON


def image(value):
    return [value] * 784


def shard(**users):
    """A LEAF shard of {user: [(pixel value of the whole image, label)]}."""
    data = {
        user: {"x": [image(value) for value, _ in pairs], "y": [label for _, label in pairs]}
        for user, pairs in users.items()
    }
    counts = [len(pairs) for pairs in users.values()]
    return {"users": list(users), "num_samples": counts, "user_data": data}


def write_leaf(root, train, test):
    for part, shards in (("train", train), ("test", test)):
        folder = root / "data" / part
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in shards.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)


GOOD_TEST = {"all_data_0.json": shard(b=[(BLACK, 3)], a=[(WHITE, 61)])}


def test_leaf_images_are_inverted_and_writers_numbered_in_file_order(tmp_path, load):
    train = {
        "all_data_10.json": shard(c=[(GREY, 7)]),
        "all_data_2.json": shard(b=[(BLACK, 61), (WHITE, 0)], a=[(0.5, 5)]),
    }
    write_leaf(tmp_path / "femnist", train, GOOD_TEST)
    data = load("femnist")
    assert data.train.x.shape == (4, 1, 28, 28)
    assert data.train.x[:, 0, 3, 4].tolist() == [255, 0, 128, 51]
    assert data.train.y.tolist() == [61, 0, 5, 7]
    assert data.train.group.tolist() == [0, 0, 1, 2]
    assert data.test.group.tolist() == [0, 1]
    assert (data.train.x.dtype, data.train.y.dtype, data.train.group.dtype) == (
        np.uint8,
        np.int64,
        np.int32,
    )
    assert (data.num_classes, data.input_shape, data.augment) == (62, (1, 28, 28), "none")
    assert data.batch(data.train, np.array([0, 3]))[0][:, 0, 0, 0].tolist() == pytest.approx(
        [1, 0.2]
    )


def test_leaf_data_folder_directly_under_root_and_writers_only_in_test(tmp_path, load):
    write_leaf(tmp_path, {"t.json": shard(a=[(WHITE, 1)])}, {"t.json": shard(z=[(WHITE, 2)], q=[])})
    data = load("femnist")
    assert (data.train.group.tolist(), data.test.group.tolist()) == ([0], [1])


def broken_shard(**changes):
    """One writer `a` with two samples, and its entry or the shard changed."""
    whole = shard(a=[(WHITE, 1), (BLACK, 2)])
    for key, value in changes.items():
        place = whole if key in whole else whole["user_data"]["a"]
        if value is None:
            del place[key]
        else:
            place[key] = value
    return whole


@pytest.mark.parametrize(
    "content, found",
    [
        (broken_shard(x=None), 'user \'a\': has no list "x", expected "x" and "y"'),
        (broken_shard(y=None), 'user \'a\': has no list "y", expected "x" and "y"'),
        (broken_shard(y=[1]), "user 'a': has 2 images and 1 labels, expected as many of each"),
        (broken_shard(y=[1, 62]), "user 'a': sample 1 has label 62, expected 0..61"),
        (broken_shard(y=[-1, 2]), "user 'a': sample 0 has label -1, expected 0..61"),
        (broken_shard(y=[1, 0.5]), "something that is not an integer, expected class numbers"),
        (broken_shard(y=[1, 2**80]), "holds something that is not an integer"),
        (
            broken_shard(x=[image(1), [0.0] * 783]),
            "user 'a': sample 1 has 783 pixels, expected 784 numbers in 0..1",
        ),
        (broken_shard(x=[image(1), 7]), "user 'a': sample 1 has no pixels, expected 784"),
        (broken_shard(x=[image(1), image("w")]), "user 'a': x holds something that is not"),
        (broken_shard(x=[image(1), image(1.5)]), "user 'a': sample 1 has pixel value 1.5, exp"),
        (broken_shard(x=[image(-0.1), image(1)]), "user 'a': sample 0 has pixel value -0.1"),
        (broken_shard(x=[image(float("nan")), image(1)]), "user 'a': sample 0 has pixel value nan"),
        (broken_shard(num_samples=[3]), "user 'a' has 2 samples, expected num_samples 3"),
        (broken_shard(num_samples=[2, 2]), "1 users but 2 num_samples, expected as many of each"),
        (broken_shard(num_samples=None), '"num_samples" is missing or no list, expected a LEAF'),
        (broken_shard(users=["a", "b"], num_samples=[2, 1]), "user 'b' has no x and y in user_d"),
        (broken_shard(users=["a", "a"], num_samples=[2, 2]), "user 'a' is listed twice"),
        (broken_shard(users=[["a"]]), "user ['a'] has no x and y in user_data"),
        (broken_shard(user_data={"a": {}}), "user 'a' has no x and y in user_data"),
        ([1, 2], '"users" is missing or no list'),
        ('{"users": [', "cannot be read (Expecting value: line 1"),
        (shard(a=[]), "no samples in its files, expected at least one"),
    ],
)
def test_bad_leaf_names_file_finding_and_expectation(tmp_path, load, content, found):
    write_leaf(tmp_path, {"bad.json": content}, GOOD_TEST)
    message = refusal(load, "femnist")
    assert found in message
    assert str(tmp_path / "data" / "train") in message
    assert not list((tmp_path / "cache").glob("femnist-*/*"))


@pytest.mark.parametrize(
    "content, found",
    [
        ("[" * 100_000, "cannot be read (maximum recursion depth exceeded"),
        ('{"users": ' + "9" * 5000 + "}", "cannot be read (Exceeds the limit"),
        ('{"users": ["a"], "users": ["b"]}', "cannot be read ('users' stands twice in one object)"),
        (b"\xff\xfe", "cannot be read ('utf-8' codec can't decode byte 0xff"),
        (
            {**shard(a=[(WHITE, 1)]), "users": [], "num_samples": []},
            "user 'a' of user_data is not in users, expected all users listed",
        ),
    ],
)
def test_whatever_a_shard_makes_a_parser_raise_is_one_line_with_its_name(
    tmp_path, load, content, found
):
    write_leaf(tmp_path, {"t.json": ""}, GOOD_TEST)
    path = tmp_path / "data" / "train" / "t.json"
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refusal(load, "femnist").startswith(f"{path}: {found}")


def test_a_byte_order_mark_is_read_and_what_macos_leaves_is_not(tmp_path, load):
    write_leaf(tmp_path, {"t.json": "\ufeff" + json.dumps(shard(a=[(WHITE, 1)]))}, GOOD_TEST)
    (tmp_path / "data" / "train" / "._t.json").write_bytes(b"\0\5\26\7Mac OS X")
    assert load("femnist").train.y.tolist() == [1]


def test_a_writer_in_two_shards_is_refused(tmp_path, load):
    train = {"0.json": shard(a=[(WHITE, 1)]), "1.json": shard(a=[(WHITE, 1)])}
    write_leaf(tmp_path, train, GOOD_TEST)
    message = refusal(load, "femnist")
    assert message.startswith(str(tmp_path / "data" / "train" / "1.json"))
    assert "user 'a' also stands in an earlier file" in message


# CIFAR-10


def cifar_records(labels):
    """[(label, 3072 pixel bytes)]: red plane 10, green 20, blue 30 plus the record number."""
    planes = [np.repeat(np.array([10, 20, 30], np.uint8), 1024) + n for n in range(len(labels))]
    return list(zip(labels, planes, strict=True))


def write_cifar(folder, encode, suffix=""):
    """Six files, two records each; the labels of file n are n and 9 - n."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(BATCHES):
        (folder / (name + suffix)).write_bytes(encode([number, 9 - number]))


def encode_binary(labels):
    return b"".join(bytes([label]) + plane.tobytes() for label, plane in cifar_records(labels))


def encode_pickle(labels, key=str):
    pixels = np.stack([plane for _, plane in cifar_records(labels)])
    return pickle.dumps({key("labels"): labels, key("data"): pixels}, protocol=2)


def encode_bytes_keys(labels):
    return encode_pickle(labels, key=str.encode)


def encode_python2(labels):
    """The opcodes Python 2 wrote into the official files: byte strings, numpy.core names."""
    raw = b"".join(plane.tobytes() for _, plane in cifar_records(labels))
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    shape = b"K" + bytes([len(labels)]) + b"M\x00\x0c\x86"
    dtype = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )
    return b"\x80\x02}q\x01(U\x06labels](" + numbers + b"eU\x04data" + array + b"u."


def check_tiny_cifar(data):
    assert data.train.y.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert data.test.y.tolist() == [5, 4]
    assert data.train.x.shape == (10, 3, 32, 32)
    assert data.train.x[3, :, 5, 6].tolist() == [11, 21, 31]
    assert data.train.group.tolist() == [0] * 10


@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin"])
def test_cifar_binary_layout(tmp_path, load, place):
    write_cifar(tmp_path / place, encode_binary, ".bin")
    check_tiny_cifar(load("cifar10"))


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
@pytest.mark.parametrize("encode", [encode_pickle, encode_bytes_keys, encode_python2])
def test_cifar_python_layout(tmp_path, load, place, encode):
    write_cifar(tmp_path / place, encode)
    check_tiny_cifar(load("cifar10"))


def test_cifar_column_major_pickle_reads_the_same(tmp_path, load):
    def encode_fortran(labels):
        pixels = np.asfortranarray(np.stack([plane for _, plane in cifar_records(labels)]))
        return pickle.dumps({"labels": labels, "data": pixels}, protocol=2)

    write_cifar(tmp_path, encode_fortran)
    check_tiny_cifar(load("cifar10"))


@pytest.mark.parametrize(
    "content, found",
    [
        (encode_binary([1, 2])[:-1], "6145 bytes, expected a positive whole number of 3073-byte"),
        (b"", "0 bytes, expected a positive whole number of 3073-byte records (1 label + 3072 pix"),
        (encode_binary([1, 10]), "record 1 has label 10, expected 0..9"),
    ],
)
def test_bad_cifar_binary_names_the_file(tmp_path, load, content, found):
    write_cifar(tmp_path, encode_binary, ".bin")
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    assert refusal(load, "cifar10").startswith(f"{tmp_path / 'data_batch_3.bin'}: {found}")


class Attack:
    """Unpickling this by plain pickle would run a command."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "batch, found",
    [
        ([1, 2], "holds a list, expected a CIFAR-10 python batch"),
        ({"labels": [1, 2]}, 'has no uint8 array "data"'),
        ({"data": np.ndarray, "labels": [1, 2]}, 'has no uint8 array "data"'),
        ({"data": PIXELS}, 'has no list "labels" of integers'),
        ({"data": PIXELS, "labels": [1, "2"]}, 'has no list "labels" of integers'),
        ({"data": PIXELS, "labels": [1]}, "2 images and 1 labels, expected as many of each"),
        ({"data": PIXELS, "labels": [1, 11]}, "record 1 has label 11, expected 0..9"),
        ({"data": PIXELS[:, :9], "labels": [1, 2]}, "data has shape [2, 9], expected [N,3072]"),
        ({"data": PIXELS.astype(float), "labels": [1, 2]}, "array is not of dtype uint8"),
        ({"data": PIXELS, "labels": {1, 2}}, "asks for __builtin__.set: not allowed"),
    ],
)
def test_bad_cifar_pickle_names_the_file(tmp_path, load, batch, found):
    write_cifar(tmp_path, encode_pickle)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=2))
    message = refusal(load, "cifar10")
    assert message.startswith(f"{tmp_path / 'data_batch_2'}: ")
    assert found in message


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_attack_is_refused_and_not_run(tmp_path, load, protocol):
    write_cifar(tmp_path, encode_pickle)
    target = tmp_path / "attacked"
    (tmp_path / "test_batch").write_bytes(pickle.dumps(Attack(target), protocol=protocol))
    assert "system: not allowed" in refusal(load, "cifar10")
    assert not target.exists()


def test_a_pickle_that_numbers_its_memo_in_billions_fills_no_memory(tmp_path, load):
    write_cifar(tmp_path, encode_pickle)
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02}r" + (2**31 - 1).to_bytes(4, "little") + b".")  # 32 GB in C
    assert refusal(load, "cifar10").startswith(f'{path}: has no uint8 array "data"')


def test_pickle_codec_other_than_latin1_and_damaged_pickle_are_refused(tmp_path, load):
    write_cifar(tmp_path, encode_pickle)
    (tmp_path / "test_batch").write_bytes(b"c_codecs\nencode\n(Va\nVzip\ntR.")
    assert "codec zip is not allowed" in refusal(load, "cifar10")
    (tmp_path / "test_batch").write_bytes(encode_pickle([1, 2])[:200])
    assert "cannot be read" in refusal(load, "cifar10")


# missing files


@pytest.mark.parametrize("damage", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_what_is_no_file_is_missing_and_never_waited_for(tmp_path, load, damage):
    write_cifar(tmp_path, encode_binary, ".bin")
    (tmp_path / "test_batch.bin").unlink()
    damage(tmp_path / "test_batch.bin")
    assert "missing are " + str(tmp_path / "test_batch.bin") in refusal(load, "cifar10")


def test_missing_folder_says_where_it_looked_and_how_to_learn_more(tmp_path, load):
    message = refusal(load, "femnist")
    assert message.startswith(f"data.root must hold all files of femnist (got '{tmp_path}'): ")
    assert str(tmp_path / "femnist" / "data" / "train" / "*.json") in message
    assert f"`python -m fedgmr_hpc prepare femnist --root {tmp_path}` explains" in message
    assert refusal(load, "cifar10", root=None) == (
        "data.root must be the folder of cifar10's files (got null); "
        "`python -m fedgmr_hpc prepare cifar10` explains the layout"
    )
    assert "and 3 more" in refusal(load, "cifar10")


def test_describe_missing_lists_exactly_what_lacks(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, encode_pickle)
    (folder / "data_batch_4").unlink()
    assert describe_missing("cifar10", str(tmp_path)) == [str(folder / "data_batch_4")]
    write_leaf(tmp_path, {"0.json": shard(a=[(WHITE, 1)])}, {})
    assert describe_missing("femnist", str(tmp_path)) == [str(tmp_path / "data/test/*.json")]
    assert describe_missing("digits", None) == describe_missing("synthetic_cifar10", None) == []


def test_prepare_explains_the_layout_then_counts(tmp_path):
    text = prepare(configure(tmp_path, "cifar10", tmp_path))
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in text
    assert "cifar-10-binary.tar.gz" in text and "missing:" in text
    assert "TalwalkarLab/leaf" in prepare(configure(tmp_path, "femnist"))
    train = {"0.json": shard(a=[(WHITE, 1)], b=[(WHITE, 2)] * 2, c=[(BLACK, 2)] * 5)}
    write_leaf(tmp_path, train, GOOD_TEST)
    text = prepare(configure(tmp_path, "femnist", tmp_path))
    assert "femnist: ready, 62 classes, images 1x28x28" in text
    assert "train: 8 samples of 2 classes, 3 writers with 1 / 2 / 5 samples each" in text
    assert str(tmp_path / "cache" / "femnist-") in text and " MB" in text


# digits and stand-ins


def test_digits_are_split_within_each_class_and_independent_of_the_seed(load):
    data = load("digits", root=None)
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert (data.train.x.shape, data.train.x.max()) == ((1438, 1, 8, 8), 16)
    whole = np.bincount(data.train.y) + np.bincount(data.test.y)
    assert whole.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(data.test.y).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert np.array_equal(load("digits", root=None, seed=5).train.x, data.train.x)
    assert data.batch(data.train, np.arange(1438))[0].max() == 1


@pytest.mark.parametrize(
    "name, shape, classes",
    [("synthetic_femnist", (1, 28, 28), 62), ("synthetic_cifar10", (3, 32, 32), 10)],
)
def test_stand_ins_have_the_real_shape_and_can_be_learnt(load, name, shape, classes):
    data = load(name, root=None, max_train=3000, max_test=500)
    assert data.train.x.shape == (3000, *shape)
    assert (len(data.test), data.num_classes, data.input_shape) == (500, classes, shape)
    means = np.stack([data.train.x[data.train.y == c].mean(axis=0) for c in range(classes)])
    distance = ((data.test.x[:, None] - means[None]) ** 2).sum(axis=(2, 3, 4))
    assert (distance.argmin(axis=1) == data.test.y).mean() > 0.5


def test_stand_in_of_femnist_has_193_writers_and_the_papers_counts(load):
    data = load("synthetic_femnist", root=None)
    assert (len(data.train), len(data.test)) == (35_948, 4_090)
    assert np.unique(data.train.group).tolist() == list(range(193))
    assert np.all(np.diff(data.train.group) >= 0)


def test_stand_ins_differ_by_seed(load):
    one, two = (load("synthetic_femnist", max_train=50, max_test=9, seed=s) for s in (1, 2))
    assert not np.array_equal(one.train.x, two.train.x)


# subsets, batches and augmentation


def test_subset_keeps_the_order_and_is_fixed_by_the_seed(load):
    whole = load("digits")
    some = load("digits", max_train=300, max_test=40)
    assert (len(some.train), len(some.test)) == (300, 40)
    rows = {row.tobytes(): n for n, row in enumerate(whole.train.x)}
    positions = [rows[row.tobytes()] for row in some.train.take(np.arange(300))]
    assert positions == sorted(positions) == some.train.rows.tolist()
    assert some.train.y.tolist() == whole.train.y[positions].tolist()
    assert np.array_equal(some.train.rows, load("digits", max_train=300).train.rows)
    assert not np.array_equal(some.train.y, load("digits", max_train=300, seed=1).train.y)
    assert len(load("digits", max_train=10**6).train) == 1438


def test_a_subset_shares_the_memory_map(load):
    some = load("digits", max_train=300)
    assert isinstance(some.train.x.base, np.memmap)
    assert len(some.train.x) == 1438


def test_arrays_are_read_only(load):
    for data in (load("digits"), load("digits", max_train=10)):
        for array in (data.train.x, data.train.y, data.train.group):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_images_are_normalised_per_channel(tmp_path, load):
    write_cifar(tmp_path, encode_binary, ".bin")
    data = load("cifar10")
    index = np.array([4, 1])
    x, classes = data.batch(data.train, index)
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    expected = (np.array([[10, 20, 30], [11, 21, 31]]) / 255 - mean) / std
    assert (x.dtype, x.shape) == (torch.float32, (2, 3, 32, 32))
    assert x[:, :, 0, 0].numpy() == pytest.approx(expected, abs=1e-6)
    assert classes.tolist() == [2, 9]


def test_augmentation_is_applied_only_where_the_data_set_has_it(tmp_path, load):
    write_cifar(tmp_path, encode_binary, ".bin")
    cifar, digits = load("cifar10"), load("digits")
    index = np.arange(10)
    draws = [cifar.draw_changes(10, make_rng(0, "augment")) for _ in range(2)]
    plain, moved, again = (cifar.batch(cifar.train, index, each)[0] for each in (None, *draws))
    assert not torch.equal(plain, moved)
    assert torch.equal(moved, again)
    border = -np.array(cifar.traits.mean) / np.array(cifar.traits.std)  # padded before normalising
    assert moved[:, 0].min().item() == pytest.approx(border[0], abs=1e-6)
    assert digits.draw_changes(10, make_rng(0, "augment")) is None


# cache


def tiny(value=1):
    arrays = np.full((3, 1, 2, 2), value, np.uint8), np.arange(3), np.zeros(3, np.int32)
    return Split(*arrays), Split(*arrays)


def test_cache_is_built_once_and_mapped(tmp_path):
    calls = []
    for _ in range(2):
        train, _ = open_or_build(tmp_path / "a" / "tiny-1", lambda: calls.append(1) or tiny())
    assert len(calls) == 1
    assert train.x.tolist() == tiny()[0].x.tolist()
    assert isinstance(train.x.base, np.memmap)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["tiny-1", "tiny-1.lock"]


def truncate(folder):
    path = folder / "train_x.npy"
    path.write_bytes(path.read_bytes()[:-2])


def rewrite_meta(folder, **changes):
    """Another content under a right checksum."""
    path = folder / "meta.json"
    path.write_text(json.dumps(cache_files.seal(json.loads(path.read_text()) | changes)))


def flip(name, at):
    """Another byte at `at` of a cache's file."""

    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 1
        (folder / name).write_bytes(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: rewrite_meta(folder, version=0),
        lambda folder: rewrite_meta(folder, arrays={}),
        lambda folder: rewrite_meta(folder, name="tiny-2"),
        lambda folder: (folder / "meta.json").write_text("[" * 100_000),
        lambda folder: (folder / "test_y.npy").unlink(),
        lambda folder: (folder / "test_y.npy").write_bytes(b""),
        lambda folder: np.save(folder / "train_y.npy", np.arange(2)),
        lambda folder: np.save(folder / "train_y.npy", np.zeros(3)),
        truncate,
        flip("train_x.npy", -1),
        flip("train_sums.npy", -1),
        flip("train_y.npy", -1),
        flip("test_group.npy", -1),
        flip("test_x.npy", 20),  # a brace of the header
        lambda folder: (folder / "train_x.npy").chmod(0o664),
        lambda folder: folder.chmod(0o777),
    ],
)
def test_damaged_cache_is_rebuilt_with_a_warning(tmp_path, damage, caplog):
    folder = tmp_path / "tiny-1"
    open_or_build(folder, tiny)
    damage(folder)
    train, test = open_or_build(folder, lambda: tiny(7))
    assert (train.x.min(), len(test)) == (7, 3)
    (line,) = caplog.messages
    assert line.startswith(f"data cache {folder}: ") and line.endswith("decoding the data again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny-1", "tiny-1.lock"]


DAMAGES = (
    lambda content, at: content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :],
    lambda content, at: content[:at] + bytes(len(content[at : at + 9])) + content[at + 9 :],
    lambda content, at: content[:at],
)


def test_no_cache_that_is_damaged_anywhere_is_read_as_data(tmp_path, monkeypatch):
    """Flipped, zeroed and cut at random places: what is opened is what was decoded, every time."""
    folder, made, rng = tmp_path / "tiny-1", tiny_random(), np.random.default_rng(0)
    monkeypatch.setattr(cache_files, "_sync", lambda folder: None)  # for speed
    whole = fingerprint(*open_or_build(folder, lambda: made))
    rebuilt = []
    for number in range(99):
        files = sorted(folder.iterdir())
        content = files[number % len(files)].read_bytes()
        at = int(rng.integers(len(content)))
        files[number % len(files)].write_bytes(DAMAGES[number % 3](content, at))
        assert fingerprint(*open_or_build(folder, lambda: rebuilt.append(1) or made)) == whole
    assert len(rebuilt) > 60  # the others fell on zeros, or on blanks of a header


def tiny_random():
    rng = np.random.default_rng(1)
    return tuple(
        Split(
            rng.integers(0, 256, (num, 1, 4, 4), dtype=np.uint8),
            rng.integers(0, 9, num),
            rng.integers(0, 4, num).astype(np.int32),
        )
        for num in (12, 5)
    )


def test_a_sample_that_is_damaged_during_a_run_is_not_trained_on(tmp_path):
    folder = tmp_path / "tiny-1"
    open_or_build(folder, tiny)
    flip("train_x.npy", -1)(folder)  # of sample 2
    train, _ = open_or_build(folder, tiny, Reader(checks_all=False))
    assert train.take(np.array([0, 1])).shape == (2, 1, 2, 2)
    with pytest.raises(RunError, match=r"train_x\.npy: sample 2 was damaged or changed since"):
        train.take(np.array([1, 2]))


def test_the_cache_of_another_user_is_refused_unless_named(tmp_path, monkeypatch):
    folder = tmp_path / "tiny-1"
    open_or_build(folder, tiny)
    monkeypatch.setattr(cache_files.os, "getuid", lambda: os.stat(folder).st_uid + 1)
    monkeypatch.setattr(cache_files, "ROOT", -1)  # tests may run as root
    name = pwd.getpwuid(os.stat(folder).st_uid).pw_name
    with pytest.raises(ValueError, match=rf"data\.cache must .*: its tiny-1 belongs to {name}, "):
        open_or_build(folder, tiny)
    assert open_or_build(folder, lambda: 1 / 0, Reader(owner=name))[0].y.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"data\.cache_owner must be a user of this machine"):
        open_or_build(folder, tiny, Reader(owner="no-one-here"))


def test_a_cache_is_closed_to_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        open_or_build(tmp_path / "tiny-1", tiny)
    finally:
        os.umask(before)
    folder = tmp_path / "tiny-1"
    modes = [path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())]
    assert (modes[0], set(modes[1:])) == (0o755, {0o644})


def test_the_fingerprint_is_that_of_the_samples_in_their_order_cached_or_not(tmp_path, load):
    made = tiny_random()
    whole = fingerprint(*made)
    assert whole == fingerprint(*open_or_build(tmp_path / "tiny-1", lambda: made))
    train, test = made
    for field in ("x", "y", "group"):
        changed = getattr(train, field).copy()
        changed[0] = changed[0] + 1
        assert fingerprint(replace(train, **{field: changed}), test) != whole
        swapped = getattr(train, field)[[1, 0, *range(2, 12)]]
        assert fingerprint(replace(train, **{field: swapped}), test) != whole
    some = np.array([3, 5])
    picked = Split(train.x[some], train.y[some], train.group[some])
    mapped = open_or_build(tmp_path / "tiny-1", lambda: made)[0]
    subset = replace(mapped, y=mapped.y[some], group=mapped.group[some], rows=some)
    assert fingerprint(subset) == fingerprint(picked)
    assert load("digits", root=None).fingerprint == "bb0f734a9e0c0cc1"


def test_changed_source_file_gets_a_new_cache(tmp_path, load):
    write_leaf(tmp_path, {"0.json": shard(a=[(WHITE, 1)])}, GOOD_TEST)
    assert load("femnist").train.y.tolist() == [1]
    write_leaf(tmp_path, {"0.json": shard(a=[(WHITE, 1), (WHITE, 2)])}, GOOD_TEST)
    assert load("femnist").train.y.tolist() == [1, 2]


RANK = """
import sys, time
from pathlib import Path
from fedgmr_hpc.data.cache import Reader, open_or_build
from fedgmr_hpc.data.splits import fingerprint
from fedgmr_hpc.data.synthetic import make_synthetic
folder, log, start = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
def build():
    with log.open("a") as handle:
        handle.write("built\\n")
    time.sleep(0.3)
    return make_synthetic(4, (1, 8, 8), num_train=40, num_test=8, writers=False, seed=0)
Path(sys.argv[4]).touch()
while not start.exists():
    time.sleep(0.01)
print(int(open_or_build(folder, build)[0].x.sum()))
"""


def test_ranks_that_start_together_build_once(tmp_path):
    start, log = tmp_path / "start", tmp_path / "log"
    readies = [tmp_path / f"ready{rank}" for rank in range(4)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    command = [sys.executable, "-c", RANK, tmp_path / "c" / "s-1", log, start]
    ranks = [
        subprocess.Popen([*command, ready], env=env, stdout=subprocess.PIPE, text=True)
        for ready in readies
    ]
    deadline_s = time.monotonic() + 300
    while not all(map(Path.exists, readies)) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    start.touch()
    sums = {rank.communicate(timeout=300)[0] for rank in ranks}
    assert [rank.returncode for rank in ranks] == [0] * 4
    assert log.read_text() == "built\n"
    assert len(sums) == 1 and int(sums.pop()) > 0


def test_waiting_for_the_lock_ends_and_names_the_holder(tmp_path):
    with (tmp_path / "tiny-1.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("node7 pid 42\n")
        held.flush()
        with pytest.raises(RunError, match=r"waited 0\.1 s for another process \(node7 pid 42\)"):
            open_or_build(tmp_path / "tiny-1", tiny, Reader(wait_s=0.1))


def test_without_file_locks_the_first_rename_wins(tmp_path, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    def slower_rank():
        with monkeypatch.context() as patch:
            patch.setattr(build.os, "getpid", lambda: -1)
            open_or_build(tmp_path / "tiny-1", lambda: tiny(5))
        return tiny(6)

    monkeypatch.setattr(build.fcntl, "flock", no_locks)
    train, _ = open_or_build(tmp_path / "tiny-1", slower_rank)
    assert train.x.max() == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny-1", "tiny-1.lock"]


def test_cache_that_cannot_be_written_names_its_key(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.cache must be a writable folder .got '.*file'"):
        open_or_build(tmp_path / "file" / "tiny-1", tiny)


def test_source_that_cannot_be_read_is_not_blamed_on_the_cache(tmp_path):
    def unreadable():
        raise PermissionError(errno.EACCES, "Permission denied", "batch.bin")

    with pytest.raises(ValueError, match=r"data\.root: a file cannot be read .*batch\.bin"):
        open_or_build(tmp_path / "tiny-1", unreadable)


def test_failed_build_leaves_no_folder_and_the_next_one_works(tmp_path):
    def fails():
        raise ValueError("bad file")

    with pytest.raises(ValueError, match="bad file"):
        open_or_build(tmp_path / "tiny-1", fails)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-1.lock"]
    assert len(open_or_build(tmp_path / "tiny-1", tiny)[0]) == 3


# real files


@needs_real
def test_real_femnist(load):
    data = load("femnist", root=REAL)
    assert (len(data.train), len(data.test)) == (21_787, 2_337)
    assert np.unique(data.train.group).tolist() == np.unique(data.test.group).tolist()
    assert len(np.unique(data.train.group)) == 193
    assert data.train.x[:, :, 0].mean() < 10 < data.train.x[:, :, 10:18].mean()  # black background


@needs_real
def test_real_cifar(load):
    data = load("cifar10", root=REAL)
    assert np.bincount(data.train.y).tolist() == [5_000] * 10
    assert np.bincount(data.test.y).tolist() == [1_000] * 10
    assert data.train.y[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    mean = data.train.x.mean(axis=(0, 2, 3)) / 255
    assert mean == pytest.approx(data.traits.mean, abs=1e-3)


def test_every_name_of_the_configuration_is_a_data_set():
    assert [find_source(name).name for name in DATASETS.homes] == list(DATASETS.homes)


def test_a_job_fills_no_home_folder_that_nobody_has_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (home := tmp_path / ".cache" / "fedgmr_hpc").mkdir(parents=True)
    for name in build.JOB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**12))
    check_room(home, 11 * 10**9)  # at a desk it is the user's own choice
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    said = r"^data.cache must be set to a folder when a job caches 11.0 GB .*/.cache/fedgmr_hpc"
    with pytest.raises(ValueError, match=said):
        check_room(home, 11 * 10**9)
    check_room(home, 10**8)
    check_room(tmp_path, 11 * 10**9)
