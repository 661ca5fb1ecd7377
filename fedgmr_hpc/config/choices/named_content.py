"""Files that decide what a run does: where one lies is the machine's, its content the run's.

The key of such a file's path has a second one beside it, which is filled in: the digest of its
content. So a moved file makes no other run, and a changed one does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from fedgmr_hpc.config.messages import must_be

# The key of a path, and that of the digest.
CONTENT_OF = {
    "data.partition_file": "data.partition_xxh3",
    "clients.availability": "clients.availability_xxh3",
    "links.trace": "links.trace_xxh3",
}
FILE_OF = {digest: path for path, digest in CONTENT_OF.items()}


def with_content(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with the digest of each file that they name without.

    A file that cannot be read has none; whoever reads it for a run says so.
    """
    found = dict(values)
    for key, of_content in CONTENT_OF.items():
        section, digest = of_content.split(".")
        path = _path_in(found, key)
        if path is not None and found[section].get(digest) is None:
            found[section] = {**found[section], digest: content_xxh3(path)}
    return found


def without_content(values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values without the digests of files that a layer takes away.

    Args:
        layer: dotted keys with their values.
    """
    found = dict(values)
    for key, of_content in CONTENT_OF.items():
        section, digest = of_content.split(".")
        if key in layer and layer[key] is None and of_content not in layer and section in found:
            found[section] = {k: v for k, v in found[section].items() if k != digest}
    return found


def with_paths_from(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values of a file in `folder`, with the paths from here."""
    found = dict(values)
    for key in CONTENT_OF:
        section, name = key.split(".")
        path = _path_in(found, key)
        if path is not None:
            found[section] = {**found[section], name: path_from(folder, path)}
    return found


def path_from(folder: Path, path: str) -> str:
    """Return the absolute path of what a file in `folder` names; as it is, where nothing is there,
    for one from the working directory.
    """
    found = folder / os.path.expanduser(path)
    return str(found.resolve()) if found.is_file() else path


def check_content(key: str, path: str | None, wanted: str | None) -> None:
    """Check that a file is still, or here, too, what the run is known by.

    Args:
        key: of its path.
        path: where it lies; one that cannot be read is left to whoever reads it.
        wanted: its digest; None where the run began without.

    Raises:
        ValueError: it is another one.
    """
    found = content_xxh3(path) if path is not None else None
    if wanted is not None and found is not None and found != wanted:
        digest = CONTENT_OF[key]
        because = f"{digest} is what the run began with; {digest}=null begins another run"
        raise ValueError(must_be(key, f"a file of xxh3 {wanted}", path, because=because))


def content_xxh3(path: str) -> str | None:
    """Return the digest of a file; None where it cannot be read."""
    try:
        return xxhash.xxh3_64_hexdigest(Path(os.path.expanduser(path)).read_bytes())
    except (OSError, ValueError):  # such as that of a NUL in it
        return None


def _path_in(values: Mapping[str, Any], key: str) -> str | None:
    """Return the path that nested values have under a dotted key; None for anything else."""
    section, name = key.split(".")
    own = values.get(section)
    path = own.get(name) if isinstance(own, Mapping) else None
    return path if isinstance(path, str) else None
