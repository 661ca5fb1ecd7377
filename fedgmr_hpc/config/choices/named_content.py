"""The file that deals samples to clients: where it lies is the machine's, its content the run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash


def with_content(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with the digest of the partition's file, where they name one without.

    A file that cannot be read has none; whoever reads it for a run says so.
    """
    data = values.get("data")
    if not isinstance(data, Mapping) or data.get("partition") != "file":
        return dict(values)
    path = data.get("partition_file")
    if not isinstance(path, str) or data.get("partition_xxh3") is not None:
        return dict(values)
    return {**values, "data": {**data, "partition_xxh3": content_xxh3(path)}}


def content_xxh3(path: str) -> str | None:
    """Return the digest of a file; None where it cannot be read."""
    try:
        return xxhash.xxh3_64_hexdigest(Path(path).expanduser().read_bytes())
    except OSError:
        return None
