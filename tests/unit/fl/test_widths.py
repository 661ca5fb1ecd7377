"""Which units and entries a width keeps, worked out by hand (docs/method.md#width-methods)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.fl.widths import (
    Axis,
    entry_levels,
    inner_entries,
    kept_units,
    narrowed,
    unit_levels,
)

FEW = settings(max_examples=80, deadline=None)
DENSITY = st.floats(0.001, 1.0)
PLAIN_AXES = st.builds(Axis, st.integers(1, 40), st.integers(1, 3), cut=st.sampled_from(["ceil"]))
AXES = st.one_of(
    PLAIN_AXES,
    st.builds(Axis, st.integers(1, 9).map(lambda n: 12 * n), heads=st.sampled_from([1, 2, 3, 4])),
    st.builds(Axis, st.integers(1, 9), cut=st.just("whole")),
)


@pytest.mark.parametrize(
    ("axis", "kept"),
    [  # of densities 1, .5, .2, .1, .05, whose roots are 1, .7071, .4472, .3162, .2236
        (Axis(64), (64, 46, 29, 21, 15)),  # 45.25, 28.6, 20.2, 14.3
        (Axis(1), (1, 1, 1, 1, 1)),
        (Axis(3), (3, 3, 2, 1, 1)),
        (Axis(96), (96, 68, 43, 31, 22)),  # 67.9, 42.9, 30.4, 21.5
        (Axis(384), (384, 272, 172, 122, 86)),  # 271.5, 171.7, 121.4, 85.9
        (Axis(96, heads=4), (96, 68, 44, 32, 24)),  # of 24 units a head 17.0, 10.7, 7.6, 5.4
        (Axis(62, cut="whole"), (62, 62, 62, 62, 62)),
    ],
)
def test_kept_units_of_the_ladder(axis, kept):
    assert tuple(kept_units(axis, density) for density in (1.0, 0.5, 0.2, 0.1, 0.05)) == kept
    assert [narrowed(axis, 0.2).units] == [kept[2]]


@pytest.mark.parametrize(
    ("units", "density", "kept"),
    [(10, 0.09, 3), (16, 0.25, 8), (100, 0.49, 70), (1000, 0.000001, 1), (7, 1.0, 7)],
)
def test_a_share_that_is_a_whole_number_of_units_is_not_rounded_up(units, density, kept):
    assert kept_units(Axis(units), density) == kept


def test_at_least_one_unit_is_kept_of_every_head():
    assert kept_units(Axis(96), 1e-30) == 1
    assert kept_units(Axis(96, heads=4), 1e-30) == 4


@pytest.mark.parametrize(
    ("offset", "levels"),
    [
        (0, [0, 0, 1, 2]),  # 2 units of .25, 3 of .5625
        (1, [2, 0, 0, 1]),
        (2, [1, 2, 0, 0]),
        (3, [0, 1, 2, 0]),
        (7, [0, 1, 2, 0]),
    ],
)
def test_kept_units_follow_the_offset_and_wrap(offset, levels):
    assert unit_levels(Axis(4), (0.25, 0.5625), offset).tolist() == levels


def test_heads_are_cut_and_rolled_alike():
    axis = Axis(48, heads=2)  # 24 units a head; a 576th keeps one of them
    for offset in (0, 5, 24):
        one_head = [int(unit != offset % 24) for unit in range(24)]
        assert unit_levels(axis, (1 / 576, 1.0), offset).tolist() == one_head * 2


def test_entries_are_kept_where_all_their_units_are():
    matrix = (Axis(2), Axis(4))  # one row of two, two columns of four
    assert entry_levels(matrix, (0.25, 1.0)).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert entry_levels(matrix, (0.25, 1.0), 1).tolist() == [1, 1, 1, 1, 1, 0, 0, 1]


def test_the_inner_entries_of_a_unit_go_with_it():
    assert entry_levels((Axis(2, inner=3),), (0.25, 1.0)).tolist() == [0, 0, 0, 1, 1, 1]
    flattened = (Axis(1, cut="whole"), Axis(2, inner=2))
    assert entry_levels(flattened, (0.25, 1.0), 1).tolist() == [1, 1, 0, 0]


def test_a_whole_axis_neither_cuts_nor_rolls():
    assert entry_levels((Axis(3, cut="whole"),), (0.01,), 2).tolist() == [0, 0, 0]
    assert entry_levels((), (0.01,)).tolist() == [0]


def test_an_inner_network_lies_within_the_outer_one():
    tensors = [(Axis(4),), (Axis(2, cut="whole"),), (Axis(4), Axis(4))]
    # of 4 units the outer keeps 3, the inner 2: tensors of 3, 2 and 3 x 3 entries
    found = inner_entries(tensors, 0.25, 0.5625)
    assert found.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]


def test_a_network_lies_in_itself():
    assert inner_entries([(Axis(4), Axis(3))], 0.25, 0.25).tolist() == [0, 1, 2, 3]


def test_more_than_255_densities_are_told_apart():
    densities = [(level + 1) ** 2 / 300**2 for level in range(300)]  # of 300 units 1, 2, 3, ...
    assert unit_levels(Axis(300), densities, 0).tolist() == list(range(300))


@FEW
@given(AXES, DENSITY, st.integers(0, 500))
def test_a_rolled_window_is_as_wide_as_a_prefix_and_begins_at_its_offset(axis, density, offset):
    kept = (unit_levels(axis, (density,), offset) == 0).reshape(axis.heads, -1)
    num_kept, per_head = kept_units(axis, density) // axis.heads, axis.units // axis.heads
    begin = 0 if axis.cut == "whole" else offset
    window = {(begin + unit) % per_head for unit in range(num_kept)}
    assert all(set(np.flatnonzero(head).tolist()) == window for head in kept)


@FEW
@given(AXES, DENSITY)
def test_in_as_many_rounds_as_units_every_unit_is_kept_equally_often(axis, density):
    """FedRolex: all entries of the model are trained evenly."""
    rounds = range(axis.units // axis.heads)
    times = sum((unit_levels(axis, (density,), r) == 0).astype(int) for r in rounds)
    per_head = axis.units // axis.heads
    expected = per_head if axis.cut == "whole" else kept_units(axis, density) // axis.heads
    assert times.tolist() == [expected] * axis.units


@FEW
@given(AXES, st.lists(DENSITY, min_size=2, max_size=5, unique=True), st.integers(0, 500))
def test_wider_contains_narrower(axis, densities, offset):
    below = np.zeros(axis.units, bool)
    for density in sorted(densities):
        kept = unit_levels(axis, (density,), offset) == 0
        assert (kept | ~below).all()
        below = kept


@FEW
@given(st.lists(AXES.filter(lambda axis: axis.units < 50), min_size=1, max_size=3), DENSITY,
       st.integers(0, 99))  # fmt: skip
def test_an_entry_is_kept_if_and_only_if_its_units_are(axes, density, offset):
    kept = (entry_levels(axes, (density,), offset) == 0).reshape(
        [axis.units * axis.inner for axis in axes]
    )
    expected = np.ones(kept.shape, bool)
    for place, axis in enumerate(axes):
        own = np.repeat(unit_levels(axis, (density,), offset) == 0, axis.inner)
        expected &= own.reshape([-1 if place == other else 1 for other in range(len(axes))])
    assert (kept == expected).all()
