"""Threads of the server: the same bits as one thread, errors and order kept."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fedgmr_hpc.config.choices.registry import AGGREGATIONS
from fedgmr_hpc.fl.aggregation import BufferEntry, Merge, merge, merging
from fedgmr_hpc.fl.quarantine import find_fault
from fedgmr_hpc.fl.threads import Threads
from fedgmr_hpc.fl.updates import Update

NUM = 1000


def make_merge(seed: int) -> Merge:
    """Updates of several densities, two of them of older masks."""
    rng = np.random.default_rng(seed)
    entries = []
    for client, count in enumerate((NUM, 700, 700, 300, 50, 400, 20)):
        index = np.sort(rng.choice(NUM, count, replace=False)) if client > 4 else None
        values = rng.normal(size=count).astype(np.float32)
        dense = rng.normal(size=3).astype(np.float32)
        entries.append(BufferEntry(client, 0, values, index, dense, 10 + client))
    weights = [float(w) for w in rng.uniform(0.1, 1.0, len(entries))]
    packed, dense = (rng.normal(size=n).astype(np.float32) for n in (NUM, 3))
    return Merge(packed, dense, entries, weights)


@pytest.mark.parametrize("rule", ["mask_aware", "average"])
@pytest.mark.parametrize("num", [2, 3, 8])
def test_a_merge_has_the_same_bits_on_any_threads(monkeypatch, num: int, rule: str) -> None:
    monkeypatch.setattr(merging, "CHUNK", 16)
    for seed in range(3):
        one = merge(AGGREGATIONS[rule](), make_merge(seed))
        many = merge(AGGREGATIONS[rule](), make_merge(seed), threads=Threads(num))
        assert one.packed.tobytes() == many.packed.tobytes()
        assert one.dense.tobytes() == many.dense.tobytes()


def test_pieces_come_back_in_order_and_from_other_threads() -> None:
    found = Threads(3).map(lambda piece: (piece, threading.get_ident()), range(100))
    assert [piece for piece, _ in found] == list(range(100))
    assert threading.get_ident() not in {thread for _, thread in found}


def test_one_thread_and_one_piece_stay_where_they_are() -> None:
    own = {threading.get_ident()}
    assert set(Threads().map(lambda _: threading.get_ident(), range(9))) == own
    assert set(Threads(4).map(lambda _: threading.get_ident(), [0])) == own


@pytest.mark.parametrize("num", [1, 2])
def test_a_call_that_was_begun_gives_its_result_or_its_error(num: int) -> None:
    threads = Threads(num)
    waits = [threads.start(lambda piece: 6 // piece, piece) for piece in (3, 0, 2)]
    assert (waits[0](), waits[2]()) == (2, 3)
    with pytest.raises(ZeroDivisionError):
        waits[1]()


def test_an_error_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        Threads(2).map(lambda piece: 1 // (piece - 7), range(20))


@pytest.mark.parametrize("at", [0, 2_100_000])
def test_a_value_that_is_not_finite_is_found_in_any_piece(at: int) -> None:
    values = np.ones(2_200_000, np.float32)
    update = Update(
        client=0, base_version=0, mask_id=0, level=0, density=1.0,
        values=values, dense=np.ones(2, np.float32), grad_squares=None,
    )  # fmt: skip
    threads = Threads(2)
    each = [(ratio, own) for ratio in (None, 10.0) for own in (threads, Threads())]
    assert not any(find_fault(update, ratio, lambda: 1.0, own) for ratio, own in each)
    values[at] = np.inf
    faults = {find_fault(update, ratio, lambda: 1.0, own) for ratio, own in each}
    assert faults == {"a value is not finite"}
