"""Data sets from a function of one's own: registered, cached, and refused in one line."""

import functools
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedgmr_hpc import Arrays, register_dataset
from fedgmr_hpc.config.choices import plugins
from fedgmr_hpc.config.choices.own_data import OwnData
from fedgmr_hpc.config.choices.registry import DATASETS
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.datasets import load_dataset, prepare
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.data.own.registered import _source_digest
from fedgmr_hpc.data.registry import describe_missing

X = np.arange(12 * 16, dtype=np.uint8).reshape(12, 4, 4)
Y = np.arange(12) % 3
GOOD = Arrays(X, Y, X[:5], Y[:5])


@pytest.fixture(autouse=True)
def _forget():
    yield
    for origin in (__name__, "mine"):
        DATASETS.forget(origin)
    plugins._loaded.clear()


@pytest.fixture
def load(tmp_path):
    def load_from(made=GOOD, root=None, **traits):
        @register_dataset("mine", **traits)
        def mine(root):
            return made

        return load_dataset(configure(tmp_path, root), seed=0)

    return load_from


def configure(tmp_path, root=None):
    root = None if root is None else str(root)
    return DataConfig(name="mine", root=root, cache=str(tmp_path / "cache"))


def test_what_is_not_said_is_read_from_the_arrays(load):
    data = load()
    assert np.array_equal(data.train.x[:, 0], X)
    assert (data.num_classes, data.input_shape, data.augment) == (3, (1, 4, 4), "none")
    assert not data.traits.has_groups
    assert data.batch(data.train, np.array([1]))[0][0, 0, 0, 1].item() == pytest.approx(17 / 255)


def test_what_is_said_counts(load):
    said = {"num_classes": 7, "input_shape": (1, 4, 4), "max_value": 200, "top_k": 2}
    data = load(mean=(0.5,), std=(0.25,), augment="crop_flip", **said)
    assert (data.num_classes, data.top_k, data.augment) == (7, 2, "crop_flip")
    images, _ = data.batch(data.train, np.array([0]))
    assert images[0, 0, 0, 1].item() == pytest.approx((1 / 200 - 0.5) / 0.25)


def test_a_plain_tuple_lists_and_groups_will_do(load):
    data = load((X, Y.tolist(), X[:5], Y[:5].tolist(), ["b"] * 6 + ["a"] * 6))
    assert data.train.group.tolist() == [1] * 6 + [0] * 6
    assert data.traits.has_groups
    assert data.train.y.tolist() == Y.tolist()


@pytest.mark.parametrize(
    "made, traits, said",
    [
        (None, {}, "its function returned NoneType, expected x_train, y_train, x_test, y_test, g"),
        ((X, Y, X), {}, "its function returned 3 values, expected x_train, y_train, x_test"),
        (GOOD._replace(y_test=Y), {}, "y_test has shape [12], expected [5], a label for each"),
        (GOOD._replace(x_train=X + 0.5), {}, "x_train: sample 0 has a pixel of 1.5, expected f"),
        (GOOD._replace(x_train=[[1], [2, 3]]), {}, "x_train is no array ("),
        (GOOD, {"num_classes": 2}, "label 2, expected 0..1, as num_classes says"),
        (GOOD, {"input_shape": (1, 8, 8)}, "images of [1, 4, 4], expected input_shape (1, 8, 8)"),
        (GOOD, {"max_value": 16}, "a pixel of 191, expected at most 16, as max_value says"),
        (GOOD, {"mean": (0.1, 0.2), "std": (1, 1)}, "1 channels, expected 2, as mean says"),
    ],
)
def test_wrong_arrays_are_one_line(load, made, traits, said):
    with pytest.raises(ValueError) as error:
        load(made, **traits)
    assert str(error.value).startswith(f"data.name mine: {said}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "traits, said",
    [
        ({"num_classes": 0}, "num_classes must be a whole number more than 0 (got 0)"),
        ({"max_value": 1.5}, "max_value must be a whole number more than 0 (got 1.5)"),
        ({"input_shape": (4, 4)}, "input_shape must be channels, height and width (got [4, 4])"),
        ({"mean": 0.5}, "mean must be a tuple of numbers (got 0.5)"),
        ({"std": (0.0,)}, "std must be one number more than 0 for each of mean (got [0])"),
        ({"augment": "flip"}, "augment must be 'none', 'crop_flip' or 'resized_crop' (got 'flip')"),
    ],
)
def test_a_wrong_trait_is_refused_when_it_is_said(load, traits, said):
    with pytest.raises(ValueError) as error:
        load(**traits)
    assert str(error.value).startswith(said)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match=r"data\.name 'digits' must be a new name: the package"):
        register_dataset("digits")(lambda root: GOOD)


