"""Checksums of decoded samples: one a row, and the fingerprint of all that a run reads.

Every row of a split's samples has an xxh3 of its own, made when it is decoded and kept in the
cache. A batch is checked row by row whenever it is read, so a damaged page of the memory map is
never trained on, at any time of a run; that costs about 0.1 us a row and 14 GB/s. The fingerprint
is an xxh3 over these checksums, labels and groups in their order: it costs no second reading, and
two runs have the same one only if they read the same samples, from a cache or not.

Shapes: N rows of a file, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from fedgmr_hpc.config.errors import RunError

if TYPE_CHECKING:
    from fedgmr_hpc.data.formats import Split

Sums = NDArray[np.uint64]
CHUNK_BYTES = 1 << 26  # of a memory map, between two looks at the clock
_LITTLE = {"y": "<i8", "group": "<i4"}


def row_sums(x: NDArray[Any]) -> Sums:
    """[N] xxh3 of each row of x [N,...], its bytes in C order."""
    return np.array(_digests(x), np.uint64)


def _digests(x: NDArray[Any]) -> list[int]:
    flat = memoryview(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    step, digest = len(flat) // max(1, len(x)), xxhash.xxh3_64_intdigest
    return [digest(flat[start : start + step]) for start in range(0, len(flat), step or 1)]


def array_digest(array: NDArray[Any]) -> str:
    """xxh3 of an array's bytes, little-endian in C order, in 16 hex digits."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return xxhash.xxh3_64_hexdigest(little.reshape(-1).view(np.uint8).data)


def chunks(x: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows of x [N,...] of about `CHUNK_BYTES`."""
    rows = max(1, CHUNK_BYTES * len(x) // max(1, x.nbytes))
    return (slice(start, start + rows) for start in range(0, len(x), rows))


def first_wrong(x: NDArray[Any], sums: Sums) -> int | None:
    """The first row of x [N,...] that has another checksum; None where all have theirs."""
    for rows in chunks(x):
        wrong = np.flatnonzero(row_sums(x[rows]) != sums[rows])
        if len(wrong):
            return int(rows.start + wrong[0])
    return None


@dataclass(frozen=True, eq=False)
class Guard:
    """The checksums [N] of a split's rows, and the file that holds the rows."""

    sums: Sums
    path: str

    def check(self, x: NDArray[Any], rows: NDArray[np.int64]) -> None:
        """Fails unless the samples x [B,...] are what was decoded as these rows.

        Raises:
            RunError: one is not; the next start finds it, too, and decodes the data anew.
        """
        found, wanted = _digests(x), self.sums[rows].tolist()  # lists: a batch is small
        if found == wanted:
            return
        wrong = next(row for row, a, b in zip(rows, found, wanted, strict=True) if a != b)
        raise RunError(
            f"{self.path}: sample {wrong} was damaged or changed since it was decoded; the next "
            "start, with --resume, rebuilds the data cache and goes on"
        )


def fingerprint(*splits: Split) -> str:
    """16 hex digits of all samples, labels and groups of these splits, in their order."""
    state = xxhash.xxh3_64()
    for split in splits:
        sums = row_sums(split.x) if split.guard is None else split.guard.sums
        sums = sums if split.rows is None else sums[split.rows]
        state.update(f"{split.x.dtype.name} {(len(sums), *split.x.shape[1:])}".encode())
        state.update(sums.astype("<u8").tobytes())
        for name, dtype in _LITTLE.items():
            state.update(getattr(split, name).astype(dtype).tobytes())
    return state.hexdigest()
