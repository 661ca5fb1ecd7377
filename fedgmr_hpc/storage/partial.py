"""Read what is left of a damaged or killed run's file.

Each table keeps the rows that all its columns have, up to the first block of rows that fails its
checksum; where the end of a block is lost, the rest of it is kept, unproven. The status says
all that.

Shapes: N rows of a table, C clients.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from fedgmr_hpc.config.yaml_file import parse
from fedgmr_hpc.storage.blank_file import Texts
from fedgmr_hpc.storage.checksums import first_damaged, texts_xxh3
from fedgmr_hpc.storage.hdf5_file import (
    UNREADABLE,
    describe_error,
    num_readable_rows,
    open_for_reading,
    open_marked,
    read_superblock,
)
from fedgmr_hpc.storage.result import Result, as_text
from fedgmr_hpc.storage.schema import OTHER_COLUMNS, TABLES, Columns, RankRow, columns_of


def read_partial(path: Path) -> Result:
    """Read what can be read of a result file; the status says what could not.

    Raises:
        ValueError: not even the configuration can be read.
    """
    try:
        damaged = open_marked(path) if read_superblock(path) else open_for_reading(path)
        with damaged as file:
            return _PartialReader(path, file).result()
    except UNREADABLE as error:
        reason = describe_error(error)
        raise ValueError(f"results {path}: nothing of it can be read ({reason})") from error


class _PartialReader:
    """Reads a file part by part, and notes what is lost."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path, self._file, self._file_bytes = path, file, path.stat().st_size
        self._lost: list[str] = []

    def result(self) -> Result:
        config_yaml = self._whole("config")[()].decode()
        config = parse(config_yaml) or {}
        num_clients = int(config.get("clients", {}).get("count", 0))
        status = self._try("status", lambda: self._whole("status")[()].decode(), "unknown")
        committed = self._try("committed", lambda: self._whole("committed")[...].tolist(), [])
        limits = dict(zip(TABLES, committed, strict=False))
        tables: dict[str, Any] = {
            table: self._table(table, row_type, limits.get(table), num_clients)
            for table, row_type in TABLES.items()
        }
        layout = self._try("model/layout", lambda: self._whole("model/layout")[()].decode(), "")
        no_weights = np.zeros(0, np.float32)
        weights = self._try("weights", lambda: self._whole("model/weights")[...], no_weights)
        provenance = self._try("provenance", self._provenance, {})
        ranks = self._table("ranks", RankRow, None, 0)
        self._check_texts(Texts(config_yaml, layout, provenance))
        weights = self._unspoilt("model", {"weights": weights})["weights"]
        lost = "; ".join(self._lost) or "nothing lost"
        return Result(
            path=self._path,
            status=f"partial: was {status.partition(':')[0]}; {lost}",
            config_yaml=config_yaml,
            config=config,
            provenance=provenance,
            ranks={name: as_text(values) for name, values in ranks.items()},
            weights=weights,
            layout_json=layout,
            **tables,
        )

    def _unspoilt(self, part: str, columns: Columns) -> Columns:
        """Return the rows before the first that fail their checksum, where the file has
        checksums.
        """
        num_rows = min(len(values) for values in columns.values())
        if not num_rows or not self._has("checksums"):
            return columns
        name = f"checksums/{part}"
        blocks = self._try(name, lambda: self._whole(name)[...], None)
        if blocks is None:
            return columns
        whole = max((stop for stop in blocks[:, 0].tolist() if stop <= num_rows), default=0)
        held = first_damaged({n: values[:whole] for n, values in columns.items()}, blocks, whole)
        if held is not None:
            self._lost.append(f"{part} from row {held} of {num_rows} on, where checksums fail")
            return {name: values[:held] for name, values in columns.items()}
        if whole < num_rows:
            self._lost.append(f"{part} rows {whole} to {num_rows - 1} unproven")
        return columns

    def _check_texts(self, texts: Texts) -> None:
        if not self._has("checksums"):
            return
        wanted = self._try("checksums/texts", lambda: self._whole("checksums/texts")[()], None)
        if wanted is not None and texts_xxh3(*texts) != wanted:
            self._lost.append("configuration, layout or provenance fail their checksum")

    def _try(self, what: str, read: Callable[[], Any], instead: Any) -> Any:
        try:
            return read()
        except UNREADABLE:
            self._lost.append(f"{what} unreadable")
            return instead

    def _whole(self, name: str) -> h5py.Dataset:
        dataset = self._file[name]
        num_rows = len(dataset) if dataset.ndim else 1
        if num_readable_rows(dataset, num_rows, self._file_bytes) < num_rows:
            raise OSError(f"{name} lies behind the end of the file")
        return dataset

    def _provenance(self) -> dict[str, str]:
        attributes = self._file["provenance"].attrs
        return {key: value.decode() for key, value in attributes.items()}

    def _table(
        self, table: str, row_type: type[Any], limit: int | None, num_clients: int
    ) -> Columns:
        if table in TABLES and not self._has(table):
            return _no_rows(row_type, num_clients)
        names = [c.name for c in columns_of(row_type)]
        older = OTHER_COLUMNS.get(table, set()).difference(names)  # under its checksums, too
        known = [name for name in (*names, *older) if self._has(f"{table}/{name}")]
        if missing := [name for name in names if name not in known]:
            self._lost.append(f"{table} without {', '.join(missing)}")  # or never had it
        sizes = {name: self._sizes(f"{table}/{name}") for name in known or names}
        wanted = max(size for size, _ in sizes.values()) if limit is None else limit
        kept = min([wanted, *(readable for _, readable in sizes.values())])
        if kept < wanted:
            short = [name for name, (_, readable) in sizes.items() if readable == kept]
            self._lost.append(f"{table} {kept} of {wanted} rows, as {short[0]} has")
        if not kept:
            return _no_rows(row_type, num_clients)
        return self._unspoilt(table, {n: self._file[f"{table}/{n}"][:kept] for n in sizes})

    def _has(self, name: str) -> bool:
        """False for what came later than the file; a link that is damaged counts."""
        try:
            return name in self._file
        except UNREADABLE:
            return True

    def _sizes(self, name: str) -> tuple[int, int]:
        """(rows, readable rows) of a column; (0, 0) where nothing is known of it."""
        try:
            dataset = self._file[name]
            num_rows = len(dataset)
            return num_rows, num_readable_rows(dataset, num_rows, self._file_bytes)
        except UNREADABLE:
            return 0, 0


def _no_rows(row_type: type[Any], num_clients: int) -> Columns:
    return {
        column.name: np.zeros((0, num_clients) if column.per_client else 0, column.dtype)
        for column in columns_of(row_type)
    }
