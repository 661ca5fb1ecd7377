"""A user's own images in class folders: JPEG, PNG or WebP of any size, resized once.

    ROOT/train/CLASS/*    ROOT/test/CLASS/*    (or ROOT/val, where there is no test)

They are treated as those of ImageNet-100: colours, normalisation, random crops.
"""

from __future__ import annotations

from pathlib import Path

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.formats.image_folders import (
    JPEG,
    MEAN,
    STD,
    Tree,
    class_folders,
    list_images,
    with_classes,
)
from fedgmr_hpc.data.source import UNKNOWN, DatasetSource, Files, Plan, Traits, register
from fedgmr_hpc.data.untrusted import refuse

SUFFIXES = (*JPEG, ".png", ".webp")
TRAITS = Traits(UNKNOWN, (3, 168, 168), 255, MEAN, STD, "resized_crop")
INSTRUCTIONS = """\
imagefolder is for images of your own, JPEG, PNG or WebP of any size, in a folder a class:
  ROOT/train/CLASS/*
  ROOT/test/CLASS/*   (or ROOT/val/CLASS/*, where there is no ROOT/test)
Classes are numbered by name, or in the order of the file that data.class_list names, which has one
a line. Images are resized to data.image_size when they are cached."""


def find_files(root: Path) -> Files:
    """Return the folders of both splits; a pattern stands for one without class folders."""
    test = next((root / part for part in ("test", "val") if (root / part).is_dir()), root / "test")
    return with_classes(root / "train", "<class>"), with_classes(test, "<class>")


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    (train,), (test,) = files
    if data.class_list is None:
        _check_classes(train, test)
    return list_images(
        Tree(data.name, train, test, SUFFIXES, "*.jpg, *.png or *.webp"),
        class_list=data.class_list,
        edge=data.image_size,
        max_train=data.max_train,
        max_test=data.max_test,
        seed=seed,
    ).plan(TRAITS)


def _check_classes(train: Path, test: Path) -> None:
    """Refuse a class that is tested and never trained; what is trained must be tested, too."""
    unknown = sorted(set(class_folders(test)) - set(class_folders(train)))
    if unknown:
        refuse(test / unknown[0], f"a class without a folder in {train}", "the same classes")


register(
    DatasetSource("imagefolder", TRAITS, _plan, find_files, INSTRUCTIONS, is_there=Path.is_dir)
)
