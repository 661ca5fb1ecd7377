"""ImageNet-100: the class folders of ILSVRC, decoded once to one size.

Training crops and mirrors images at random (docs/method.md#data-sets); formats/image_folders.py
reads them.
"""

from __future__ import annotations

from pathlib import Path

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.formats.image_folders import (
    JPEG,
    MEAN,
    STD,
    ImageFolders,
    Tree,
    list_images,
    with_classes,
)
from fedgmr_hpc.data.formats.images import decode_image
from fedgmr_hpc.data.source import DatasetSource, Files, Plan, Traits, register

__all__ = ["decode_image", "find_files", "find_folder", "list_imagenet"]

MAX_CLASSES = 100
TRAITS = Traits(MAX_CLASSES, (3, 168, 168), 255, MEAN, STD, "resized_crop")
INSTRUCTIONS = """\
ImageNet (ILSVRC 2012) is published at https://www.image-net.org. ImageNet-100 is 100 of its class
folders; put (or link) them, or all 1000, at
  ROOT/imagenet100/train/<wnid>/*.JPEG
  ROOT/imagenet100/val/<wnid>/*.JPEG
(ROOT/train and ROOT/val work too.) The validation images must lie in class folders as well; the
official archive does not sort them. data.class_list names a file with the classes to use, one a
line; without it the first 100 folders by name are taken."""


def find_folder(root: Path) -> Path:
    """Return the folder that holds `train` and `val`, whether it exists or not."""
    folders = [root / "imagenet100", root]
    return next((folder for folder in folders if (folder / "train").is_dir()), folders[0])


def find_files(root: Path) -> Files:
    """Return the folders of both splits, which hold too many files to list them here.

    A pattern stands for a folder without class folders.
    """
    train, val = (with_classes(find_folder(root) / part, "<wnid>") for part in ("train", "val"))
    return train, val


def list_imagenet(
    root: Path,
    *,
    class_list: str | None,
    edge: int,
    max_train: int | None,
    max_test: int | None,
    seed: int,
) -> ImageFolders:
    """List the images of the chosen classes.

    Args:
        root: folder with `train` and `val`, or with `imagenet100` that holds both.
        class_list: file with the class folders to use, in the order of their labels; None for the
            first 100 by name.
        edge: S to which images will be resized, in pixels.
        max_train: size of a seeded subset of the training images; None for all.
        max_test: size of a seeded subset of the test images; None for all.
        seed: of the subsets.

    Raises:
        ValueError: a class of `class_list` has no folder, or a folder has no images.
    """
    folder = find_folder(root)
    tree = Tree("imagenet100", folder / "train", folder / "val", JPEG, "*.JPEG", MAX_CLASSES)
    return list_images(
        tree,
        class_list=class_list,
        edge=edge,
        max_train=max_train,
        max_test=max_test,
        seed=seed,
    )


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    return list_imagenet(
        files[0][0].parent,
        class_list=data.class_list,
        edge=data.image_size,
        max_train=data.max_train,
        max_test=data.max_test,
        seed=seed,
    ).plan(TRAITS)


register(
    DatasetSource("imagenet100", TRAITS, _plan, find_files, INSTRUCTIONS, is_there=Path.is_dir)
)
