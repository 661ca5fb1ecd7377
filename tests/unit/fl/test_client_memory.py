"""What clients keep between dispatches, and where it goes when their masks change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgmr_hpc.fl.client_memory import Memories

SIZE = 6
orders = st.permutations(range(SIZE))
lengths = st.integers(1, SIZE)


def at(*positions: int) -> np.ndarray:
    return np.array(positions, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_first_memory_is_empty():
    memory = Memories(SIZE).open(3, 1, at(4, 0))
    assert (memory.values, memory.dense, memory.numbers) == ({}, {}, {})


def test_what_is_kept_follows_its_entries():
    memories = Memories(SIZE)
    memory = memories.open(0, 1, at(5, 2, 0))
    memory.values["a"], memory.values["b"] = floats(1, 2, 3), floats(4, 5, 6)
    moved = memories.open(0, 2, at(0, 1, 5))
    assert moved.values["a"].tolist() == [3, 0, 1]
    assert moved.values["b"].tolist() == [6, 0, 4]
    assert memories.open(0, 3, None).values["a"].tolist() == [3, 0, 0, 0, 0, 1]


def test_the_dense_part_and_numbers_know_no_mask():
    memories = Memories(SIZE)
    memory = memories.open(0, 1, at(0))
    memory.dense["a"], memory.numbers["way"] = floats(7, 8), 0.5
    moved = memories.open(0, 2, None)
    assert moved.dense["a"].tolist() == [7, 8] and moved.numbers == {"way": 0.5}


def test_clients_keep_their_own():
    memories = Memories(2)
    memories.open(0, 1, None).values["a"] = floats(1, 2)
    assert memories.open(1, 1, None).values == {}
    assert memories.open(0, 1, None).values["a"].tolist() == [1, 2]


@pytest.mark.parametrize("last", [None, at(0, 1)])
def test_on_the_same_mask_nothing_is_moved(last):
    memories = Memories(2)
    kept = floats(1, 2)
    memories.open(0, 1, last).values["a"] = kept
    assert memories.open(0, 1, last).values["a"] is kept


def test_positions_may_change_after_the_dispatch():
    memories, positions = Memories(3), at(0, 1)
    memories.open(0, 1, positions).values["a"] = floats(1, 2)
    positions[:] = 2, 0
    assert memories.open(0, 2, at(0, 1)).values["a"].tolist() == [1, 2]


@given(first=orders, second=orders, num_first=lengths, num_second=lengths)
def test_an_entry_on_both_masks_keeps_its_own_and_others_begin_with_0(
    first, second, num_first, num_second
):
    before, after = first[:num_first], second[:num_second]
    memories = Memories(SIZE)
    memories.open(0, 1, at(*before)).values["a"] = floats(*(10 + p for p in before))
    moved = memories.open(0, 2, at(*after)).values["a"]
    assert moved.tolist() == [10 + p if p in before else 0 for p in after]
