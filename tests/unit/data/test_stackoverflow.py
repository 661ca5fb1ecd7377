"""StackOverflow: vocabulary, tokens, targets and errors, on tiny TFF files."""

import os

import h5py
import numpy as np
import pytest
import torch

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.sections import ClientsConfig, DataConfig, ModelConfig
from fedgmr_hpc.data import stackoverflow
from fedgmr_hpc.data.datasets import load_dataset, prepare
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.data.stackoverflow import make_vocabulary

REAL = os.environ.get("FEDGMR_DATA")
needs_real = pytest.mark.skipif(
    not REAL, reason="set FEDGMR_DATA to the folder with the unpacked real data sets"
)
TRAIN = {"u2": ["b a c d", "b"], "u1": ["a b c", "b a e"]}
TEST = {"u9": ["a z b", "z z", "e d c b a"], "u1": ["b a"]}


def write(path, clients):
    with h5py.File(path, "w") as file:
        for name, sentences in clients.items():
            file[f"examples/{name}/tokens"] = [text.encode() for text in sentences]


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "stackoverflow_train.h5", TRAIN)
    write(tmp_path / "stackoverflow_test.h5", TEST)
    return tmp_path


def configure(root, tmp_path, **keys):
    return DataConfig(name="stackoverflow", root=str(root), cache=str(tmp_path / "cache"), **keys)


@pytest.fixture
def load(tmp_path, root):
    return lambda **keys: load_dataset(configure(root, tmp_path, **keys), seed=0)


def rows(split):
    return [row[row > 0].tolist() for row in split.x]


def test_words_rank_by_frequency_then_by_first_appearance():
    sentences = [["x", "y", "z"], ["z", "y"], ["w"]]
    assert make_vocabulary(sentences, 10) == {"y": 2, "z": 3, "x": 4, "w": 5}
    assert make_vocabulary(sentences, 4) == {"y": 2, "z": 3}


def test_users_come_by_id_and_the_vocabulary_from_training_alone(load):
    data = load()
    # read as u1 then u2: a 3, b 4, c 2, then e before d
    assert rows(data.train) == [[3, 2, 4], [2, 3, 5], [2, 3, 4, 6]]
    assert data.train.group.tolist() == [0, 0, 1]
    assert rows(data.test) == [[2, 3], [3, 1, 2], [5, 6, 4, 2, 3]]
    assert data.test.group.tolist() == [0, 2, 2]
    assert (data.train.x.dtype, data.train.x.shape) == (np.uint16, (3, 128))
    assert (data.num_classes, data.input_shape, data.top_k) == (10_000, (128,), 5)


def test_targets_are_the_next_words_without_pads_and_unknown_ones(load):
    data = load()
    x, y = data.batch(data.test, np.array([0, 1]))
    assert x.tolist() == [[2, 3], [3, 1]]
    assert y.tolist() == [[3, -1], [-1, 2]]
    assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
    assert x.is_contiguous() and y.is_contiguous()
    assert data.train.y.tolist() == [2, 2, 3]
    assert [data.num_scored(data.test, np.array(pool)) for pool in ([0, 1], [2])] == [2, 4]


def test_unknown_words_are_targets_where_they_are_to_be_scored(load):
    data = load(unknown_words="scored")
    _, y = data.batch(data.test, np.array([0, 1]))
    assert y.tolist() == [[3, -1], [1, 2]]
    assert rows(data.test)[2] == [1, 1]  # z z, which has no target else
    assert [data.num_scored(data.test, np.array(pool)) for pool in ([0, 1], [2])] == [3, 1]


def test_batches_are_as_long_as_their_longest_sentence(load):
    data = load()
    lengths = [data.batch(data.test, np.array(pool))[0].shape[1] for pool in ([0], [1, 2])]
    assert lengths == [1, 4]


def test_caps_take_the_first_users_and_sentences(load):
    data = load(max_train_users=1, max_user_samples=1, max_test_users=2)
    assert rows(data.train) == [[2, 3, 4]]  # a, b, c by first appearance
    assert rows(data.test) == [[3, 2], [2, 1, 3]]


