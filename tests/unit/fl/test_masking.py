"""How each kind of sub-model is cut from a version, by hand (docs/method.md#sub-models).

Two layers: `a` of 3 x 4 weights, and `b` of 2 x 3, of which a width cuts only the columns.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.axes import SubmodelConfig
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.fl.masking import Masking
from fedgmr_hpc.fl.submodels import PrunableLayer, full_masks
from fedgmr_hpc.fl.widths import Axis, entry_levels

A_AXES, B_AXES = (Axis(3), Axis(4)), (Axis(2, cut="whole"), Axis(3))
LAYERS = (PrunableLayer("a", 0, 12, 1.0, A_AXES), PrunableLayer("b", 12, 18, 1.0, B_AXES))
A = [1, -12, 2, -11, 3, -10, 4, -9, 5, -8, 6, -7]
B = [0.1, -0.6, 0.2, 0.5, -0.3, 0.4]
KINDS = ("importance", "magnitude", "width_prefix", "width_rolling", "ordered_dropout")
FEW = settings(max_examples=60, deadline=None)


def weights() -> np.ndarray:
    return np.array([*A, *B], np.float32)


def make_masking(kind: str, layers=LAYERS, **choices) -> Masking:
    return Masking(SubmodelConfig(kind=kind, **choices), layers)


def held(masks, density: float) -> list[int]:
    """Natural positions of a density's entries, ascending."""
    count = masks.counts[masks.level(density)]
    return list(range(count)) if masks.perm is None else sorted(masks.perm[:count].tolist())


def cut(kind: str, densities=(0.25, 1.0), round_=0, **choices):
    return make_masking(kind, **choices).cut(weights(), densities, round_)


# --- what each kind keeps


def test_importance_keeps_the_largest_of_all_layers():
    masks = cut("importance", floor_frac=0.0)
    assert held(masks, 0.25) == [1, 3, 5, 7]  # int(.25 x 18) of -12 -11 -10 -9 ...


def test_importance_keeps_the_floor_of_every_layer_first():
    # a sixth of each: -12 and -11 of a, -.6 of b, and then -10
    assert held(cut("importance", floor_frac=1 / 6), 0.25) == [1, 3, 5, 13]


def test_costs_count_unless_told_otherwise():
    dear = (PrunableLayer("a", 0, 12, 100.0, A_AXES), LAYERS[1])
    counting = make_masking("importance", dear, floor_frac=0.0)
    assert held(counting.cut(weights(), (0.25,), 0), 0.25) == [13, 15, 16, 17]  # a: .12 .11 ...
    plain = make_masking("importance", dear, floor_frac=0.0, use_costs=False)
    assert held(plain.cut(weights(), (0.25,), 0), 0.25) == [1, 3, 5, 7]


def test_magnitude_keeps_the_same_share_of_every_layer():
    masks = cut("magnitude", (0.25, 0.5))
    assert masks.counts == (3 + 1, 6 + 3)
    assert held(masks, 0.25) == [1, 3, 5, 13]
    assert held(masks, 0.5) == [1, 3, 5, 7, 9, 11, 13, 15, 17]


def test_magnitude_keeps_at_least_one_entry_of_every_layer():
    masks = cut("magnitude", (0.05,))
    assert held(masks, 0.05) == [1, 13]  # int(.6) and int(.3) are none


def test_magnitude_breaks_ties_by_index_and_takes_zeros_last():
    layer = [PrunableLayer("a", 0, 5, 1.0)]
    masks = make_masking("magnitude", layer)
    found = masks.cut(np.array([0, 1, -1, 1, 0], np.float32), (0.4, 0.8), 0)
    assert (held(found, 0.4), held(found, 0.8)) == ([1, 2], [0, 1, 2, 3])


@pytest.mark.parametrize("kind", ["width_prefix", "ordered_dropout"])
@pytest.mark.parametrize("round_", [0, 1, 5])
def test_prefixes_keep_the_first_units_in_every_round(kind, round_):
    # half the width: 2 of 3 rows and 2 of 4 columns of a, 2 of 3 columns of b
    assert held(cut(kind, round_=round_), 0.25) == [0, 1, 4, 5, 12, 13, 15, 16]


@pytest.mark.parametrize(
    ("round_", "positions"),
    [
        (0, [0, 1, 4, 5, 12, 13, 15, 16]),
        (1, [5, 6, 9, 10, 13, 14, 16, 17]),  # rows 1 2, columns 1 2; columns 1 2 of b
        (2, [2, 3, 10, 11, 12, 14, 15, 17]),  # rows 2 0, columns 2 3; columns 2 0 of b
        (3, [0, 3, 4, 7, 12, 13, 15, 16]),  # rows 0 1, columns 3 0; columns 0 1 of b
        (12, [0, 1, 4, 5, 12, 13, 15, 16]),  # once around every axis
    ],
)
def test_rolling_moves_every_axis_by_one_a_round(round_, positions):
    assert held(cut("width_rolling", round_=round_), 0.25) == positions


def test_full_models_are_never_cut():
    masking = make_masking("full")
    assert masking.is_full
    assert masking.cut(weights(), (1.0,), 3) is masking.newest
    assert masking.newest == full_masks(18)


