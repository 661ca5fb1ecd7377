"""Class folders of images: list them, and fill the cache with what images.py decodes.

Decoded images are appended to the cache's array, so that the length of the file says how many are
done and an interrupted build continues there. Neither memory nor the loss at an interruption grows
with the data set.

Shapes: N images, S edge of a stored image in pixels.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.randomness import make_rng
from fedgmr_hpc.data.cache import (
    Meter,
    RowFile,
    check_room,
    file_facts,
    make_cache_key,
    open_or_fill,
)
from fedgmr_hpc.data.formats.images import append_images, expected_image
from fedgmr_hpc.data.source import Plan, Traits, is_data
from fedgmr_hpc.data.untrusted import reading, refuse

# ImageNet's, by which images of any kind are normalised
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JPEG = (".jpeg", ".jpg")
SUBSET_STEP = 1002  # a stream of its own, apart from the attempts of make_partition


@dataclass(frozen=True)
class Tree:
    """Where class folders lie, and what counts in them.

    Attributes:
        name: of the data set, which begins the name of its cache.
        train: folder with the class folders of training images.
        test: folder with those of the test images.
        suffixes: of images, in small letters.
        pattern: what they are called, for messages.
        max_classes: how many of the class folders are used, the first by name; None for all.
    """

    name: str
    train: Path
    test: Path
    suffixes: tuple[str, ...]
    pattern: str
    max_classes: int | None = None


def with_classes(folder: Path, pattern: str) -> list[Path]:
    """Return a folder, or a pattern in it if it has no class folders."""
    has_classes = any(is_data(path.name) for path in folder.glob("*/"))
    return [folder] if has_classes else [folder / pattern]


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
class ImageFolders:
    """The chosen images of a tree, not yet decoded.

    Attributes:
        name: of the data set.
        classes: names of the folders; their positions are the labels.
        train: training images.
        test: test images.
        edge: S to which images are resized.
    """

    name: str
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
        return [self.name, self.edge, names.hexdigest(), *self.classes, *file_facts(firsts)]

    def plan(self, traits: Traits) -> Plan:
        """Plan how they are opened, with the classes and the size that they have."""
        shape = (3, self.edge, self.edge)
        return Plan(
            folder=f"{self.name}-{make_cache_key(self.facts())}",
            open=partial(open_or_fill, fill=partial(fill_images, self)),
            traits=replace(traits, num_classes=len(self.classes), input_shape=shape),
        )


def list_images(
    tree: Tree,
    *,
    class_list: str | None,
    edge: int,
    max_train: int | None,
    max_test: int | None,
    seed: int,
) -> ImageFolders:
    """List the images of the chosen classes.

    Args:
        tree: the folders.
        class_list: file with the class folders to use, in the order of their labels; None for all,
            or the first `max_classes`, by name.
        edge: S to which images will be resized.
        max_train: size of a seeded subset of the training images; None for all.
        max_test: size of a seeded subset of the test images; None for all.
        seed: of the subsets.

    Raises:
        ValueError: a class of `class_list` has no folder, or a folder has no images.
    """
    classes = _choose_classes(tree, class_list)
    train, test = (_list_part(part, classes, tree) for part in (tree.train, tree.test))
    return ImageFolders(
        name=tree.name,
        classes=classes,
        train=_keep_some(train, max_train, client=0, seed=seed),
        test=_keep_some(test, max_test, client=1, seed=seed),
        edge=edge,
    )


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in a folder, sorted."""
    return sorted(e.name for e in folder.iterdir() if e.is_dir() and is_data(e.name))


def _choose_classes(tree: Tree, class_list: str | None) -> tuple[str, ...]:
    """Return the classes of the list in its order, else the first folders by name."""
    found = class_folders(tree.train)
    if class_list is None:
        return tuple(found[: tree.max_classes])
    wanted = _read_class_list(Path(class_list).expanduser())
    absent = sorted(set(wanted) - set(found))
    if absent:
        shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if absent[3:] else "")
        need, named = f"name folders of {tree.train}", repr(class_list)
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


def _list_part(folder: Path, classes: Sequence[str], tree: Tree) -> ImageList:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = _image_names(folder / name, tree)
        paths += [folder / name / image for image in own]
        labels += [label] * len(own)
    return ImageList(tuple(paths), tuple(labels))


def _image_names(folder: Path, tree: Tree) -> list[str]:
    """List the images of a folder by name, without asking the file system about each of them."""
    entries = os.scandir(folder) if folder.is_dir() else ()
    names = [entry.name for entry in entries if _is_image(entry, tree.suffixes)]
    if not names:
        raise ValueError(f"{folder}: no images, expected files {tree.pattern} of this class")
    return sorted(names)


def _is_image(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
    """Tell an image by its name; refuse what has such a name and is no file.

    Skipping it would lose a sample silently.
    """
    if not (entry.name.lower().endswith(suffixes) and is_data(entry.name)):
        return False
    expected = expected_image(Path(entry.name))
    with reading(entry.path, expected):
        if not entry.is_file():
            refuse(entry.path, "is no file, or a link to none", expected)
    return True


def _keep_some(images: ImageList, limit: int | None, *, client: int, seed: int) -> ImageList:
    if limit is None or limit >= len(images):
        return images
    rng = make_rng(seed, "partition", client=client, step=SUBSET_STEP)
    kept = np.sort(rng.choice(len(images), limit, replace=False))
    return ImageList(
        tuple(images.paths[at] for at in kept), tuple(images.labels[at] for at in kept)
    )


def fill_images(source: ImageFolders, folder: Path, alive: Callable[[str], None]) -> None:
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
    meter = Meter(source.name, num_images, done=done, alive=alive)
    try:
        for part, images in parts.items():
            with files[part] as file:
                append_images(file, images.paths[file.done :], source.edge, meter)
    finally:
        meter.close()
