"""Read the clients of a TensorFlow Federated file, in a child process: untrusted.py says why.

    python -m fedgmr_hpc.data.formats.tff_clients PARENT FILE CLIENTS SENTENCES WORDS

Only what the file itself holds is read: links to other places, in the file or outside, external
storage and virtual data sets are refused, as are filters that HDF5 would have to load, and chunks
larger than any list of sentences needs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import h5py  # type: ignore[import-untyped]

from fedgmr_hpc.data.untrusted import serve_parent
from fedgmr_hpc.storage.hdf5_file import own_member

BUILT_IN_FILTERS = range(1, 7)  # deflate, shuffle, fletcher32, szip, nbit, scaleoffset
MAX_CHUNK_BYTES = 1 << 28  # unpacked

Client = tuple[str, list[str]]


def read_clients(path: str, max_clients: int, max_lines: int, max_words: int) -> Iterator[Client]:
    """Yield the name and the first sentences of the first clients by id.

    Args:
        path: the file.
        max_clients: clients to read.
        max_lines: sentences to read of each.
        max_words: words to keep of a sentence; they are joined by single spaces.

    Raises:
        ValueError: something is not as TFF writes it; the message says what.
        OSError, RuntimeError, KeyError: HDF5 cannot read it.
    """
    with h5py.File(path, "r") as file:
        if not isinstance(clients := own_member(file, "examples"), h5py.Group):
            raise ValueError('no group "examples"')
        for name in islice(clients, max_clients):
            lines = _sentences(own_member(clients, name), name)
            yield name, [_words(name, line, max_words) for line in lines[:max_lines]]


def _sentences(client: Any, name: str) -> h5py.Dataset:
    lines = own_member(client, "tokens") if isinstance(client, h5py.Group) else None
    if not isinstance(lines, h5py.Dataset) or lines.ndim != 1 or not _is_text(lines):
        raise ValueError(f"client {name!r} has no list tokens")
    plan = lines.id.get_create_plist()
    filters = {plan.get_filter(index)[0] for index in range(plan.get_nfilters())}
    if unknown := filters - set(BUILT_IN_FILTERS):
        raise ValueError(f"client {name!r} has tokens packed by filter {min(unknown)}")
    if (size := math.prod(lines.chunks or (0,)) * lines.dtype.itemsize) > MAX_CHUNK_BYTES:
        raise ValueError(f"client {name!r} has tokens in chunks of {size} bytes")
    return lines


def _is_text(lines: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(lines.dtype) is not None


def _words(client: str, line: Any, max_words: int) -> str:
    try:
        words = bytes(line).decode("utf-8").split(None, max_words)
    except (TypeError, ValueError) as error:
        raise ValueError(f"client {client!r} has a sentence that is no text ({error})") from None
    return " ".join(words[:max_words])


if __name__ == "__main__":
    parent, path, *limits = sys.argv[1:]
    serve_parent(int(parent), partial(read_clients, path, *map(int, limits)))