# --- what all kinds have in common


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_density_alone_needs_no_permutation(kind):
    masks = cut(kind, (1.0,), 2)
    assert (masks.counts, masks.perm) == ((18,), None)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_numbered_and_the_newest_is_remembered(kind):
    masking = make_masking(kind)
    ids = []
    for _ in range(3):
        masks = masking.cut(masking.newest.pack(weights()), (0.25, 1.0), 0)
        assert masking.newest is masks
        ids.append(masks.mask_id)
    assert ids == [1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_from_a_packed_version_is_cutting_from_the_natural_one(kind):
    masking = make_masking(kind)
    first = masking.cut(weights(), (0.25, 1.0), 1)
    again = masking.cut(first.pack(weights()), (0.25, 1.0), 1)
    assert again.perm.tolist() == first.perm.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_leaves_the_version_as_it_was(kind):
    version = weights()
    make_masking(kind).cut(version, (0.25, 1.0), 0)
    assert version.tolist() == weights().tolist()


SHAPES = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.booleans()),
    min_size=1,
    max_size=4,
)


def make_layers(shapes) -> list[PrunableLayer]:
    layers, start = [], 0
    for index, (rows, columns, inner, is_whole) in enumerate(shapes):
        axes = (Axis(rows), Axis(columns, inner, cut="whole" if is_whole else "ceil"))
        layers.append(PrunableLayer(str(index), start, start + rows * columns * inner, 1.0, axes))
        start = layers[-1].stop
    return layers


def expected_count(kind: str, layers, density: float) -> int:
    sizes = [layer.stop - layer.start for layer in layers]
    if kind == "importance":
        return int(density * sum(sizes))
    if kind == "magnitude":
        return sum(max(1, int(density * size)) for size in sizes)
    return sum(int((entry_levels(layer.axes, (density,)) == 0).sum()) for layer in layers)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(
    SHAPES,
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6),
    st.integers(0, 40),
    st.integers(0, 2**32 - 1),
)
def test_masks_of_every_kind_are_nested_prefixes_of_a_permutation(
    kind, shapes, densities, round_, seed
):
    layers = make_layers(shapes)
    size = layers[-1].stop
    values = np.random.default_rng(seed).integers(-3, 4, size).astype(np.float32)  # with ties
    masks = make_masking(kind, layers).cut(values, densities, round_)
    assert masks.densities == tuple(sorted(set(densities)))
    assert masks.counts == tuple(expected_count(kind, layers, d) for d in masks.densities)
    order = np.concatenate([masks.positions(level) for level in range(len(masks.counts))])
    assert len(set(order.tolist())) == len(order) == masks.counts[-1]  # increments are disjoint
    if masks.perm is not None:
        assert sorted(masks.perm.tolist()) == list(range(size))
    assert np.array_equal(masks.unpack(masks.pack(values)), values)
    assert np.array_equal(masks.pack(values)[: masks.counts[-1]], values[order])


@FEW
@given(SHAPES, st.floats(0.01, 1.0), st.integers(0, 2**32 - 1))
def test_no_weight_left_out_is_larger_than_one_kept_in_its_layer(shapes, density, seed):
    layers = make_layers(shapes)
    values = np.random.default_rng(seed).integers(-9, 10, layers[-1].stop).astype(np.float32)
    masks = make_masking("magnitude", layers).cut(values, (density,), 0)
    is_kept = np.zeros(len(values), bool)
    is_kept[held(masks, density)] = True
    for layer in layers:
        own = slice(layer.start, layer.stop)
        kept, cut_off = np.abs(values[own][is_kept[own]]), np.abs(values[own][~is_kept[own]])
        assert not len(cut_off) or kept.min() >= cut_off.max()


# --- scores of importance


def test_score_g_sums_squares_by_samples_where_they_belong_and_starts_anew_after_a_ranking():
    masking = make_masking("importance", score="g", floor_frac=0.0)
    masks = masking.cut(weights(), (0.25, 1.0), 0)  # nothing is summed yet: by |w|
    assert masks.perm[:4].tolist() == [1, 3, 5, 7]
    masking.add_grad_squares(np.array([1, 2, 3, 4], np.float32), masks, 10)
    masking.add_grad_squares(np.array([0, 9, 0, 0], np.float32), masks, 2)
    # sums 10, 20 + 18, 30, 40 at 1, 3, 5, 7
    second = masking.cut(masks.pack(weights()), (1 / 18, 2 / 18, 3 / 18), 1)
    assert second.perm[:3].tolist() == [7, 3, 5]
    third = masking.cut(second.pack(weights()), (1 / 18, 1.0), 2)
    assert third.perm[0] == 0  # all sums are zero again: by index


def test_score_wg_is_about_the_change_since_the_last_ranking():
    masking = make_masking("importance", score="wg", floor_frac=0.0)
    first = masking.cut(weights(), (2 / 18, 1.0), 0)
    assert first.perm[:2].tolist() == [1, 3]
    moved = weights()
    moved[0], moved[2] = 1.5, 2.25  # |change x weight|: .75 and .5625
    second = masking.cut(first.pack(moved), (1 / 18, 2 / 18, 1.0), 1)
    assert second.perm[:2].tolist() == [0, 2]


@pytest.mark.parametrize("score", ["w", "wg", "g"])
def test_ranking_ahead_changes_nothing(score):
    ahead, plain = (make_masking("importance", score=score) for _ in range(2))
    ahead.rank(weights())
    ahead.rank(weights())  # it is ranked already
    masks = [masking.cut(weights(), (0.25, 0.5), 0) for masking in (ahead, plain)]
    assert masks[0].perm.tolist() == masks[1].perm.tolist()


def test_a_version_that_is_not_finite_cannot_be_ranked():
    broken = weights()
    broken[14] = np.nan
    with pytest.raises(RunError, match="layer b: a weight or score is not finite"):
        make_masking("importance").cut(broken, (0.5,), 0)
