"""The verb `prepare`: keys, options and plug-ins beside the name of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.choices import plugins
from fedgmr_hpc.config.choices.registry import DATASETS


@pytest.fixture
def forgets_plugins() -> Iterator[None]:
    yield
    DATASETS.forget("brings_blank")
    plugins._loaded.clear()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of one image each, to train and to test."""
    root = tmp_path / "images"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (20, 20), (10, 240, 30)).save(folder / "a.png")
    return root


def prepare(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["prepare", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_keys_are_those_of_the_data_set_that_is_named(
    capsys: pytest.CaptureFixture[str], images: Path, tmp_path: Path
) -> None:
    places = ["--root", str(images), "--cache", str(tmp_path / "cache")]
    code, out, _ = prepare(capsys, "imagefolder", *places, "data.image_size=16")
    assert code == 0 and "imagefolder: ready, 2 classes, images 3x16x16" in out
    assert str(tmp_path / "cache") in out
    listed = tmp_path / "classes.txt"
    listed.write_text("dog\n")
    keys = [f"data.class_list={listed}", "data.image_size=24"]
    places = [f"data.root={images}", f"data.cache={tmp_path / 'cache'}"]
    code, out, _ = prepare(capsys, "imagefolder", *places, *keys)
    assert code == 0 and "imagefolder: ready, 1 classes, images 3x24x24" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["npz", "--root", "A", "data.root=B"],
            "data.root must be set only once (got data.root=A and data.root=B)",
        ),
        (
            ["digits", "--cache", "A", "data.cache=B"],
            "data.cache must be set only once (got data.cache=A and data.cache=B)",
        ),
        (
            ["npz", "data.name=digits"],
            "data.name must be set only once (got data.name=npz and data.name=digits)",
        ),
        (
            ["cifar10", "data.image_size=32"],
            "data.image_size must be 168 when data.name is 'cifar10' (got 32)",
        ),
        (["fmnist", "data.image_size=32"], "(got fmnist); did you mean 'femnist'?"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = prepare(capsys, *words)
    assert (code, out) == (2, "") and err.rstrip().endswith(said)


@pytest.mark.usefixtures("forgets_plugins")
def test_a_plug_in_brings_its_data_set_before_the_name_is_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plugin = tmp_path / "brings_blank.py"
    plugin.write_text(
        """\
import numpy as np
import fedgmr_hpc


@fedgmr_hpc.register_dataset("blank_images", mean=(0.5,), std=(0.25,))
def blank_images(root):
    x, y = np.zeros((8, 4, 4), np.uint8), np.arange(8) % 2
    return fedgmr_hpc.Arrays(x, y, x, y)
"""
    )
    words = ["blank_images", "--cache", str(tmp_path / "cache"), "data.image_size=16"]
    for named in (["--plugin", str(plugin)], [f"plugins=[{plugin}]"]):
        code, out, err = prepare(capsys, *words, *named)
        assert code == 0 and "blank_images: ready, 2 classes, images 1x4x4" in out, err
