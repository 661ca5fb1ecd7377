"""Where the official files of a data set lie under a root, what is missing, and how to get it.

Nothing is downloaded. A layout is two lists, train and test, of files in reading order; those of
ImageNet-100 are its two folders, which hold too many files to ask for each.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedgmr_hpc.config.messages import must, must_be

Files = tuple[list[Path], list[Path]]  # train, test

CIFAR_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR_FOLDERS = {"cifar-10-batches-bin": ".bin", "cifar-10-batches-py": ""}

LAYOUTS = {
    "femnist": """\
FEMNIST is made by LEAF, https://github.com/TalwalkarLab/leaf, in its folder data/femnist:
  ./preprocess.sh -s niid --sf 0.05 -k 0 -t sample
Put the results where LEAF writes them, with any number of shard files:
  ROOT/femnist/data/train/*.json
  ROOT/femnist/data/test/*.json
(ROOT/data/train and ROOT/data/test work too, so ROOT may be LEAF's own folder data/femnist.)""",
    "cifar10": """\
CIFAR-10 is published at https://www.cs.toronto.edu/~kriz/cifar.html.
Unpack one of its two archives in ROOT:
  cifar-10-binary.tar.gz  -> ROOT/cifar-10-batches-bin/data_batch_1.bin ... _5.bin, test_batch.bin
  cifar-10-python.tar.gz  -> ROOT/cifar-10-batches-py/data_batch_1 ... _5, test_batch
(ROOT may also be that folder itself.)""",
    "imagenet100": """\
ImageNet (ILSVRC 2012) is published at https://www.image-net.org. ImageNet-100 is 100 of its class
folders; put (or link) them, or all 1000, at
  ROOT/imagenet100/train/<wnid>/*.JPEG
  ROOT/imagenet100/val/<wnid>/*.JPEG
(ROOT/train and ROOT/val work too.) The validation images must lie in class folders as well; the
official archive does not sort them. data.class_list names a file with the classes to use, one a
line; without it the first 100 folders by name are taken.""",
    "stackoverflow": """\
StackOverflow is published by TensorFlow Federated, tff.simulation.datasets.stackoverflow: unpack
https://storage.googleapis.com/tff-datasets-public/stackoverflow.tar.bz2 to
  ROOT/stackoverflow/stackoverflow_train.h5
  ROOT/stackoverflow/stackoverflow_test.h5
(ROOT may also be that folder itself.)""",
}


# What file managers, archives, notebooks and file systems leave between the files of others.
LITTER = ("__macosx", "lost+found", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin")


def is_data(name: str) -> bool:
    """False for hidden files and folders, as ._NAME of macOS archives, and other litter."""
    return not name.startswith(".") and name.lower() not in LITTER


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts all_data_2 before all_data_10."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def _leaf_files(root: Path) -> Files:
    folders = [root / "data", root / "femnist" / "data"]
    folder = next((folder for folder in folders if (folder / "train").is_dir()), folders[-1])
    train, test = (
        sorted(filter(_is_data_path, (folder / part).glob("*.json")), key=_by_number)
        for part in ("train", "test")
    )
    return train or [folder / "train" / "*.json"], test or [folder / "test" / "*.json"]


def _is_data_path(path: Path) -> bool:
    return is_data(path.name)


def _cifar_files(root: Path) -> Files:
    """The first layout of which a file is there, else the binary one."""
    places = [(root / folder, suffix) for folder, suffix in CIFAR_FOLDERS.items()]
    places += [(root, suffix) for suffix in CIFAR_FOLDERS.values()]
    layouts = [
        ([folder / f"{name}{suffix}" for name in CIFAR_TRAIN], [folder / f"test_batch{suffix}"])
        for folder, suffix in places
    ]
    found = (files for files in layouts if any(path.is_file() for path in files[0] + files[1]))
    return next(found, layouts[0])


def find_imagenet(root: Path) -> Path:
    """The folder with `train` and `val`, there or not."""
    folders = [root / "imagenet100", root]
    return next((folder for folder in folders if (folder / "train").is_dir()), folders[0])


def _imagenet_folders(root: Path) -> Files:
    """The two folders; a pattern stands for one without class folders."""
    train, val = (
        [folder] if any(map(_is_data_path, folder.glob("*/"))) else [folder / "<wnid>"]
        for folder in (find_imagenet(root) / "train", find_imagenet(root) / "val")
    )
    return train, val


def _stackoverflow_files(root: Path) -> Files:
    names = "stackoverflow_train.h5", "stackoverflow_test.h5"
    folders = [root / "stackoverflow", root]
    has_one = (folder for folder in folders if any((folder / name).is_file() for name in names))
    folder = next(has_one, folders[0])
    return [folder / names[0]], [folder / names[1]]


_SOURCES = {
    "femnist": _leaf_files,
    "cifar10": _cifar_files,
    "imagenet100": _imagenet_folders,
    "stackoverflow": _stackoverflow_files,
}


def source_files(name: str, root: Path) -> Files:
    """The files that hold `name`, there or not; a pattern stands for a list that is empty."""
    return _SOURCES[name](root)


def describe_missing(name: str, root: str | None) -> list[str]:
    """The paths looked for and not there; empty when the data set is complete or built in."""
    if name not in LAYOUTS:
        return []
    if root is None:
        return [f"data.root is not set, {name} needs it"]
    train, test = source_files(name, Path(root).expanduser())
    is_there = Path.is_dir if name == "imagenet100" else Path.is_file
    return [str(path) for path in train + test if not is_there(path)]


def check_complete(name: str, root: str | None) -> Files:
    """The source files, or a ValueError that says what was looked for."""
    if root is None:
        raise ValueError(
            must_be("data.root", f"the folder of {name}'s files", None)
            + f"; `python -m fedgmr_hpc prepare {name}` explains the layout"
        )
    if missing := describe_missing(name, root):
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise ValueError(
            must("data.root", f"hold all files of {name}", root, because=f"missing are {shown}")
            + f"; `python -m fedgmr_hpc prepare {name} --root {root}` explains the layout"
        )
    return source_files(name, Path(root).expanduser())
