"""The files of one data cache: their format, their checksums, and whose caches are trusted.

A cache folder holds `{train,test}_{x,sums,y,group}.npy` and `meta.json`. Every byte is under a
checksum: `sums` has the xxh3 of each row of `x`, `meta.json` that of the small arrays and its own.

Whoever can write a cache can choose what is trained on, checksums or not. Trusted are a user's own
files, those of root, and those of the user named by `data.cache_owner` (a colleague who has
prepared a cache for all); none of them may be writable by group or others. A cache of one's own
that others can write is decoded again; another user's is refused, since it can be neither trusted
nor replaced.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.data.splits import (
    RowGuard,
    Split,
    Splits,
    array_digest,
    first_mismatch,
    row_checksums,
)

CACHE_VERSION = 2
PARTS = ("train", "test")
FIELDS: dict[str, tuple[type, ...]] = {
    "x": (np.uint8, np.uint16),
    "sums": (np.uint64,),  # xxh3 of each row of x
    "y": (np.int64,),
    "group": (np.int32,),
}
ROOT = 0
OTHERS_WRITE = 0o022


class CacheUnusable(Exception):
    """A cache folder is absent, damaged, or open to others; the message says which."""


def open_cache(folder: Path, owner: str | None, *, checks_all: bool) -> Splits:
    """Map the splits of a cache.

    Args:
        folder: the cache.
        owner: a user who is trusted besides the current one and root.
        checks_all: check every row of samples now.

    Raises:
        CacheUnusable: the cache is absent, damaged, or writable by others.
        ValueError: it belongs to a user who is not trusted.
    """
    try:
        fault = _find_fault(folder, owner)
    except OSError as error:
        fault = str(error)
    if fault:
        raise CacheUnusable(fault)
    try:
        train, test = _map_splits(folder, checks_all)
    except Exception as error:  # damage to a header or to JSON raises nearly anything
        reason = " ".join(str(error).split())
        raise CacheUnusable(f"damaged ({reason or type(error).__name__})") from error
    return train, test


def _find_fault(folder: Path, owner: str | None) -> str:
    """Return what is wrong with the modes of a cache; empty if they can be trusted."""
    trusted = {os.getuid(), ROOT, *_user_ids(owner)}
    for path in (folder, *folder.iterdir()):
        stat = path.stat()
        if stat.st_uid not in trusted:
            found = repr(str(folder.parent))
            raise ValueError(
                must("data.cache", "hold only trusted files", found=found)
                + f": its {folder.name} belongs to {_user_name(stat.st_uid)}, neither you, root, "
                "nor the user that data.cache_owner names"
            )
        if stat.st_mode & OTHERS_WRITE:
            return f"{path.name} can be written by others"
    return ""


def _user_ids(owner: str | None) -> list[int]:
    if owner is None:
        return []
    try:
        return [pwd.getpwnam(owner).pw_uid]
    except KeyError:
        raise ValueError(must_be("data.cache_owner", "a user of this machine", owner)) from None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _map_splits(folder: Path, checks_all: bool) -> Iterator[Split]:
    meta = _read_meta(folder)
    for part in PARTS:
        arrays = {field: _map_array(folder, f"{part}_{field}", meta) for field in FIELDS}
        checksums, path = arrays.pop("sums"), folder / f"{part}_x.npy"
        if not len(checksums) == len(arrays["x"]) == len(arrays["y"]) == len(arrays["group"]):
            raise ValueError(f"{part}: arrays of several lengths")
        wrong = first_mismatch(arrays["x"], checksums) if checks_all else None
        if wrong is not None:
            raise ValueError(f"{path.name}: sample {wrong} fails its checksum")
        yield Split(**arrays, guard=RowGuard(checksums, str(path)))


def _map_array(folder: Path, name: str, meta: dict[str, Any]) -> NDArray[Any]:
    # not np.load, which would also accept archives
    array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")
    if _describe(name, array) != meta["arrays"][name]:
        raise ValueError(f"{name}.npy is not what meta.json says")
    return np.asarray(array)  # a plain view of the map indexes faster than np.memmap


def _describe(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Return what `meta.json` records of an array.

    That includes a checksum of its content, except for `x`, whose rows have their own.
    """
    part, field = name.split("_", 1)
    if array.dtype not in FIELDS[field] or not array.flags.c_contiguous:
        raise ValueError(f"{name}.npy has {array.dtype}, in an order that is not expected")
    facts: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    return facts if field == "x" else facts | {"xxh3": array_digest(array)}


def _read_meta(folder: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
    if meta != seal(meta) or meta["version"] != CACHE_VERSION or meta["name"] != folder.name:
        raise ValueError("meta.json fails its checksum, or is of another cache")
    return meta


def seal(meta: dict[str, Any]) -> dict[str, Any]:
    """Return `meta` with a checksum of all its other entries."""
    content = {key: value for key, value in meta.items() if key != "xxh3"}
    text = json.dumps(content, sort_keys=True).encode()
    return content | {"xxh3": xxhash.xxh3_64_hexdigest(text)}


def write_splits(folder: Path, splits: dict[str, Split]) -> None:
    """Write the arrays of splits that were decoded in memory."""
    for part, split in splits.items():
        checksums = row_checksums(split.x)
        arrays = {"x": split.x, "sums": checksums, "y": split.y, "group": split.group}
        for field, array in arrays.items():
            np.save(folder / f"{part}_{field}.npy", array, allow_pickle=False)


def finish(folder: Path, name: str) -> None:
    """Write `meta.json`, deny others the right to write, and force everything to the disk.

    Args:
        folder: private folder that holds all arrays.
        name: under which the cache will appear.
    """
    names = [f"{part}_{field}" for part in PARTS for field in FIELDS]
    arrays = {n: np.lib.format.open_memmap(folder / f"{n}.npy", mode="r") for n in names}
    facts = {n: _describe(n, array) for n, array in arrays.items()}
    meta = seal({"version": CACHE_VERSION, "name": name, "arrays": facts})
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    for path in (folder, *folder.iterdir()):  # whatever the umask is
        path.chmod(path.stat().st_mode & 0o777 & ~OTHERS_WRITE)
    _sync(folder)


def _sync(folder: Path) -> None:
    """Force a folder's files and their names to the disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
