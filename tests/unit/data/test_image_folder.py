"""A user's own class folders: formats, litter, and what is no image."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.datasets import load_dataset, prepare
from fedgmr_hpc.data.registry import describe_missing

RED, GREEN, BLUE = (250, 10, 20), (10, 240, 30), (0, 20, 230)


def write(path, colour=RED, mode="RGB", size=(40, 24), **choices):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **choices)


@pytest.fixture
def tree(tmp_path):
    """Classes cat (a JPEG, a PNG) and dog (a WebP of another size), and one image each to test."""
    write(tmp_path / "train" / "cat" / "a.jpeg", RED, quality=95)
    write(tmp_path / "train" / "cat" / "b.PNG", GREEN, size=(3, 90))
    write(tmp_path / "train" / "dog" / "c.webp", BLUE, size=(70, 70), lossless=True)
    for name in ("cat", "dog"):
        write(tmp_path / "test" / name / "t.jpg", BLUE)
    return tmp_path


@pytest.fixture
def load(tree):
    def load_from(**keys):
        return load_dataset(configure(tree, **keys), seed=0)

    return load_from


def configure(root, **keys):
    keys = {"image_size": 16} | keys
    return DataConfig(name="imagefolder", root=str(root), cache=str(root / "cache"), **keys)


def test_formats_and_sizes_may_be_mixed(tree, load):
    data = load()
    assert (data.num_classes, data.input_shape) == (2, (3, 16, 16))
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([0, 0, 1], [0, 1])
    for row, colour in enumerate((RED, GREEN, BLUE)):
        assert data.train.x[row, :, 8, 8].astype(int) == pytest.approx(colour, abs=4)
    assert data.augment == "resized_crop"
    assert load(augment="none").augment == "none"
    text = prepare(configure(tree))
    assert "imagefolder: ready, 2 classes, images 3x16x16" in text and "imagefolder-" in text


def test_val_stands_for_test_where_there_is_none(tree, load):
    whole = load()
    (tree / "test").rename(tree / "val")
    assert load().fingerprint == whole.fingerprint


def test_litter_is_no_image_and_no_class(tree, load):
    whole = load().fingerprint
    (tree / "train" / ".DS_Store").write_bytes(b"x")
    (tree / "train" / "__MACOSX").mkdir()
    (tree / "train" / ".hidden").mkdir()
    (tree / "train" / "cat" / "._a.jpeg").write_bytes(b"\0\5\26\7Mac OS X")
    (tree / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (tree / "train" / "cat" / "notes.txt").write_bytes(b"x")
    (tree / "test" / "@eaDir").mkdir()
    assert load().fingerprint == whole


@pytest.mark.parametrize("mode, colour", [("CMYK", (0, 255, 255, 0)), ("L", 77), ("1", 1)])
def test_images_of_other_modes_become_rgb(tree, load, mode, colour):
    name = "m.jpg" if mode != "1" else "m.png"
    write(tree / "train" / "dog" / name, colour, mode)
    pixel = load().train.x[3, :, 8, 8].astype(int)
    expected = {"CMYK": (255, 0, 0), "L": (77, 77, 77), "1": (255, 255, 255)}[mode]
    assert pixel == pytest.approx(expected, abs=6)


def test_palettes_and_transparency_become_rgb(tree, load):
    palette = Image.new("RGB", (9, 9), GREEN).convert("P")
    palette.save(tree / "train" / "dog" / "p.png", transparency=0)
    write(tree / "train" / "dog" / "t.png", (*BLUE, 0), "RGBA")
    pixels = load().train.x[3:, :, 8, 8].astype(int)
    assert pixels[0] == pytest.approx(np.array(GREEN), abs=40)  # of the nearest palette entry
    assert pixels[1].tolist() == list(BLUE)


def bomb():
    """A PNG of 100,000 x 100,000 pixels in few bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + check + bytes(4) + b"IDAT"


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("x.png", b"", "cannot be read (cannot identify image file"),
        ("x.webp", b"RIFF\x10\0\0\0WEBPVP8 ", "cannot be read ("),
        ("x.png", bomb(), "cannot be read (Image size (10000000000 pixels) exceeds limit"),
        ("x.jpg", None, "cannot be read ("),
    ],
)
def test_what_cannot_be_decoded_is_named(tree, load, name, content, said):
    path = tree / "train" / "dog" / name
    whole = (tree / "train" / "cat" / "a.jpeg").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    kind = {"png": "PNG", "webp": "WebP", "jpg": "JPEG"}[name.partition(".")[2]]
    with pytest.raises(ValueError) as error:
        load()
    assert str(error.value).startswith(f"{path}: {said}")
    assert str(error.value).endswith(f"expected a {kind} image")
    assert "\n" not in str(error.value)


def test_pixels_of_sixteen_bits_are_refused(tree, load):
    write(tree / "train" / "dog" / "x.png", 9, "I;16")
    with pytest.raises(ValueError, match="has pixels of more than 8 bits"):
        load()


def test_classes_of_both_folders_must_be_the_same(tree, load):
    write(tree / "test" / "owl" / "t.jpg")
    with pytest.raises(ValueError) as error:
        load()
    assert str(error.value) == (
        f"{tree / 'test' / 'owl'}: a class without a folder in {tree / 'train'}, "
        "expected the same classes"
    )
    write(tree / "train" / "owl" / "t.jpg")
    write(tree / "train" / "yak" / "t.jpg")
    with pytest.raises(ValueError, match=r"test/yak: no images, expected files \*\.jpg, \*"):
        load()


def test_a_class_list_chooses_and_orders(tree, load):
    (tree / "classes.txt").write_text("dog\ncat\n")
    assert load(class_list=str(tree / "classes.txt")).train.y.tolist() == [0, 1, 1]


def test_more_classes_than_imagenet_100_has_are_all_used(tmp_path):
    for number in range(101):
        for part in ("train", "test"):
            write(tmp_path / part / f"c{number:03}" / "a.png", size=(2, 2))
    assert load_dataset(configure(tmp_path), seed=0).num_classes == 101


@pytest.mark.skipif(
    "FEDGMR_DATA" not in os.environ,
    reason="set FEDGMR_DATA to the folder with the unpacked real data sets",
)
def test_real_photographs_are_those_of_the_official_set(tmp_path):
    root = Path(os.environ["FEDGMR_DATA"]) / "imagenet100"
    keys = {"image_size": 32, "max_train": 60, "max_test": 20}
    own, official = (
        load_dataset(
            DataConfig(name=name, root=str(root), cache=str(tmp_path / "cache"), **keys), seed=0
        )
        for name in ("imagefolder", "imagenet100")
    )
    assert own.fingerprint == official.fingerprint
    assert own.traits == official.traits


def test_what_is_missing_is_named(tmp_path, tree):
    (empty := tmp_path / "empty").mkdir()
    assert describe_missing("imagefolder", str(empty)) == [
        str(empty / "train" / "<class>"),
        str(empty / "test" / "<class>"),
    ]
    assert "ROOT/train/CLASS/*" in prepare(configure(empty))
    assert describe_missing("imagefolder", str(tree)) == []
