"""FEMNIST: handwritten characters by writer, from the JSON shards of LEAF (Caldas et al., 2018).

Pixels are stored inverted, as round(255 (1 - x)), so that the background is 0
(docs/method.md#data-sets).

Shapes: N samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.config.sections import DataConfig
from fedgmr_hpc.data.cache import file_facts
from fedgmr_hpc.data.source import (
    DatasetSource,
    Files,
    Plan,
    Traits,
    check_labels,
    is_data,
    plan_build,
    register,
    whole_numbers,
)
from fedgmr_hpc.data.splits import Bytes, Longs, Split, Splits
from fedgmr_hpc.data.untrusted import reading, refuse

NUM_PIXELS = 784
NUM_CLASSES = 62
TRAITS = Traits(NUM_CLASSES, (1, 28, 28), has_groups=True)
INSTRUCTIONS = """\
FEMNIST is made by LEAF, https://github.com/TalwalkarLab/leaf, in its folder data/femnist:
  ./preprocess.sh -s niid --sf 0.05 -k 0 -t sample
Put the results where LEAF writes them, with any number of shard files:
  ROOT/femnist/data/train/*.json
  ROOT/femnist/data/test/*.json
(ROOT/data/train and ROOT/data/test work too, so ROOT may be LEAF's own folder data/femnist.)"""


def find_files(root: Path) -> Files:
    """List the shards of both splits."""
    folders = [root / "data", root / "femnist" / "data"]
    folder = next((folder for folder in folders if (folder / "train").is_dir()), folders[-1])
    train, test = (_shards(folder / part) for part in ("train", "test"))
    return train or [folder / "train" / "*.json"], test or [folder / "test" / "*.json"]


def _shards(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("*.json") if is_data(p.name)), key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort all_data_2 before all_data_10."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


@dataclass(frozen=True, eq=False)
class _Writer:
    """One entry of `user_data`; a bad one carries its fault until its user's name is known.

    Attributes:
        x: [N, 784] inverted pixels.
        y: [N] classes.
        found: what is wrong; empty if nothing is.
        expected: what should have been there.
    """

    x: Bytes
    y: Longs
    found: str = ""
    expected: str = ""


def _bad_writer(found: str, expected: str) -> _Writer:
    return _Writer(np.empty((0, NUM_PIXELS), np.uint8), np.empty(0, np.int64), found, expected)


def _leaf_pixels(rows: list[Any]) -> Bytes | _Writer:
    """Return the parsed rows of floats as inverted bytes [N, 784], or what is wrong with them."""
    expected = f"{NUM_PIXELS} numbers in 0..1"
    for number, row in enumerate(rows):
        length = len(row) if isinstance(row, list) else "no"
        if length != NUM_PIXELS:
            return _bad_writer(f"sample {number} has {length} pixels", expected)
    try:
        x = np.array(rows, dtype=np.float32).reshape(len(rows), NUM_PIXELS)
    except (TypeError, ValueError):
        return _bad_writer("x holds something that is not a number", expected)
    outside = np.argwhere(~((x >= 0) & (x <= 1)))  # written so that NaN counts as outside
    if len(outside):
        row, column = outside[0]
        return _bad_writer(f"sample {row} has pixel value {x[row, column]:g}", expected)
    return np.rint(255 * (1 - x)).astype(np.uint8)


def _pack_writer(pairs: list[tuple[str, Any]]) -> Any:
    """Pack a writer's pixels into bytes as soon as they are parsed (json's object_pairs_hook).

    As Python floats in a list they take 32 bytes each, several GB for a full download.
    """
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    x, y = entry.get("x"), entry.get("y")
    if not isinstance(x, list) and not isinstance(y, list):
        return entry
    if not isinstance(x, list) or not isinstance(y, list):
        lacking = "y" if isinstance(x, list) else "x"
        return _bad_writer(f'has no list "{lacking}"', '"x" and "y"')
    if len(x) != len(y):
        return _bad_writer(f"has {len(x)} images and {len(y)} labels", "as many of each")
    labels = whole_numbers(y)
    if labels is None:
        return _bad_writer('"y" holds something that is not an integer', "class numbers")
    pixels = _leaf_pixels(x)
    return pixels if isinstance(pixels, _Writer) else _Writer(pixels, labels)


def _parse_shard(path: Path) -> dict[str, Any]:
    with reading(path, "a LEAF shard"), path.open(encoding="utf-8-sig") as handle:
        shard: dict[str, Any] = json.load(handle, object_pairs_hook=_pack_writer)
    for key, kind in (("users", list), ("num_samples", list), ("user_data", dict)):
        if not isinstance(shard, dict) or not isinstance(shard.get(key), kind):
            refuse(path, f'"{key}" is missing or no {kind.__name__}', "a LEAF shard")
    return shard


def _read_shard(path: Path) -> dict[str, _Writer]:
    """Return the writers of one shard in the order of `users`."""
    shard = _parse_shard(path)
    users, counts = shard["users"], shard["num_samples"]
    if len(users) != len(counts):
        refuse(path, f"{len(users)} users but {len(counts)} num_samples", "as many of each")
    writers: dict[str, _Writer] = {}
    for user, count in zip(users, counts, strict=True):
        writer = shard["user_data"].get(user) if isinstance(user, str) else None
        if not isinstance(writer, _Writer):
            refuse(path, f"user {user!r} has no x and y in user_data", 'lists "x" and "y"')
        if writer.found:
            refuse(path, f"user {user!r}: {writer.found}", writer.expected)
        if len(writer.y) != count:
            found = f"user {user!r} has {len(writer.y)} samples"
            refuse(path, found, f"num_samples {count}")
        check_labels(path, writer.y, num_classes=NUM_CLASSES, where=f"user {user!r}: sample")
        if user in writers:
            refuse(path, f"user {user!r} is listed twice", "each user once")
        writers[user] = writer
    if unlisted := shard["user_data"].keys() - writers.keys():
        refuse(path, f"user {min(unlisted)!r} of user_data is not in users", "all users listed")
    return writers


def _read_shards(paths: Sequence[Path]) -> dict[str, _Writer]:
    writers: dict[str, _Writer] = {}
    for path in paths:
        shard = _read_shard(path)
        repeated = sorted(shard.keys() & writers.keys())
        if repeated:
            refuse(path, f"user {repeated[0]!r} also stands in an earlier file", "each user once")
        writers |= shard
    if not sum(len(writer.y) for writer in writers.values()):
        refuse(paths[0].parent, "no samples in its files", "at least one")
    return writers


def _join_writers(writers: dict[str, _Writer], numbers: dict[str, int]) -> Split:
    sizes = [len(writer.y) for writer in writers.values()]
    return Split(
        x=np.concatenate([writer.x for writer in writers.values()]).reshape(-1, 1, 28, 28),
        y=np.concatenate([writer.y for writer in writers.values()]),
        group=np.repeat(np.array([numbers[user] for user in writers], np.int32), sizes),
    )


def read_leaf(train_files: Sequence[Path], test_files: Sequence[Path]) -> Splits:
    """Read FEMNIST as LEAF writes it.

    Writers are numbered in the order of the files, those who appear only in the test split last.

    Raises:
        BadFile: a file is damaged, or a writer is listed twice.
    """
    train, test = _read_shards(train_files), _read_shards(test_files)
    numbers = {user: number for number, user in enumerate(train | test)}
    return _join_writers(train, numbers), _join_writers(test, numbers)


def _plan(data: DataConfig, files: Files, seed: int) -> Plan:
    train, test = files
    facts = file_facts(train + test)
    return plan_build(data.name, TRAITS, facts, read_leaf, train_files=train, test_files=test)


register(DatasetSource("femnist", TRAITS, _plan, find_files, INSTRUCTIONS))
