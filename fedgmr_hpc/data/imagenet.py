"""ImageNet-100: JPEG class folders, decoded once to one size.

Images are resized once, regardless of their aspect ratio; training crops and mirrors them at random
(docs/method.md#data-sets). Decoded images are appended to the cache's array, so that the length of
the file says how many are done and an interrupted build continues there. Neither memory nor the
loss at an interruption grows with the data set.

Shapes: N images, S edge of a stored image in pixels.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import (
    Meter,
    RowFile,
    check_room,
    file_facts,
    make_cache_key,
    open_or_fill,
)
from fedgmr_hpc.data.source import DatasetSource, Files, Plan, Traits, is_data
from fedgmr_hpc.data.splits import Bytes
from fedgmr_hpc.data.untrusted import reading, refuse

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAITS = Traits(100, (3, 168, 168), 255, MEAN, STD, "resized_crop")
INSTRUCTIONS = """\
ImageNet (ILSVRC 2012) is published at https://www.image-net.org. ImageNet-100 is 100 of its class
folders; put (or link) them, or all 1000, at
  ROOT/imagenet100/train/<wnid>/*.JPEG
  ROOT/imagenet100/val/<wnid>/*.JPEG
(ROOT/train and ROOT/val work too.) The validation images must lie in class folders as well; the
official archive does not sort them. data.class_list names a file with the classes to use, one a
line; without it the first 100 folders by name are taken."""
MAX_CLASSES = 100
SUFFIXES = (".jpeg", ".jpg")
WIDE_MODES = ("I", "F")  # 16 or 32 bits, which a conversion to bytes would clip
EXPECTED = "a JPEG image"
CHUNK = 256  # images decoded between two writes: 22 MB at 168 pixels
MAX_THREADS = 16
PARTS = ("train", "val")
SUBSET_STEP = 1002  # a stream of its own, apart from the attempts of make_partition


def find_folder(root: Path) -> Path:
    """Return the folder that holds `train` and `val`, whether it exists or not."""
    folders = [root / "imagenet100", root]
    return next((folder for folder in folders if (folder / "train").is_dir()), folders[0])


def find_files(root: Path) -> Files:
    """Return the folders of both splits, which hold too many files to list them here.

    A pattern stands for a folder without class folders.
    """
    train, val = (_with_classes(find_folder(root) / part) for part in PARTS)
    return train, val


def _with_classes(folder: Path) -> list[Path]:
    has_classes = any(is_data(path.name) for path in folder.glob("*/"))
    return [folder] if has_classes else [folder / "<wnid>"]


@dataclass(frozen=True)
class ImageList:
    """The images of one split with their classes, sorted by class, then by name."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def firsts(self) -> list[Path]:
        """Return the first image of each class."""
        return [self.paths[at] for at in np.unique(np.array(self.labels), return_index=True)[1]]


@dataclass(frozen=True)
class ImageNet:
    """The chosen part of a download, not yet decoded.

    Attributes:
        classes: WordNet ids; their positions are the labels.
        train: training images.
        test: images of the official validation split.
        edge: S to which images are resized.
    """

    classes: tuple[str, ...]
    train: ImageList
    test: ImageList
    edge: int

    def facts(self) -> list[object]:
        """Return what the content of the cache depends on.

        That includes the names of all files, but size and time only of the first one of each class:
        asking for those of every file takes minutes on a shared file system.
        """
        parts = (self.train, self.test)
        names = hashlib.sha256(
            b"\n".join(os.fsencode(path.name) for part in parts for path in part.paths)
        )
        firsts = [path for part in parts for path in part.firsts()]
        return ["imagenet100", self.edge, names.hexdigest(), *self.classes, *file_facts(firsts)]


def list_imagenet(
    root: Path,
    *,
    class_list: str | None,
    edge: int,
    max_train: int | None,
    max_test: int | None,
    seed: int,
) -> ImageNet:
    """List the images of the chosen classes.

    Args:
        root: folder with `train` and `val`, or with `imagenet100` that holds both.
        class_list: file with the class folders to use, in the order of their labels; None for the
            first 100 by name.
        edge: S to which images will be resized.
        max_train: size of a seeded subset of the training images; None for all.
        max_test: size of a seeded subset of the test images; None for all.
        seed: of the subsets.

    Raises:
        ValueError: a class of `class_list` has no folder, or a folder has no images.
    """
    folder = find_folder(root)
    classes = _choose_classes(folder, class_list)
    train, test = (_list_images(folder / part, classes) for part in PARTS)
    return ImageNet(
        classes=classes,
        train=_keep_some(train, max_train, client=0, seed=seed),
        test=_keep_some(test, max_test, client=1, seed=seed),
        edge=edge,
    )


def _choose_classes(folder: Path, class_list: str | None) -> tuple[str, ...]:
    """Return the classes of the list in its order, else the first 100 folders by name."""
    entries = (folder / PARTS[0]).iterdir()
    found = sorted(entry.name for entry in entries if entry.is_dir() and is_data(entry.name))
    if class_list is None:
        return tuple(found[:MAX_CLASSES])
    wanted = _read_class_list(Path(class_list).expanduser())
    absent = sorted(set(wanted) - set(found))
    if absent:
        shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if absent[3:] else "")
        need, named = f"name folders of {folder / PARTS[0]}", repr(class_list)
        raise ValueError(must("data.class_list", need, found=named, because=f"there is no {shown}"))
    return wanted


def _read_class_list(path: Path) -> tuple[str, ...]:
    expected = "a text file with one class folder a line, each once"
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = tuple(filter(None, map(str.strip, text.splitlines())))
    except (OSError, ValueError) as error:
        message = must_be("data.class_list", expected, found=repr(str(path)), because=str(error))
        raise ValueError(message) from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        because = f"it names {twice[0]} twice" if twice else "it has no line"
        found = repr(str(path))
        raise ValueError(must_be("data.class_list", expected, found=found, because=because))
    return names


def _list_images(folder: Path, classes: Sequence[str]) -> ImageList:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = _image_names(folder / name)
        paths += [folder / name / image for image in own]
        labels += [label] * len(own)
    return ImageList(tuple(paths), tuple(labels))


def _image_names(folder: Path) -> list[str]:
    """List the images of a folder by name, without asking the file system about each of them."""
    entries = os.scandir(folder) if folder.is_dir() else ()
    names = [entry.name for entry in entries if _is_image(entry)]
    if not names:
        raise ValueError(f"{folder}: no images, expected files *.JPEG of this class")
    return sorted(names)


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Tell an image by its name; refuse what has such a name and is no file.

    Skipping it would lose a sample silently.
    """
    if not (entry.name.lower().endswith(SUFFIXES) and is_data(entry.name)):
        return False
    with reading(entry.path, EXPECTED):
        if not entry.is_file():
            refuse(entry.path, "is no file, or a link to none", EXPECTED)
    return True


