"""Append samples to a cache's array as they are decoded, with a checksum each.

The length of both files says how much is done: a build that was interrupted continues after the
last row that is complete and passes its checksum.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgmr_hpc.data.splits import first_mismatch, row_checksums


class _Growing:
    """An .npy file whose header states the number of rows it will finally have."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        self.header = buffer.getvalue()
        path.touch()
        with path.open("rb+") as file:
            if file.read(len(self.header)) != self.header:  # new, or another array's
                file.truncate(0)
                file.seek(0)
                file.write(self.header)

    def num_rows(self) -> int:
        return (self.path.stat().st_size - len(self.header)) // self.row_bytes

    def rows(self, num: int) -> NDArray[Any]:
        if not num:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        return np.memmap(self.path, self.dtype, "r", len(self.header), (num, *self.shape[1:]))

    def cut(self, num: int) -> None:
        os.truncate(self.path, len(self.header) + num * self.row_bytes)


class RowFile:
    """Appends to `{part}_x.npy` and `{part}_sums.npy` of a folder; a context manager.

    Args:
        folder: private folder of the cache under construction.
        part: "train" or "test".
        shape: of all rows [N, ...], which are bytes.

    Attributes:
        done: rows that are already there and intact.
    """

    def __init__(self, folder: Path, part: str, shape: tuple[int, ...]) -> None:
        self._both = (
            _Growing(folder / f"{part}_x.npy", shape, "|u1"),
            _Growing(folder / f"{part}_sums.npy", shape[:1], "<u8"),
        )
        self.done = self._keep_whole()

    def _keep_whole(self) -> int:
        """Cut off what is torn, damaged, or lacks its checksum; return the rows that remain."""
        whole = min(each.num_rows() for each in self._both)
        wrong = first_mismatch(*(each.rows(whole) for each in self._both))
        done = whole if wrong is None else wrong
        for each in self._both:
            each.cut(done)
        return done

    def __enter__(self) -> RowFile:
        self._x, self._sums = (each.path.open("ab") for each in self._both)
        return self

    def append(self, row: NDArray[np.uint8]) -> None:
        """Append one row."""
        self._x.write(np.ascontiguousarray(row).data)
        self._sums.write(row_checksums(row[None]).astype("<u8").tobytes())

    def flush(self) -> None:
        """Write the rows to their file, then the checksums: a row without one is decoded again."""
        self._x.flush()
        self._sums.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._x.close()
        self._sums.close()
