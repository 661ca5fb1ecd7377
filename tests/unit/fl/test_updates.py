"""One record an update: each scalar has one name on the server, on the wire and in the file."""

from __future__ import annotations

from dataclasses import fields, replace
from inspect import getsource
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fedgmr_hpc.runtime.rank_pool as rank_pool
import fedgmr_hpc.runtime.server as server
import fedgmr_hpc.runtime.worker as worker
import fedgmr_hpc.wire.frames as frames
from fedgmr_hpc.config.records import fields_of, shared_fields
from fedgmr_hpc.fl.updates import Assignment, SubModelKey, Update, UpdateHeader
from fedgmr_hpc.storage.rows import UpdateRow
from fedgmr_hpc.wire.frames import Frame, Kind, decode_frame, encode_frame

HEADER = UpdateHeader(3, 7, 2, 1, 0.25, train_loss=1.5, score=0.75, num_samples=64)
NOT_IN_THE_FILE = {"level"}  # `mask_id` and `density` say it there


def names(record: type[Any]) -> set[str]:
    return {field.name for field in fields(record)}


def test_the_header_of_a_frame_and_the_row_of_the_file_have_every_scalar_of_an_update() -> None:
    scalars = names(UpdateHeader)
    assert scalars <= set(frames._Header._fields)
    assert scalars - NOT_IN_THE_FILE <= names(UpdateRow)
    assert scalars <= names(Update) and scalars <= names(Frame)
    assert names(SubModelKey) <= names(Assignment)


@pytest.mark.parametrize("module", [frames, rank_pool, worker, server])
def test_no_module_copies_them_by_hand(module: ModuleType) -> None:
    assert "num_samples=update." not in getsource(module)
    assert "base_version=task." not in getsource(module)
    assert "train_loss=frame." not in getsource(module) and "shared_fields(" in getsource(module)


def test_every_scalar_arrives_as_it_was_sent() -> None:
    values = np.array([1.0, -2.0], np.float32)
    frame = Frame(
        **fields_of(HEADER), kind=Kind.UPDATE, run=1, num_prunable=8, values=values, dense=values
    )
    update = Update(**shared_fields(decode_frame(encode_frame(frame)), Update), grad_squares=None)
    assert UpdateHeader(**shared_fields(update, UpdateHeader)) == HEADER
    assert update.values.tolist() == [1.0, -2.0] == update.dense.tolist()
    kept = shared_fields(update, UpdateRow)
    assert kept == {n: v for n, v in fields_of(HEADER).items() if n not in NOT_IN_THE_FILE}


def test_an_assignment_comes_back_from_its_fields_and_names_its_sub_model() -> None:
    task = Assignment(3, 7, 2, 1, 0.25, 12, 40, 0.05, True)
    assert Assignment(**task.as_json()) == task
    assert SubModelKey(**shared_fields(task, SubModelKey)) == SubModelKey(3, 7, 2, 1, 0.25)
    assert shared_fields(replace(task, level=0), SubModelKey)["level"] == 0
