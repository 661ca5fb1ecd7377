"""The data sets that a configuration can name, and whether their files are there."""

from __future__ import annotations

from pathlib import Path

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cifar10 import CIFAR10
from fedgmr_hpc.data.cifar100 import CIFAR100
from fedgmr_hpc.data.digits import DIGITS
from fedgmr_hpc.data.femnist import FEMNIST
from fedgmr_hpc.data.imagenet import IMAGENET100
from fedgmr_hpc.data.mnist import EMNIST, FASHION_MNIST, MNIST
from fedgmr_hpc.data.own.image_folder import IMAGE_FOLDER
from fedgmr_hpc.data.own.npz import NPZ
from fedgmr_hpc.data.source import DatasetSource, Files, Plan
from fedgmr_hpc.data.stackoverflow import STACKOVERFLOW
from fedgmr_hpc.data.synthetic import SYNTHETIC_CIFAR10, SYNTHETIC_FEMNIST

_ALL = (
    DIGITS,
    MNIST,
    FASHION_MNIST,
    *EMNIST,
    FEMNIST,
    CIFAR10,
    CIFAR100,
    IMAGENET100,
    STACKOVERFLOW,
    NPZ,
    IMAGE_FOLDER,
    SYNTHETIC_FEMNIST,
    SYNTHETIC_CIFAR10,
)
DATASETS: dict[str, DatasetSource] = {source.name: source for source in _ALL}
DATASET_NAMES = tuple(DATASETS)


def plan_dataset(data: DataConfig, *, seed: int) -> Plan:
    """Plan how a configuration's data set is opened; its cache folder is `plan.folder`.

    Raises:
        ValueError: its files are missing or cannot be looked up.
    """
    source = DATASETS[data.name]
    try:
        return source.plan(data, find_files(data.name, data.root), seed)
    except OSError as error:
        found = repr(data.root)
        message = must_be("data.root", "a readable folder", found=found, because=str(error))
        raise ValueError(message) from None


def find_files(name: str, root: str | None) -> Files:
    """Return the official files of a data set; two empty lists where none are needed.

    Raises:
        ValueError: some are missing; says which.
    """
    source = DATASETS[name]
    if source.find_files is None:
        return [], []
    explain = f"`python -m fedgmr_hpc prepare {name}"
    if root is None:
        message = must_be("data.root", f"the folder of {name}'s files", None)
        raise ValueError(f"{message}; {explain}` explains the layout")
    if missing := describe_missing(name, root):
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        message = must(
            "data.root",
            f"hold all files of {name}",
            found=repr(root),
            because=f"missing are {shown}",
        )
        raise ValueError(f"{message}; {explain} --root {root}` explains the layout")
    return source.find_files(Path(root).expanduser())


def describe_missing(name: str, root: str | None) -> list[str]:
    """List the official files that are missing; empty where the data set is complete or built in.

    Args:
        name: of the data set; an unknown one has no files.
        root: folder of the files, `data.root`.
    """
    source = DATASETS.get(name)
    if source is None or source.find_files is None:
        return []
    if root is None:
        return [f"data.root is not set, {name} needs it"]
    train, test = source.find_files(Path(root).expanduser())
    return [str(path) for path in train + test if not source.is_there(path)]