PLUGIN = """
import numpy as np
from fedgmr_hpc import register_dataset

@register_dataset("mine")
def mine(root):
    x = np.full((20, 8, 8), VALUE, np.uint8)
    if root is not None:
        x = x + np.load(root / "more.npy")
    return x, np.arange(20) % 2, x[:4], np.arange(4) % 2
"""


def written(path, value):
    path.write_text(PLUGIN.replace("VALUE", str(value)))
    return load_config(
        None,
        [f"plugins=[{path}]", "data.name=mine", f"data.cache={path.parent}/cache"],
    ).data


def test_it_is_called_once_until_its_file_or_the_root_changes(tmp_path):
    path = tmp_path / "mine.py"
    first = load_dataset(written(path, 1), seed=0)
    assert first.train.x.max() == 1
    assert load_dataset(written(path, 1), seed=0).fingerprint == first.fingerprint
    assert len(list(tmp_path.glob("cache/mine-*/train_x.npy"))) == 1
    assert load_dataset(written(path, 2), seed=0).train.x.max() == 2
    (root := tmp_path / "root").mkdir()
    for more in (3, 40):
        np.save(root / "more.npy", np.array([more] * more, np.uint8)[:1])
        (root / "size").write_bytes(b"x" * more)
        data = written(path, 2).model_copy(update={"root": str(root)})
        assert load_dataset(data, seed=0).train.x.max() == 2 + more


def test_it_is_called_again_when_another_module_of_its_package_changes(tmp_path):
    package = tmp_path / "made_of_two"
    package.mkdir()
    (package / "__init__.py").write_text(
        PLUGIN.replace("VALUE", "core.VALUE") + "from made_of_two import core\n"
    )
    code = (
        "import sys, fedgmr_hpc; from fedgmr_hpc.data.datasets import load_dataset\n"
        "config = fedgmr_hpc.load_config(None, sys.argv[1:])\n"
        "print(load_dataset(config.data, seed=0).train.x.max())\n"
    )
    words = ["plugins=[made_of_two]", "data.name=mine", f"data.cache={tmp_path}/cache"]
    for value in ("1", "2"):
        (package / "core.py").write_text(f"VALUE = {value}\n")
        ran = subprocess.run(
            [sys.executable, "-B", "-c", code, *words],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            **{"capture_output": True, "text": True, "check": True},
        )
        assert ran.stdout == f"{value}\n"


def test_the_source_is_that_of_the_function_and_not_of_what_wraps_it(tmp_path):
    def known(path, value):
        path.write_text(f"def load(root):\n    return {value}\n")
        found = runpy.run_path(str(path))["load"]

        @functools.wraps(found)
        def wrapped(root):
            return found(root)

        return _source_digest("mine", OwnData(wrapped))

    digests = {known(tmp_path / "mine.py", value) for value in (1, 2)}
    assert len(digests) == 2


def test_a_function_without_a_source_is_told_from_a_root_that_is_not_there(tmp_path):
    made: dict = {}
    exec(compile("def load(root): ...", "<stdin>", "exec"), made)
    register_dataset("mine")(made["load"])
    with pytest.raises(ValueError) as error:
        load_dataset(configure(tmp_path), seed=0)
    assert str(error.value).startswith("the function of data.name 'mine' must be in a file")
    assert "data.root" not in str(error.value)


def test_what_a_function_raises_is_one_line_with_its_place(tmp_path):
    data = written(tmp_path / "mine.py", "UNKNOWN")
    with pytest.raises(ValueError) as error:
        load_dataset(data, seed=0)
    assert str(error.value) == (
        f"data.name mine, {tmp_path / 'mine.py'}:7: NameError: name 'UNKNOWN' is not defined"
    )


def test_it_is_prepared_and_partitioned_as_all_are(tmp_path):
    path = tmp_path / "mine.py"
    data = written(path, 1)
    assert describe_missing("mine", None) == []
    assert "mine: ready, 2 classes, images 1x8x8" in prepare(data)
    words = [f"plugins=[{path}]", "data.name=mine", f"data.cache={tmp_path}/cache"]
    config = load_config(None, [*words, "clients.count=5", "data.partition=pathological"])
    assert [len(part) for part in FederatedData(config).train_parts] == [3] * 5
    config = load_config(None, [*words, "model.name=vgg11"])
    with pytest.raises(ValueError, match=r"vgg11 takes images \(3, 32, 32\), not \(1, 8, 8\)$"):
        FederatedData(config)


def test_registering_is_light():
    lines = "import sys, fedgmr_hpc; fedgmr_hpc.register_dataset; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_the_example_touches_one_file():
    text = Path(__file__).parents[3].joinpath("examples", "own_data.py").read_text()
    assert len(text.splitlines()) < 60
