"""Ranking, nested masks, packed order and scores (docs/method.md#masks)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.fl.submodels import (
    PrunableLayer,
    cut_masks,
    full_masks,
    rank_entries,
    repack,
)
from fedgmr_hpc.models import initial_weights, make_layout


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def one_layer(size: int, cost: float = 1.0) -> list[PrunableLayer]:
    return [PrunableLayer("a", 0, size, cost)]


def rank(weights, layers=None, scores=None, floor_frac=0.0) -> list[int]:
    weights = np.array(weights, np.float32)
    scores = np.abs(weights) if scores is None else np.array(scores, np.float32)
    layers = one_layer(len(weights)) if layers is None else layers
    keys = rank_entries(weights, scores, layers, floor_frac=floor_frac)
    return np.argsort(keys, kind="stable").tolist()


def cut_order(order, densities, *, mask_id: int):
    """Masks cut from keys that rank the entries in the given order."""
    return cut_masks(np.argsort(order).astype(np.uint32), densities, mask_id=mask_id)


def random_masks(seed: int, size: int, densities, mask_id: int = 1):
    order = np.random.default_rng(seed).permutation(size).astype(np.int32)
    return order, cut_order(order, densities, mask_id=mask_id)


SIZES = st.integers(1, 60)
SEEDS = st.integers(0, 2**32 - 1)
DENSITIES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5)
FEW = settings(max_examples=60, deadline=None)


# --- ranking


def test_entries_rank_by_absolute_weight():
    assert rank([0.5, -3.0, 2.0, -0.1]) == [1, 2, 0, 3]


def test_ties_break_by_index_across_layers():
    layers = [PrunableLayer("a", 0, 3, 1.0), PrunableLayer("b", 3, 5, 1.0)]
    assert rank([1, 2, 1, 2, 1], layers) == [1, 3, 0, 2, 4]


def test_scores_are_divided_by_the_layer_cost():
    layers = [PrunableLayer("cheap", 0, 2, 1.0), PrunableLayer("dear", 2, 4, 10.0)]
    # ranking values 1, 2, .9, 3
    assert rank([1, 2, 9, 30], layers) == [3, 1, 0, 2]


def test_the_floor_is_the_largest_weights_of_each_layer_and_ranks_first():
    layers = [PrunableLayer("a", 0, 4, 1.0), PrunableLayer("b", 4, 8, 1.0)]
    weights = [100, 90, 80, 70, 0.1, 0.2, 0.3, 0.4]
    # a quarter of each layer: 100 of a and .4 of b, each the maximum of its layer, then the rest
    assert rank(weights, layers, floor_frac=0.25) == [0, 7, 1, 2, 3, 6, 5, 4]


def test_the_floor_is_ordered_by_weight_over_the_layer_maximum():
    layers = [PrunableLayer("a", 0, 4, 1.0), PrunableLayer("b", 4, 8, 1.0)]
    weights = [100, 50, 1, 1, 0.4, 0.3, 0.1, 0.1]  # relative: 1, .5 and 1, .75
    assert rank(weights, layers, floor_frac=0.5)[:4] == [0, 4, 5, 1]


def test_the_floor_goes_by_weight_even_where_scores_say_otherwise():
    assert rank([1, 2, 3, 4], scores=[9, 8, 7, 0], floor_frac=0.25) == [3, 0, 1, 2]


@pytest.mark.parametrize(
    ("size", "num_floor"),
    [(100, 2), (99, 2), (101, 3), (50, 1), (1, 1), (800, 16), (51_200, 1024)],
)
def test_floor_size_is_n_less_the_ascending_rank(size, num_floor):
    # everything from ascending rank floor(.98 n) on
    weights = np.arange(1, size + 1)
    order = rank(weights, scores=weights[::-1], floor_frac=0.02)
    assert order[:num_floor] == list(range(size - 1, size - 1 - num_floor, -1))
    assert order[num_floor:] == list(range(size - num_floor))


def test_floor_of_everything_and_of_nothing():
    assert rank([1, 3, 2], scores=[9, 0, 5], floor_frac=1.0) == [1, 2, 0]
    assert rank([1, 3, 2], scores=[9, 0, 5], floor_frac=0.0) == [0, 2, 1]


def test_a_layer_of_zeros_is_ranked_last_by_index():
    layers = [PrunableLayer("a", 0, 3, 1.0), PrunableLayer("b", 3, 5, 1.0)]
    assert rank([0, 0, 0, 1, 2], layers) == [4, 3, 0, 1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_raises_naming_the_layer(bad):
    layers = [PrunableLayer("a", 0, 2, 1.0), PrunableLayer("b", 2, 4, 1.0)]
    with pytest.raises(RunError, match="b"):
        rank([1, 2, 3, bad], layers, scores=[1, 1, 1, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_raises(bad):
    with pytest.raises(RunError, match="not finite"):
        rank([1, 2, 3], scores=[1, bad, 2])


@FEW
@given(SEEDS, SIZES, st.floats(0, 1))
def test_ranking_is_a_permutation_equal_to_a_plain_sort(seed, size, floor_frac):
    rng = np.random.default_rng(seed)
    weights = rng.integers(-3, 4, size).astype(np.float32)  # many ties and zeros
    scores = rng.integers(0, 4, size).astype(np.float32)
    num_floor = size - int(np.floor((1 - floor_frac) * size))
    by_size = sorted(range(size), key=lambda i: (-abs(weights[i]), i))
    rest = sorted(by_size[num_floor:], key=lambda i: (-scores[i], i))
    assert rank(weights, scores=scores, floor_frac=floor_frac) == by_size[:num_floor] + rest


def test_layer_densities_of_the_untrained_conv2():
    """The example of docs/method.md#masks, measured there on other initial weights."""
    layout = make_layout("conv2")
    weights = initial_weights("conv2", 0)[: layout.num_prunable]
    entries = [e for e in layout.entries if e.prunable]
    layers = [PrunableLayer(e.name, e.offset, e.offset + e.size, e.cost) for e in entries]
    keys = rank_entries(weights, np.abs(weights), layers, floor_frac=0.02)
    masks = cut_masks(keys, [0.05, 0.5], mask_id=1)
    for level, (conv1, fc1) in enumerate(((0.80, 0.05), (0.90, 0.50))):
        kept = np.zeros(layout.num_prunable, bool)
        kept[masks.perm[: masks.counts[level]]] = True
        found = [kept[e.span].mean() for e in entries]
        assert found[0] == pytest.approx(conv1, abs=0.04)
        assert found[1] == 0.02  # 1,024 of 51,200: exactly its floor
        assert found[2] == pytest.approx(fc1, abs=0.005)


