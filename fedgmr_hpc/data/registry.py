"""The data sets that a configuration can name, and whether their files are there."""

from __future__ import annotations

from pathlib import Path

from fedgmr_hpc.config.choices.own_data import OwnData
from fedgmr_hpc.config.choices.registry import DATASETS
from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.own.registered import source_of
from fedgmr_hpc.data.source import DatasetSource, Files, Plan


def find_source(name: str) -> DatasetSource:
    """Return the source of a data set, built in or registered.

    Raises:
        ValueError: there is none of this name.
    """
    entry: DatasetSource | OwnData = DATASETS[name]
    return source_of(name, entry) if isinstance(entry, OwnData) else entry


def plan_dataset(data: DataConfig, *, seed: int) -> Plan:
    """Plan how a configuration's data set is opened; its cache folder is `plan.folder`.

    Raises:
        ValueError: its files are missing or cannot be looked up.
    """
    source = find_source(data.name)
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
    source = find_source(name)
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
    if name not in DATASETS or (source := find_source(name)).find_files is None:
        return []
    if root is None:
        return [f"data.root is not set, {name} needs it"]
    train, test = source.find_files(Path(root).expanduser())
    return [str(path) for path in train + test if not source.is_there(path)]
