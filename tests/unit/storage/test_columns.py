"""Columns by schema: one that is new is copied and exported; all say what they mean."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from sample_results import UPDATE, open_writer, write_run

from fedgmr_hpc.config.records import fields_of
from fedgmr_hpc.results.export import export
from fedgmr_hpc.storage.reader import kept_rows, read_result
from fedgmr_hpc.storage.rows import UpdateRow
from fedgmr_hpc.storage.schema import OTHER_COLUMNS, TABLE_OF, TABLES


@dataclass(frozen=True, slots=True)
class WiderRow(UpdateRow):
    """An update with a new column of one value a client, which its owner goes on changing."""

    num_merged: NDArray[np.int64]  # [C]


@pytest.fixture
def wider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with the new column: 1, 2, 3, then twice as many."""
    monkeypatch.setitem(TABLES, "updates", WiderRow)
    monkeypatch.setitem(TABLE_OF, WiderRow, "updates")
    counts = np.array([1, 2, 3])
    row: Any = WiderRow(**fields_of(UPDATE), num_merged=counts)
    with open_writer(tmp_path / "run.h5") as writer:
        writer.append(row)
        counts *= 2
        writer.append(row)
        writer.finish("finished")
    return tmp_path / "run.h5"


COUNTS = [[1, 2, 3], [2, 4, 6]]


def test_a_new_column_per_client_keeps_each_row_as_it_was(wider: Path) -> None:
    assert read_result(wider).updates["num_merged"].tolist() == COUNTS


def test_a_new_column_per_client_goes_wherever_a_run_is_copied(wider: Path) -> None:
    folder, num_rows = wider.parent, {"updates": 2}
    kept = kept_rows(read_result(wider), num_rows)
    with open_writer(folder / "resumed.h5", kept=kept) as writer:
        writer.finish("finished")
    copies = [read_result(folder / "resumed.h5"), read_result(wider, partial=True)]
    assert [copy.updates["num_merged"].tolist() for copy in copies] == [COUNTS] * 2
    export([wider], "csv", folder / "out")
    with (folder / "out/run/updates.csv").open() as file:
        assert [row["num_merged_2"] for row in csv.DictReader(file)] == ["3", "6"]


def test_a_wrong_shape_is_named_with_its_row(wider: Path) -> None:
    row: Any = WiderRow(**fields_of(UPDATE), num_merged=np.zeros(2, np.int64))
    with (
        open_writer(wider.parent / "other.h5") as writer,
        pytest.raises(ValueError, match=r"WiderRow\.num_merged: shape \(2,\), want \(3,\)"),
    ):
        writer.append(row)


def test_a_file_from_before_a_column_is_read_saved_and_exported_but_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_run(tmp_path / "old.h5")
    monkeypatch.setitem(TABLES, "updates", WiderRow)
    partial = read_result(old, partial=True)
    assert partial.status.endswith("; updates without num_merged")
    assert partial.updates["client"].tolist() == [UPDATE.client]
    export([old], "csv", tmp_path / "out")
    assert "num_merged" not in (tmp_path / "out/old/updates.csv").read_text()
    with pytest.raises(ValueError, match="updates lacks num_merged: it is of an older version"):
        kept_rows(read_result(old), {"updates": 1})


def test_a_file_with_a_column_that_is_gone_is_read_whole_and_gone_on_with_without_it(
    wider: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "updates", UpdateRow)
    monkeypatch.setitem(OTHER_COLUMNS, "updates", {"num_merged"})
    partial = read_result(wider, partial=True)
    assert "updates" not in partial.status and len(partial.updates["client"]) == 2
    kept = kept_rows(read_result(wider), {"updates": 2})
    with open_writer(wider.parent / "resumed.h5", kept=kept) as writer:
        writer.finish("finished")
    resumed = read_result(wider.parent / "resumed.h5").updates
    assert "num_merged" not in resumed and len(resumed["client"]) == 2


def described(path: Path) -> dict[str, tuple[str, str]]:
    """Unit and meaning of every dataset, "" where it does not say."""
    found: dict[str, tuple[str, str]] = {}

    def visit(name: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset):
            words = (bytes(node.attrs.get(key, b"")).decode() for key in ("unit", "meaning"))
            found[name] = (next(words), next(words))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def test_every_dataset_says_its_unit_and_its_meaning(tmp_path: Path) -> None:
    found = described(write_run(tmp_path / "run.h5"))
    silent = [name for name, (unit, meaning) in found.items() if not (unit and meaning)]
    assert not silent, f"{silent}: allowed: an entry in schema.MEANINGS"
    units = ("merges/now_s", "merges/staleness", "ranks/sent_bytes", "evaluations/val_accuracy")
    assert [found[name][0] for name in units] == ["s", "versions", "bytes", "1"]
    assert found["transfers/achieved_bytes_per_s"][0] == "bytes/s"
    assert found["merges/up_bytes"][1] != found["updates/up_bytes"][1]
