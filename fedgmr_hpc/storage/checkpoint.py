"""Checkpoint files: a tree of numbers, words and arrays, in two generations, every byte guarded.

    bytes     type      content
    8         bytes     "FGMRCKPT"
    4         uint32    format version, 3
    8         uint64    H, length of the header
    8         uint64    xxh3 of the header
    H         utf-8     header, JSON: {"tree": ..., "arrays": [{name, dtype, shape, offset, bytes,
                        xxh3}, ...]}; {"$array": i} in the tree stands for array i
    the rest  arrays    one after the other without gaps, C order, little-endian; `offset` counts
                        from the end of the header

Prefix and arrays are little-endian. JSON writes floats so that they read back to the same bits, and
NaN and infinity by name. Nothing in a file is ever run.

A file is written under a name that only its process uses (RUN.ckpt.tmp-...), forced to the disk,
and only then takes its name; what had that name before is the older generation, RUN.ckpt.old. So
whenever a process is killed, a whole file is there. Where the newest is damaged, or is not of the
rows in the result file, a run is resumed from the older one (runtime/checkpoints/plan.py).

Shapes are those of the arrays saved.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.storage.run_files import older, unfinished_checkpoint, unfinished_checkpoints

EXIT_CHECKPOINTED = 75  # of all ranks: the run's state is on disk, and wants to be resumed
MAGIC, FORMAT_VERSION = b"FGMRCKPT", 3
_PREFIX = struct.Struct("<8sIQQ")
_KEY = "$array"
Tree = dict[str, Any]
Array = NDArray[Any]


def pack_tree(tree: Tree) -> list[memoryview]:
    """Pack a tree in the format of a file, in parts that still share the arrays' memory.

    Args:
        tree: nested dicts with words as keys, lists, tuples (which become lists), numbers, words,
            None and arrays.

    Raises:
        TypeError: it holds anything else.
    """
    arrays: list[tuple[str, Array]] = []
    plain, table, offset = _split(tree, "", arrays), [], 0
    for name, array in arrays:
        entry = {"name": name, "dtype": array.dtype.str, "shape": array.shape, "offset": offset}
        table.append(entry | {"bytes": array.nbytes, "xxh3": _hash(array)})
        offset += array.nbytes
    header = json.dumps({"tree": plain, "arrays": table}).encode()
    digest = xxhash.xxh3_64_intdigest(header)
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), digest)
    return [memoryview(prefix), memoryview(header), *(_bytes(array) for _, array in arrays)]


def _split(value: Any, name: str, arrays: list[tuple[str, Array]]) -> Any:
    """`value` without its arrays, which go to `arrays` with their place in the tree."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(must_be(f"array {name}", "of numbers", found=str(value.dtype)))
        little = value.dtype.newbyteorder("<")
        arrays.append((name, np.ascontiguousarray(value, little)))
        return {_KEY: len(arrays) - 1}
    if isinstance(value, dict):
        return {key: _split(inner, f"{name}/{key}", arrays) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_split(inner, f"{name}/{index}", arrays) for index, inner in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _bytes(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


def _hash(array: Array) -> int:
    return xxhash.xxh3_64_intdigest(_bytes(array))


def unpack_tree(packed: Any) -> Tree:
    """Unpack what `pack_tree` has packed.

    Raises:
        ValueError: they are damaged.
    """
    return _read(io.BytesIO(packed), len(packed), "checkpoint message")


def write_checkpoint(path: Path, tree: Tree, may_write: Callable[[], None] = lambda: None) -> int:
    """Write the next generation; return its bytes. What fails leaves the others as they are.

    Args:
        may_write: raises an error where the names are no longer this process's.

    Raises:
        OSError: writing failed.
    """
    part = unfinished_checkpoint(path)
    try:
        num_bytes = _write(part, pack_tree(tree))
        may_write()
        if path.exists():
            os.replace(path, older(path))
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    sync_folder(path.parent)
    return num_bytes


def _write(path: Path, parts: Iterable[memoryview]) -> int:
    with path.open("wb") as file:
        num_bytes = sum(file.write(part) for part in parts)
        file.flush()
        os.fsync(file.fileno())
    return num_bytes


def sync_folder(folder: Path) -> None:
    """Force the new names to the disk, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_checkpoints(path: Path) -> None:
    """Remove both generations, and what kills left of others."""
    for each in (path, older(path)):
        each.unlink(missing_ok=True)
    remove_unfinished(path)


def remove_unfinished(path: Path) -> None:
    """Remove what was never finished; only the owner of the run may."""
    for each in unfinished_checkpoints(path):
        each.unlink(missing_ok=True)


def has_checkpoint(path: Path) -> bool:
    """Return whether any generation is there, damaged or not."""
    return path.exists() or older(path).exists()


def read_checkpoint(path: Path) -> Tree:
    """Read the tree of one file; its arrays can be written to.

    Raises:
        ValueError: it is missing, damaged, or of another format; says where.
    """
    try:
        with path.open("rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size, f"checkpoint {path}")
    except OSError as error:
        raise ValueError(f"checkpoint {path}: {error.strerror}") from None


def _read(file: BinaryIO, num_bytes: int, name: str) -> Tree:
    header = _read_header(file, num_bytes, name)
    begin, table = file.tell(), header["arrays"]
    end = begin + sum(entry["bytes"] for entry in table)
    if num_bytes != end:
        raise ValueError(f"{name}: damaged: it has {num_bytes} bytes, {end} were written")
    arrays = [_read_array(file, entry, name) for entry in table]
    tree: Tree = _join(header["tree"], arrays)
    return tree


def _read_header(file: BinaryIO, num_bytes: int, name: str) -> dict[str, Any]:
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
        raise ValueError(f"{name}: damaged: it does not begin as a checkpoint does")
    _, version, length, digest = _PREFIX.unpack(prefix)
    if version != FORMAT_VERSION:
        line = must_be("its format version", str(FORMAT_VERSION), version)
        raise ValueError(f"{name}: {line}")
    if _PREFIX.size + length > num_bytes:
        raise ValueError(f"{name}: damaged: it ends inside its header")
    header = file.read(length)
    if xxhash.xxh3_64_intdigest(header) != digest:
        raise ValueError(f"{name}: damaged: its header fails the checksum")
    content: dict[str, Any] = json.loads(header)
    return content


def _read_array(file: BinaryIO, entry: dict[str, Any], name: str) -> Array:
    array = np.empty(entry["shape"], entry["dtype"])
    file.readinto(_bytes(array))  # type: ignore[attr-defined]
    if _hash(array) != entry["xxh3"]:
        raise ValueError(f"{name}: damaged: {entry['name']} fails its checksum")
    return array


def _join(value: Any, arrays: list[Array]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_KEY}:
            return arrays[value[_KEY]]
        return {key: _join(inner, arrays) for key, inner in value.items()}
    if isinstance(value, list):
        return [_join(inner, arrays) for inner in value]
    return value
