"""The names of a run's files, against a table and what a run leaves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fedgmr_hpc.storage.run_files as run_files
from fedgmr_hpc.storage.run_files import (
    beside,
    checkpoint_path,
    damaged_path,
    log_path,
    older,
    owner_prefix,
    timeline_path,
    unfinished_checkpoint,
    unfinished_checkpoints,
)


@pytest.mark.parametrize(
    ("results", "name"), [("a/run.h5", "run"), ("a/run.hdf", "run.hdf"), ("a/b.c.h5", "b.c")]
)
def test_every_name_is_the_results_without_h5_and_an_ending(results: str, name: str) -> None:
    path = Path(results)
    assert checkpoint_path(path) == Path(f"a/{name}.ckpt")
    assert older(checkpoint_path(path)) == Path(f"a/{name}.ckpt.old")
    assert damaged_path(checkpoint_path(path)) == Path(f"a/{name}.ckpt.damaged")
    assert log_path(results) == Path(f"a/{name}.log")
    assert timeline_path(results) == Path(f"a/{name}.trace.json")
    assert owner_prefix(path) == f"{name}.owner-"


def test_what_is_unfinished_is_found_whatever_the_name_holds(tmp_path: Path) -> None:
    odd, other = (checkpoint_path(tmp_path / name) for name in ("a[1]*.h5", "a1.h5"))
    for path in (odd, other):
        unfinished_checkpoint(path).touch()
    assert list(unfinished_checkpoints(odd)) == [unfinished_checkpoint(odd)]


def test_the_table_names_every_ending() -> None:
    source = Path(run_files.__file__).read_text()
    endings = set(re.findall(r'beside\(results, "(\.[a-z.]+)', source))
    assert endings and all(f"RUN{ending}" in source for ending in endings)
    assert beside("run.h5", ".log") == Path("run.log")
