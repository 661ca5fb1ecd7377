"""ImageNet-100: JPEG class folders, decoded once to one size, chunk by chunk.

As in the FedGMR experiments (data section), images are resized once ignoring their aspect ratio.
What is decoded is appended to the cache's array (rowfile.py), so the file's length says how many
images are done, and an interrupted build goes on there. Neither memory nor an interruption grows
with the set.
Shapes: N images, S the stored edge in pixels; images are bytes [N,3,S,S].
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.data.cache import file_facts
from fedgmr_hpc.data.foreign import reading, refuse
from fedgmr_hpc.data.formats import Bytes
from fedgmr_hpc.data.layouts import find_imagenet, is_data
from fedgmr_hpc.data.meter import Meter
from fedgmr_hpc.data.room import check_room
from fedgmr_hpc.data.row_file import RowFile

MAX_CLASSES = 100
SUFFIXES = (".jpeg", ".jpg")
WIDE_MODES = ("I", "F")  # 16 or 32 bits, which a conversion to bytes would clip
EXPECTED = "a JPEG image"
CHUNK = 256  # images decoded between two writes: 22 MB at 168 pixels
MAX_THREADS = 16
PARTS = ("train", "val")
SUBSET_STEP = 1002  # keeps the stream apart from the attempts of make_partition


@dataclass(frozen=True)
class ImageList:
    """The images of one split and their classes, in class order, then by name."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def firsts(self) -> list[Path]:
        """The first image of each class."""
        return [self.paths[at] for at in np.unique(np.array(self.labels), return_index=True)[1]]


@dataclass(frozen=True)
class ImageNet:
    """The chosen part of a download: nothing is decoded yet."""

    classes: tuple[str, ...]  # WordNet ids; their places are the labels
    train: ImageList
    test: ImageList
    edge: int  # S

    def facts(self) -> list[object]:
        """What the content of the cache depends on. Of the files, all names and the first of each
        class count, since asking for every size takes minutes on a shared file system."""
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
    """Lists the chosen classes of `root`; limits keep a seeded subset of each split.

    Raises:
        ValueError: a class of `class_list` has no folder, or a folder has no images.
    """
    folder = find_imagenet(root)
    classes = _choose_classes(folder, class_list)
    train, test = (_list_images(folder / part, classes) for part in PARTS)
    return ImageNet(
        classes=classes,
        train=_keep_some(train, max_train, client=0, seed=seed),
        test=_keep_some(test, max_test, client=1, seed=seed),
        edge=edge,
    )


def _choose_classes(folder: Path, class_list: str | None) -> tuple[str, ...]:
    """The classes of the list in its order, else the first hundred folders by name."""
    entries = (folder / PARTS[0]).iterdir()
    found = sorted(entry.name for entry in entries if entry.is_dir() and is_data(entry.name))
    if class_list is None:
        return tuple(found[:MAX_CLASSES])
    wanted = _read_class_list(Path(class_list).expanduser())
    absent = sorted(set(wanted) - set(found))
    if absent:
        raise ValueError(
            must("data.class_list", f"name folders of {folder / PARTS[0]}", class_list)
            + f": there is no {', '.join(absent[:3])}"
            f"{f' and {len(absent) - 3} more' if absent[3:] else ''}"
        )
    return wanted


def _read_class_list(path: Path) -> tuple[str, ...]:
    need = "a text file with one class folder a line, each once"
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = tuple(filter(None, map(str.strip, text.splitlines())))
    except (OSError, ValueError) as error:
        raise ValueError(must_be("data.class_list", need, path, because=str(error))) from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        why = f"it names {twice[0]} twice" if twice else "it has no line"
        raise ValueError(must_be("data.class_list", need, path, because=why))
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
    """In order; asks nothing of regular files but their names."""
    entries = os.scandir(folder) if folder.is_dir() else ()
    names = [entry.name for entry in entries if _is_image(entry)]
    if not names:
        raise ValueError(f"{folder}: no images, expected files *.JPEG of this class")
    return sorted(names)


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By its name; what is called so and is no file would be lost in silence, so it is refused."""
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
    """[3,S,S] RGB bytes of any image of 8 bits a channel, whatever its file is called.

    As in the usual pipelines of ImageNet, transparency is dropped and the orientation that a camera
    has noted (EXIF) is not applied.

    Raises:
        ValueError: the file cannot be decoded, or has pixels of 16 or 32 bits; names it.
    """
    with reading(path, EXPECTED), Image.open(path) as image:
        if image.mode.startswith(WIDE_MODES):
            refuse(path, f"has pixels of more than 8 bits ({image.mode})", EXPECTED)
        image.draft("RGB", (edge, edge))  # decodes at a half or a quarter where that suffices
        pixels = image.convert("RGB").resize((edge, edge), Image.Resampling.BILINEAR)
    rgb: Bytes = np.asarray(pixels).transpose(2, 0, 1)
    return rgb


def fill_imagenet(source: ImageNet, folder: Path, alive: Callable[[str], None]) -> None:
    """Writes the arrays of the cache; images that are already in `folder`, and whole, are kept."""
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
    """Decodes on all cores of this process and writes in order, a chunk at a time."""
    num_threads = min(len(os.sched_getaffinity(0)), MAX_THREADS)
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            for image in pool.map(lambda path: decode_image(path, edge), chunk):
                file.append(image)
                meter.add(1)
            file.flush()
