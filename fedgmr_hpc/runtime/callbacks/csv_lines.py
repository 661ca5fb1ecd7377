"""A line of CSV for each evaluation, for whoever follows a run with `tail -f`."""

from __future__ import annotations

import csv
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.records import fields_of
from fedgmr_hpc.runtime.callbacks.contract import Callback, RunHandle
from fedgmr_hpc.storage.rows import EvaluationRow, LookRow

HEADS = ("file", "table", *(field.name for field in fields(EvaluationRow)))


class CsvLines(Callback):
    """Appends a line an evaluation to a file, which several runs may share.

    The columns are the result file, the table and what it has of the evaluation. After a resume,
    evaluations since the checkpoint come again.

    Raises:
        ValueError: the file begins with something else than the heads.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._has_heads()  # another file is refused before a run begins

    def on_start(self, run: RunHandle) -> None:
        """Write the heads where the file is new.

        Raises:
            ValueError: it begins with something else.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._has_heads():
            self._append(HEADS)

    def _has_heads(self) -> bool:
        """Return whether the file begins with the heads; False where it is new or empty.

        Raises:
            ValueError: it begins with something else.
        """
        if not self.path.exists() or not self.path.stat().st_size:
            return False
        heads = ",".join(HEADS)
        with self.path.open("rb") as file:
            first = file.readline(len(heads) + 2)
        if first.rstrip(b"\r\n") != heads.encode():
            need, because = "a new file or one with its heads", f"the first line is not {heads}"
            raise ValueError(must_be("the path of CsvLines", need, self.path, because=because))
        return True

    def on_evaluation(self, run: RunHandle, row: EvaluationRow) -> None:
        """Append a line."""
        table = "looks" if isinstance(row, LookRow) else "evaluations"
        values = {"file": str(run.path), "table": table, **fields_of(row)}
        self._append([values[name] for name in HEADS])

    def _append(self, values: Any) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(values)
