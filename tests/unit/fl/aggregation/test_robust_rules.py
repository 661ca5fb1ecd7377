"""Median, trimmed mean and Krum by hand, on sub-models of every arrangement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.choices.registry import AGGREGATIONS
from fedgmr_hpc.fl.aggregation import BufferEntry, Merge, merge, rule

NAMES = ("median", "trimmed_mean", "krum")


def entry(client, values, dense=(), index=None) -> BufferEntry:
    at = None if index is None else np.array(index, np.int32)
    values, dense = np.array(values, np.float32), np.array(dense, np.float32)
    return BufferEntry(client, 0, values, at, dense, 1)


def new(name, packed, entries, dense=(), **options):
    arrays = np.array(packed, np.float32), np.array(dense, np.float32)
    what = Merge(*arrays, entries, [1.0] * len(entries))
    return merge(AGGREGATIONS[name](**options), what)


def test_the_median_is_taken_over_those_who_hold_an_entry():
    entries = [entry(0, [1, 5, 2], [1]), entry(1, [9, 7], [3]), entry(2, [2], [8])]
    made = new("median", [0, 0, 0, 4], entries, [0])
    assert made.packed.tolist() == [2, 6, 2, 4]
    assert made.dense.tolist() == [3]
    assert made.shares == [1 / 3] * 3


def test_the_trimmed_mean_leaves_out_both_ends():
    entries = [entry(c, [v]) for c, v in enumerate((64, 3, 5, 1, -64))]
    assert new("trimmed_mean", [0], entries, trim_frac=0.2).packed.tolist() == [3]
    whole = new("trimmed_mean", [0], entries, trim_frac=0.1).packed
    assert whole.tolist() == pytest.approx([9 / 5])  # nothing is cut of five


def test_krum_takes_those_with_close_neighbours():
    entries = [entry(c, v) for c, v in enumerate([(1, 1), (2, 2), (90, -9), (3, 3), (2, 2)])]
    made = new("krum", [0, 0], entries, krum_faulty=1)
    assert made.packed.tolist() == [2, 2]  # 1, 2, 3 and 2
    assert made.shares == [0.25, 0.25, 0, 0.25, 0.25]
    one = new("krum", [0, 0], entries, krum_faulty=1, krum_kept=1)
    assert one.shares == [0, 1, 0, 0, 0]  # ties by client


def test_krum_compares_what_both_hold():
    far = [entry(0, [0, 0]), entry(1, [0], index=[1]), entry(2, [7], index=[0])]
    made = new("krum", [5, 5, 5], far, krum_faulty=0, krum_kept=2)
    assert made.shares == [0.5, 0.5, 0]
    assert made.packed.tolist() == [0, 0, 5]


@pytest.mark.parametrize("name", NAMES)
def test_one_wild_client_of_five_does_no_harm(name):
    options = {"trim_frac": 0.2} if name == "trimmed_mean" else {}
    rng = np.random.default_rng(0)
    honest = [rng.standard_normal(40) * 0.1 for _ in range(4)]
    entries = [entry(c, v) for c, v in enumerate([*honest[:2], np.full(40, 1e6), *honest[2:]])]
    assert np.abs(new(name, np.zeros(40), entries, **options).packed).max() < 1
    assert np.abs(new("mask_aware", np.zeros(40), entries).packed).min() > 1e5


@st.composite
def arrangements(draw):
    size = draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    entries = []
    for client in range(draw(st.integers(1, 6))):
        count = draw(st.integers(0, size))
        is_indexed = draw(st.booleans())
        index = np.sort(rng.permutation(size)[:count]) if is_indexed else None
        entries.append(entry(client, rng.standard_normal(count), rng.standard_normal(2), index))
    return rng.standard_normal(size).astype(np.float32), entries


@settings(max_examples=150, deadline=None)
@given(arrangements(), st.sampled_from(NAMES), st.integers(1, 30))
def test_any_arrangement_gives_the_closed_form(arrangement, name, chunk):
    packed, entries = arrangement
    size, dense = len(packed), np.ones(2, np.float32)
    values = np.full((len(entries), size + 2), np.nan)
    for row, each in zip(values, entries, strict=True):
        row[np.arange(len(each.values)) if each.index is None else each.index] = each.values
        row[size:] = each.dense
    what = Merge(packed, dense, entries, [1.0] * len(entries))
    chosen = AGGREGATIONS[name](**{"trim_frac": 0.3} if name == "trimmed_mean" else {})
    old = np.concatenate([packed, dense]).astype(np.float64)
    expected = chosen.expected(old, values, ~np.isnan(values), what)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule, "WHOLE_CHUNK", chunk)
        made = merge(chosen, what)
    found = np.concatenate([made.packed, made.dense])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert sum(made.shares) == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_clients_that_return_the_model_leave_every_bit(name):
    packed, dense = np.random.default_rng(1).standard_normal((2, 99)).astype(np.float32)
    entries = [entry(c, packed[:n], dense) for c, n in enumerate((99, 50, 50, 20, 0))]
    made = new(name, packed, entries, dense)
    assert made.packed.tobytes() == packed.tobytes() and made.dense.tobytes() == dense.tobytes()