# --- masks


def test_counts_are_int_of_density_times_size():
    masks = random_masks(0, 99, [0.05, 0.1, 0.2, 0.5, 1.0])[1]
    assert masks.counts == (4, 9, 19, 49, 99)
    assert random_masks(0, 6_474_528, [0.05])[1].counts == (323_726,)


def test_equal_densities_share_a_level():
    masks = random_masks(0, 20, [0.5, 0.1, 0.5, 0.1, 1.0])[1]
    assert masks.densities == (0.1, 0.5, 1.0)
    assert [masks.level(d) for d in (0.1, 0.5, 1.0)] == [0, 1, 2]


def test_packed_order_is_the_increments_each_sorted_by_position():
    order = np.array([5, 2, 0, 4, 1, 3], np.int32)
    masks = cut_order(order, [0.34, 0.84], mask_id=7)
    assert masks.counts == (2, 5)
    assert masks.perm.tolist() == [2, 5, 0, 1, 4, 3]
    assert masks.positions(0).tolist() == [2, 5]
    assert masks.positions(1).tolist() == [0, 1, 4]
    assert (masks.mask_id, masks.size) == (7, 6)


@FEW
@given(SEEDS, SIZES, DENSITIES)
def test_each_mask_is_the_top_of_the_ranking_and_masks_are_nested(seed, size, densities):
    order, masks = random_masks(seed, size, densities)
    below: set[int] = set()
    for level, density in enumerate(masks.densities):
        held = set(masks.perm[: masks.counts[level]].tolist()) if masks.perm is not None else None
        held = set(range(size)) if held is None else held
        assert held == set(order[: int(density * size)].tolist())
        assert below <= held
        below = held


@FEW
@given(SEEDS, SIZES, DENSITIES)
def test_increments_are_disjoint_ascending_and_make_up_each_mask(seed, size, densities):
    order, masks = random_masks(seed, size, densities)
    seen: list[int] = []
    for level, density in enumerate(masks.densities):
        positions = masks.positions(level).tolist()
        assert positions == sorted(positions)
        seen += positions
        assert len(seen) == len(set(seen))
        assert set(seen) == set(order[: int(density * size)].tolist())