def _keep_some(images: ImageList, limit: int | None, *, client: int, seed: int) -> ImageList:
    if limit is None or limit >= len(images):
        return images
    rng = make_rng(seed, "partition", client=client, step=SUBSET_STEP)
    kept = np.sort(rng.choice(len(images), limit, replace=False))
    return ImageList(
        tuple(images.paths[at] for at in kept), tuple(images.labels[at] for at in kept)
    )


def decode_image(path: Path, edge: int) -> Bytes:
    """Decode an image of 8 bits a channel to RGB bytes [3, S, S].

    As in the usual pipelines for ImageNet, transparency is dropped and the orientation recorded by
    a camera (EXIF) is not applied.

    Args:
        path: the image, of any format whatever its name.
        edge: S.

    Raises:
        ValueError: the file cannot be decoded, or has pixels of 16 or 32 bits; names it.
    """
    with reading(path, EXPECTED), Image.open(path) as image:
        if image.mode.startswith(WIDE_MODES):
            refuse(path, f"has pixels of more than 8 bits ({image.mode})", EXPECTED)
        image.draft("RGB", (edge, edge))  # decode at 1/2 or 1/4 where that suffices
        pixels = image.convert("RGB").resize((edge, edge), Image.Resampling.BILINEAR)
    rgb: Bytes = np.asarray(pixels).transpose(2, 0, 1)
    return rgb


def fill_imagenet(source: ImageNet, folder: Path, alive: Callable[[str], None]) -> None:
    """Write the arrays of the cache, keeping intact images that `folder` already holds.

    Args:
        source: the images.
        folder: private folder of the cache under construction.
        alive: told now and then how far the work is.
    """
    parts = {"train": source.train, "test": source.test}
    for part, images in parts.items():
        np.save(folder / f"{part}_y.npy", np.array(images.labels, np.int64))
        np.save(folder / f"{part}_group.npy", np.zeros(len(images), np.int32))
    shape = 3, source.edge, source.edge
    files = {part: RowFile(folder, part, (len(parts[part]), *shape)) for part in parts}
    done = sum(file.done for file in files.values())
    num_images = len(source.train) + len(source.test)
    check_room(folder.parent, (num_images - done) * math.prod(shape))
    meter = Meter("imagenet100", num_images, done=done, alive=alive)
    try:
        for part, images in parts.items():
            with files[part] as file:
                _append(file, images.paths[file.done :], source.edge, meter)
    finally:
        meter.close()


def _append(file: RowFile, paths: Sequence[Path], edge: int, meter: Meter) -> None:
    """Decode on all cores of this process and append in order, one chunk at a time."""
    num_threads = min(len(os.sched_getaffinity(0)), MAX_THREADS)
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            for image in pool.map(lambda path: decode_image(path, edge), chunk):
                file.append(image)
                meter.add(1)
            file.flush()


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    source = list_imagenet(
        files[0][0].parent,
        class_list=data.class_list,
        edge=data.image_size,
        max_train=data.max_train,
        max_test=data.max_test,
        seed=seed,
    )
    shape = (3, data.image_size, data.image_size)
    return Plan(
        folder=f"imagenet100-{make_cache_key(source.facts())}",
        open=partial(open_or_fill, fill=partial(fill_imagenet, source)),
        traits=replace(TRAITS, num_classes=len(source.classes), input_shape=shape),
    )


IMAGENET100 = DatasetSource(
    "imagenet100", TRAITS, _plan, find_files, INSTRUCTIONS, is_there=Path.is_dir
)
