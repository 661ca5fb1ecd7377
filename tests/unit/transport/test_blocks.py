"""Memory of large messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgmr_hpc.transport.blocks import PATIENCE, SMALLEST_BYTES, Blocks

SIZE = SMALLEST_BYTES + 16


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


@pytest.mark.parametrize(
    "derive",
    [
        lambda view: view[10:].cast("B"),
        lambda view: np.frombuffer(view, np.uint8)[100:200].view(np.float32),
        lambda view: torch.from_numpy(np.frombuffer(view, np.uint8)[8:].view(np.float32))[3:],
    ],
)
def test_a_block_is_used_again_only_once_nothing_refers_to_it(derive) -> None:
    blocks = Blocks()
    view = blocks.take(SIZE)
    first, derived = address(view), derive(view)
    del view
    held = blocks.take(SIZE)
    assert address(held) != first
    del derived
    again = blocks.take(SIZE - 16)
    assert address(again) == first and len(again) == SIZE - 16


def test_the_smallest_that_fits_is_used_and_none_is_wasted_on_a_small_message() -> None:
    blocks = Blocks()
    large, small = blocks.take(SIZE * 6 // 5), blocks.take(SIZE * 11 // 10)
    expected = address(small)
    del large, small
    other = blocks.take(2 * SIZE)
    assert address(taken := blocks.take(SIZE)) == expected and len(taken) == SIZE
    assert len(other) == 2 * SIZE


def test_a_block_that_nobody_needs_is_given_back() -> None:
    blocks = Blocks()
    blocks.take(4 * SIZE)
    for _ in range(PATIENCE + 1):
        blocks.take(SIZE)
    assert [len(block) for _, block in blocks._idle] == [SIZE]


def test_short_messages_are_no_blocks() -> None:
    blocks = Blocks()
    assert len(blocks.take(SMALLEST_BYTES - 1)) == SMALLEST_BYTES - 1
    assert not blocks._idle