def test_sentences_end_after_128_tokens(tmp_path):
    write(tmp_path / "long.h5", {"u": [" ".join(["w"] * 200)]})
    caps = {"max_train_users": 9, "max_test_users": 9, "max_user_samples": 9}
    path = tmp_path / "long.h5"
    train, _ = stackoverflow.read_stackoverflow(path, path, **caps)
    assert ((train.x > 0).sum(), train.y.tolist()) == (128, [127])


def write_bad(path, what):
    with h5py.File(path, "w") as file:
        if what == "no examples":
            file["other"] = [1]
        elif what == "no tokens":
            file["examples/u/title"] = [b"a b"]
        elif what == "numbers":
            file["examples/u/tokens"] = [1, 2]
        elif what == "not text":
            file["examples/u/tokens"] = np.array([b"a \xff\xfe"], "S9")
        elif what == "empty":
            file.create_group("examples")
        else:
            file["examples/u/tokens"] = [b"a", b"b"]


@pytest.mark.parametrize(
    "what, found",
    [
        ("no examples", 'no group "examples"'),
        ("no tokens", "client 'u' has no list tokens"),
        ("numbers", "client 'u' has no list tokens"),
        ("not text", "client 'u' has a sentence that is no text"),
        ("empty", "no sentences"),
        ("single words", "no sentence has two words of the vocabulary"),
    ],
)
def test_bad_files_are_named(root, load, what, found):
    path = root / "stackoverflow_train.h5"
    path.unlink()
    write_bad(path, what)
    with pytest.raises(ValueError) as error:
        load()
    assert str(error.value).startswith(f"{path}: {found}")
    assert str(error.value).endswith(stackoverflow.EXPECTED)


def test_a_file_that_is_no_hdf5_is_named(root, load):
    (root / "stackoverflow_test.h5").write_bytes(b"plain text")
    with pytest.raises(ValueError, match=r"stackoverflow_test\.h5: cannot be read \("):
        load()


def federate(root, tmp_path, partition):
    return FederatedData(
        Config(
            data=configure(root, tmp_path, partition=partition),
            model=ModelConfig(name="transformer"),
            clients=ClientsConfig(count=1),
        )
    )


def test_sentences_are_not_augmented(load):
    with pytest.raises(ValueError) as error:
        load(augment="crop_flip")
    assert str(error.value) == (
        "data.augment must be null when data.name is 'stackoverflow' (got 'crop_flip'): "
        "sentences are not augmented"
    )


@pytest.mark.parametrize("kind", ["dirichlet", "shards", "pathological"])
def test_partitions_by_class_are_refused(root, tmp_path, kind):
    choices = "'iid', 'group', 'quantity' or 'file'"
    expected = rf"data\.partition must be {choices} when .*stackoverflow' \(got '{kind}'\)"
    with pytest.raises(ValueError, match=expected):
        federate(root, tmp_path, kind)


def test_a_federation_counts_scored_tokens(root, tmp_path):
    data = federate(root, tmp_path, "group")
    assert data.top_k == 5
    assert (data.pool_size("test"), data.num_scored("test")) == (3, 6)
    scored = sum(int((y != -1).sum()) for _, y in data.pool_batches("test", 0, 3))
    assert scored == 6
    ((x, y),) = data.train_batches(0, 0, 1)
    assert x.shape == y.shape == (20, x.shape[1])


def test_prepare_counts_sentences_and_unknown_words(root, tmp_path):
    assert "stackoverflow_train.h5" in prepare(configure(root / "nowhere", tmp_path))
    text = prepare(configure(root, tmp_path))
    assert "train: 3 sentences, 7 target words, 0.0 % of them unknown and not scored" in text
    assert "test: 3 sentences, 7 target words, 14.3 % of them unknown" in text
    assert "2 users with 1 / 1.5 / 2 sentences each" in text


@needs_real
def test_real_stackoverflow(tmp_path):
    data = load_dataset(configure(REAL, tmp_path), seed=0)
    assert len(np.unique(data.train.group)) == 91
    assert len(np.unique(data.test.group)) == 97
    assert 4500 < len(data.train) <= 91 * 50
    counts = np.bincount(data.train.x[data.train.x > 1].ravel())[2:]
    assert np.all(np.diff(counts) <= 0)  # frequent words first
    unknown = (data.test.x == 1).sum() / (data.test.x > 0).sum()
    assert 0.02 < unknown < 0.12