def test_a_density_below_the_floor_keeps_the_top_of_the_floor():
    layers = [PrunableLayer("a", 0, 4, 1.0), PrunableLayer("b", 4, 8, 1.0)]
    weights = floats(100, 50, 1, 1, 0.4, 0.3, 0.1, 0.1)
    keys = rank_entries(weights, np.abs(weights), layers, floor_frac=0.5)
    masks = cut_masks(keys, [0.25, 0.375], mask_id=1)  # the floor alone would be half
    assert masks.positions(0).tolist() == [0, 4]
    assert masks.positions(1).tolist() == [5]


def test_a_set_of_full_density_only_needs_no_permutation():
    for masks in (full_masks(5), cut_order([4, 3, 2, 1, 0], [1.0], mask_id=2)):
        assert (masks.densities, masks.counts, masks.perm) == ((1.0,), (5,), None)
        assert masks.positions(0).tolist() == [0, 1, 2, 3, 4]


@FEW
@given(SEEDS, SIZES, DENSITIES)
def test_ties_at_the_end_of_a_level_go_by_index(seed, size, densities):
    keys = np.random.default_rng(seed).integers(0, 4, size).astype(np.uint32)
    order = np.argsort(keys, kind="stable")
    masks = cut_masks(keys, densities, mask_id=1)
    for level, count in enumerate(masks.counts):
        held = np.arange(size) if masks.perm is None else masks.perm[:count]
        assert sorted(held[:count].tolist()) == sorted(order[:count].tolist()), level


# --- packed order


@FEW
@given(SEEDS, SIZES, DENSITIES)
def test_pack_and_unpack_undo_each_other(seed, size, densities):
    masks = random_masks(seed, size, densities)[1]
    natural = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    packed = masks.pack(natural)
    assert np.array_equal(masks.unpack(packed), natural)
    for level in range(len(masks.counts)):
        assert np.array_equal(packed[masks.increment(level)], natural[masks.positions(level)])


@pytest.mark.parametrize("masks", [full_masks(3), random_masks(0, 3, [0.5])[1]])
def test_pack_and_unpack_never_return_their_input(masks):
    values = floats(1, 2, 3)
    for moved in (masks.pack(values), masks.unpack(values)):
        assert not np.shares_memory(moved, values)


def scatter(values, index, masks) -> dict[int, float]:
    """natural position -> value of a packed sub-model."""
    at = np.arange(len(values)) if index is None else index
    natural = at if masks.perm is None else masks.perm[at]
    return dict(zip(natural.tolist(), values.tolist(), strict=True))


@FEW
@given(SEEDS, SIZES, DENSITIES, DENSITIES, st.data())
def test_repack_keeps_every_value_at_its_natural_position(seed, size, before, after, data):
    old, new = random_masks(seed, size, before)[1], random_masks(seed + 1, size, after, 2)[1]
    count = old.counts[data.draw(st.integers(0, len(old.counts) - 1))]
    values = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    moved, index = repack(values, None, old, new)
    assert scatter(moved, index, new) == scatter(values, None, old)
    assert index is None or np.all(np.diff(index) > 0)
    back, index = repack(moved, index, new, old)
    assert index is None and np.array_equal(back, values)


def test_repack_of_a_mask_that_stays_is_a_prefix_again():
    old = cut_order([3, 1, 0, 2], [0.5], mask_id=1)
    new = cut_order([1, 3, 2, 0], [0.5], mask_id=2)
    values = floats(10, 30)  # at 1 and 3
    moved, index = repack(values, None, old, new)
    assert index is None and moved.tolist() == [10, 30]


def test_repack_literal():
    old = cut_order([0, 1, 2, 3], [0.5], mask_id=1)
    new = cut_order([3, 1, 2, 0], [0.5], mask_id=2)  # packed: 1 3 0 2
    moved, index = repack(floats(10, 11), None, old, new)
    assert moved.tolist() == [11, 10]
    assert index.tolist() == [0, 2]


def test_repack_leaves_its_input_unchanged():
    old, new = random_masks(0, 9, [0.5])[1], random_masks(1, 9, [0.5], 2)[1]
    values = floats(1, 2, 3, 4)
    moved, _ = repack(values, None, old, new)
    assert values.tolist() == [1, 2, 3, 4]
    assert not np.shares_memory(moved, values)
