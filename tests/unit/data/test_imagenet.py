"""ImageNet-100: lists, decoding, the resumable cache and augmentation, on tiny JPEG trees."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.sections import ClientsConfig, DataConfig, ModelConfig, TrainConfig
from fedgmr_hpc.data import imagenet
from fedgmr_hpc.data.cache import Meter, build, open_or_fill
from fedgmr_hpc.data.datasets import load_dataset, prepare
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.data.formats import images

RED, GREEN, BLUE = (250, 10, 20), (10, 240, 30), (0, 20, 230)
REAL = os.environ.get("FEDGMR_DATA")
needs_real = pytest.mark.skipif(
    not REAL, reason="set FEDGMR_DATA to the folder with the unpacked real data sets"
)


def write_jpeg(path, colour, mode="RGB", size=(40, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, "JPEG", quality=95)


@pytest.fixture
def tree(tmp_path):
    """Classes n1 (2 red train images), n2 (1 green), n3 (1 blue), and one image each in val."""
    root = tmp_path / "imagenet100"
    for name, colours in {"n1": [RED, RED], "n2": [GREEN], "n3": [BLUE]}.items():
        for number, colour in enumerate(colours):
            write_jpeg(root / "train" / name / f"{name}_{number}.JPEG", colour)
        write_jpeg(root / "val" / name / f"val_{name}.JPEG", colours[0])
    return root


@pytest.fixture
def load(tmp_path, tree):
    def load_from(root=tmp_path, seed=0, **keys):
        keys = {"image_size": 16} | keys
        return load_dataset(configure(root, tmp_path, **keys), seed=seed)

    return load_from


def configure(root, tmp_path, **keys):
    return DataConfig(name="imagenet100", root=str(root), cache=str(tmp_path / "cache"), **keys)


def test_images_are_resized_and_classes_sorted_by_name(load):
    data = load()
    assert (data.num_classes, data.input_shape, data.top_k) == (3, (3, 16, 16), 1)
    assert (data.train.x.shape, data.train.x.dtype) == ((4, 3, 16, 16), np.uint8)
    assert data.train.y.tolist() == [0, 0, 1, 2]
    assert data.test.y.tolist() == [0, 1, 2]
    for row, colour in ((0, RED), (2, GREEN), (3, BLUE)):
        assert data.train.x[row, :, 8, 8].astype(int) == pytest.approx(colour, abs=3)
    assert isinstance(data.train.x.base, np.memmap)


def test_evaluation_gives_the_stored_image_normalised(load):
    data = load()
    x, y = data.batch(data.test, np.array([1]))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    stored = data.test.x[1, :, 3, 4]
    assert x[0, :, 3, 4].numpy() == pytest.approx((stored / 255 - mean) / std, abs=1e-5)
    assert y.tolist() == [1]
    assert data.num_scored(data.test, np.array([0, 2])) == 2


def test_the_aspect_ratio_is_ignored(tmp_path):
    halves = Image.new("RGB", (64, 16), "black")
    halves.paste((255, 255, 255), (32, 0, 64, 16))
    halves.save(tmp_path / "wide.jpg", quality=95)
    row = imagenet.decode_image(tmp_path / "wide.jpg", 16)[0, 8].astype(int)
    assert row[:7].max() < 10 and row[9:].min() > 245


@pytest.mark.parametrize(
    "mode, colour, expected", [("L", 77, (77, 77, 77)), ("CMYK", (0, 0, 0, 0), (255, 255, 255))]
)
def test_greyscale_and_cmyk_become_rgb(tmp_path, mode, colour, expected):
    write_jpeg(tmp_path / "image.JPEG", colour, mode)
    pixels = imagenet.decode_image(tmp_path / "image.JPEG", 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 5, 5].astype(int) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pixels_of_more_than_8_bits_are_refused_not_clipped(tmp_path, dtype):
    path, form = tmp_path / "wide.JPEG", "PNG" if dtype == np.uint16 else "TIFF"
    Image.fromarray(np.full((8, 8), 3000, dtype)).save(path, form)
    with pytest.raises(ValueError) as error:
        imagenet.decode_image(path, 8)
    assert str(error.value).startswith(f"{path}: has pixels of more than 8 bits (")


def test_palettes_and_transparency_keep_their_colours(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    image.save(tmp_path / "p.JPEG", "PNG", transparency=1)
    Image.new("RGBA", (8, 8), (*GREEN, 0)).save(tmp_path / "a.JPEG", "PNG")
    seen = [
        imagenet.decode_image(tmp_path / name, 8)[:, 4, 4].tolist() for name in ("p.JPEG", "a.JPEG")
    ]
    assert seen == [list(RED), list(GREEN)]


def test_hidden_files_and_litter_are_no_classes_and_no_images(tree, load):
    for part in ("train", "val"):
        for name in (".ipynb_checkpoints", "__MACOSX", "lost+found", "@eaDir"):
            write_jpeg(tree / part / name / "n1_0.JPEG", BLUE)
        (tree / part / "n1" / "._n1_0.JPEG").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
        (tree / part / "n1" / ".n1_0.JPEG.swp").touch()
        (tree / part / "n1" / "Thumbs.db").touch()
        (tree / part / ".DS_Store").touch()
    data = load()
    assert (data.num_classes, data.train.y.tolist()) == (3, [0, 0, 1, 2])


def test_a_link_to_nowhere_and_a_folder_called_like_an_image_are_refused(tree, load):
    path = tree / "train" / "n1" / "a.JPEG"
    for make in (lambda: path.symlink_to("nowhere"), lambda: path.symlink_to(path), path.mkdir):
        make()
        with pytest.raises(
            ValueError, match=r"a\.JPEG: (is no file|cannot be read \(.*Too many le)"
        ):
            load()
        path.rmdir() if path.is_dir() else path.unlink()


def test_names_that_are_no_utf8_are_read(tree, load):
    write_jpeg(tree / "train" / "n1" / "caf\udce9.JPEG", BLUE)
    assert load().train.y.tolist() == [0, 0, 0, 1, 2]


def federate(tmp_path, batch, **keys):
    data = configure(tmp_path, tmp_path, **keys, partition="iid")
    clients, model = ClientsConfig(count=1), ModelConfig(name="resnet18")
    return FederatedData(
        Config(data=data, model=model, clients=clients, train=TrainConfig(batch=batch))
    )


def test_one_sample_a_batch_is_refused_where_a_batch_norm_would_see_one_pixel(tmp_path, tree):
    with pytest.raises(
        ValueError, match=r"train\.batch must be at least 2 when .* 3x32x32 \(got 1\)"
    ):
        federate(tmp_path, 1, image_size=32)
    federate(tmp_path, 2, image_size=32)
    federate(tmp_path, 1, image_size=48)


def test_a_class_list_chooses_and_orders(tmp_path, load):
    (tmp_path / "list.txt").write_text("n3\n\n n1 \n")
    data = load(class_list=str(tmp_path / "list.txt"))
    assert data.num_classes == 2
    assert data.train.y.tolist() == [0, 1, 1]
    assert data.train.x[0, :, 8, 8].astype(int) == pytest.approx(BLUE, abs=3)


@pytest.mark.parametrize(
    "text, found",
    [
        ("n1\nn7\nn8\n", ": there is no n7, n8"),
        ("n1\nn2\nn1\n", "it names n1 twice"),
        ("\n", "it has no line"),
        (None, "No such file"),
    ],
)
def test_bad_class_lists_name_the_key(tmp_path, load, text, found):
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as error:
        load(class_list=str(path))
    assert str(error.value).startswith("data.class_list must ")
    assert f"(got '{path}')" in str(error.value)
    assert found in str(error.value) and "\n" not in str(error.value)


def test_at_most_a_hundred_classes_without_a_list(tmp_path):
    for number in range(102):
        for part in ("train", "val"):
            folder = tmp_path / part / f"n{number:03}"
            folder.mkdir(parents=True)
            (folder / "a.JPEG").touch()
    keys = {"edge": 16, "max_train": None, "max_test": None, "seed": 0}
    found = imagenet.list_imagenet(tmp_path, class_list=None, **keys)
    assert (len(found.classes), found.classes[99], len(found.train)) == (100, "n099", 100)


def test_a_class_without_validation_images_is_named(tree, load):
    (tree / "val" / "n2" / "val_n2.JPEG").unlink()
    with pytest.raises(ValueError, match=r"val/n2: no images, expected files \*\.JPEG"):
        load()


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_a_damaged_image_is_named(tree, load, content):
    path = tree / "train" / "n2" / "n2_0.JPEG"
    path.write_bytes(path.read_bytes()[:300] if content == "cut" else content)
    with pytest.raises(ValueError) as error:
        load()
    assert str(error.value).startswith(f"{path}: cannot be read (")
    assert str(error.value).endswith("expected a JPEG image")


def test_limits_decode_only_what_they_keep(load, monkeypatch):
    decoded = count_decoded(monkeypatch)
    data = load(max_train=2, max_test=1)
    assert (len(data.train), len(data.test), len(data.train.x)) == (2, 1, 2)
    assert len(decoded) == 3


# resume


def count_decoded(monkeypatch, fail_at=None):
    decoded, decode = [], images.decode_image

    def counted(path, edge):
        if len(decoded) == fail_at:
            raise KeyboardInterrupt
        decoded.append(path.name)
        return decode(path, edge)

    monkeypatch.setattr(images, "decode_image", counted)
    monkeypatch.setattr(images, "MAX_THREADS", 1)
    return decoded


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, load, monkeypatch):
    with monkeypatch.context() as patch:
        first = count_decoded(patch, fail_at=3)
        with pytest.raises(KeyboardInterrupt):
            load()
    assert len(first) == 3
    assert len(list((tmp_path / "cache").glob(".imagenet100-*.partial"))) == 1
    second = count_decoded(monkeypatch)
    data = load()
    assert sorted(first + second) == sorted(
        ["n1_0.JPEG", "n1_1.JPEG", "n2_0.JPEG", "n3_0.JPEG"]
        + ["val_n1.JPEG", "val_n2.JPEG", "val_n3.JPEG"]
    )
    assert data.train.y.tolist() == [0, 0, 1, 2]
    for row, colour in ((1, RED), (2, GREEN), (3, BLUE)):
        assert data.train.x[row, :, 8, 8].astype(int) == pytest.approx(colour, abs=3)
    assert not list((tmp_path / "cache").glob(".imagenet100-*"))


def test_a_torn_image_is_decoded_again(tmp_path, load, monkeypatch):
    with monkeypatch.context() as patch:
        count_decoded(patch, fail_at=3)
        with pytest.raises(KeyboardInterrupt):
            load()
    (path,) = (tmp_path / "cache").glob(".imagenet100-*.partial/train_x.npy")
    path.write_bytes(path.read_bytes()[:-5])
    second = count_decoded(monkeypatch)
    assert load().train.x[2, :, 8, 8].astype(int) == pytest.approx(GREEN, abs=3)
    assert second[0] == "n2_0.JPEG"


@pytest.mark.parametrize("name, at", [("train_x.npy", 128 + 3 * 16 * 16), ("train_sums.npy", -1)])
def test_an_image_whose_page_was_lost_is_decoded_again(tmp_path, load, monkeypatch, name, at):
    with monkeypatch.context() as patch:
        count_decoded(patch, fail_at=3)
        with pytest.raises(KeyboardInterrupt):
            load()
    (folder,) = (tmp_path / "cache").glob(".imagenet100-*.partial")
    content = bytearray((folder / name).read_bytes())
    content[at] ^= 255
    (folder / name).write_bytes(content)
    decoded = count_decoded(monkeypatch)
    assert load().train.x[2, :, 8, 8].astype(int) == pytest.approx(GREEN, abs=3)
    assert len(decoded) == 6 if name == "train_x.npy" else 5


def test_other_choices_do_not_go_on_with_a_foreign_folder(load, monkeypatch):
    with monkeypatch.context() as patch:
        count_decoded(patch, fail_at=3)
        with pytest.raises(KeyboardInterrupt):
            load()
    decoded = count_decoded(monkeypatch)
    assert load(image_size=20).train.x.shape == (4, 3, 20, 20)
    assert len(decoded) == 7


def test_without_file_locks_ranks_do_not_share_a_folder(tmp_path, load, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(build.fcntl, "flock", no_locks)
    count_decoded(monkeypatch, fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        load()
    assert not list((tmp_path / "cache").glob(".imagenet100-*"))


def test_a_full_disk_is_told_before_decoding(load, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    decoded = count_decoded(monkeypatch)
    with pytest.raises(ValueError, match=r"data\.cache must have 0\.0 GB free \(got 0\.0 GB in "):
        load()
    assert decoded == []


def test_the_lock_file_tells_who_waits_how_far_the_work_is(tmp_path):
    seen = []

    def fill(folder, alive):
        alive("7 of 9 images")
        seen.append((tmp_path / "x-1.lock").read_text())
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        open_or_fill(tmp_path / "x-1", fill)
    assert seen[0].endswith(f"pid {os.getpid()}: 7 of 9 images\n")


# progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_meter(stream, seconds):
    now_s, told = [seconds[0]], []
    meter = Meter("job", 1000, done=200, alive=told.append, stream=stream, clock=lambda: now_s[0])
    for now_s[0] in seconds[1:]:
        meter.add(100)
    meter.close()
    return stream.getvalue(), told


def test_a_pipe_gets_a_plain_line_now_and_then_with_the_time_left():
    text, told = run_meter(io.StringIO(), [0, 2, 4, 12])
    assert [line.partition(" job: ")[2] for line in text.splitlines()] == [
        "300 of 1,000 images (30.0 %), 50 images/s, 0:00:14 left",
        "500 of 1,000 images (50.0 %), 25 images/s, 0:00:20 left",
    ]
    assert told == ["300 of 1,000 images", "400 of 1,000 images", "500 of 1,000 images"]


def test_a_terminal_gets_one_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    text, _ = run_meter(Terminal(), [0, 2, 2.1, 4, 5, 6, 7, 8, 10])
    *lines, last = text.split("\r\x1b[2K")
    assert len(lines) == 7  # 2.1 s is too soon; the last line is drawn once more when it is left
    assert "\n" not in "".join(lines)
    done = "job: 1,000 of 1,000 images (100.0 %), 80 images/s, done in 10.0 s"
    assert lines[-1] == done and last.startswith(f"{done}\n")


# augmentation


def test_augmentation_follows_from_the_stream_alone_and_is_for_training_only(tree, load):
    ramp = np.arange(40, dtype=np.uint8)[None, :, None] * np.full((24, 1, 3), 6, np.uint8)
    Image.fromarray(ramp).save(tree / "train" / "n1" / "n1_0.JPEG", quality=95)
    data = load()
    draws = [data.draw_changes(1, make_rng(0, "augment", step=step)) for step in (1, 1, 2)]
    one, same, other, plain = (
        data.batch(data.train, np.array([0]), each)[0] for each in (*draws, None)
    )
    assert one.shape == (1, 3, 16, 16)
    assert torch.equal(one, same)
    assert not torch.equal(one, other) and not torch.equal(one, plain)


# prepare and real files


def test_prepare_explains_the_layout_then_counts(tmp_path, tree):
    missing = prepare(configure(tmp_path / "nowhere", tmp_path))
    assert "ROOT/imagenet100/train/<wnid>/*.JPEG" in missing and "data.class_list" in missing
    text = prepare(configure(tmp_path, tmp_path, image_size=16))
    assert "imagenet100: ready, 3 classes, images 3x16x16" in text
    assert "train: 4 samples of 3 classes" in text


def test_the_root_may_be_the_folder_itself(tree, load):
    assert len(load(root=tree).train) == 4


@needs_real
def test_real_imagenet(tmp_path):
    config = configure(REAL, tmp_path, image_size=32, max_train=400, max_test=100)
    data = load_dataset(config, seed=0)
    assert data.num_classes == 100
    assert (len(data.train), len(data.test)) == (400, 100)
    whole = imagenet.list_imagenet(
        Path(REAL), class_list=None, edge=32, max_train=None, max_test=None, seed=0
    )
    assert np.bincount(whole.train.labels).tolist() == [130] * 100
    assert np.bincount(whole.test.labels).tolist() == [30] * 100
    mean = data.train.x.mean(axis=(0, 2, 3)) / 255
    assert mean == pytest.approx(data.traits.mean, abs=0.03)
