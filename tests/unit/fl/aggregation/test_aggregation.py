"""Merging rules and staleness weights in closed form (docs/method.md#aggregation)."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.choices.registry import AGGREGATIONS
from fedgmr_hpc.fl.aggregation import BufferEntry, Merge, merge, merging, staleness_weight

RULES = ("mask_aware", "average", "gradient", "mix")  # of values; `fedbuff` is of changes


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def entry(client=0, values=(), dense=(), index=None, num_samples=1) -> BufferEntry:
    at = None if index is None else np.array(index, np.int32)
    return BufferEntry(client, 0, floats(*values), at, floats(*dense), num_samples)


def step(packed, dense, entries, weights, rule="mask_aware", rho=1.0, **options):
    """The first version that a rule makes; `fedbuff` divides by the sum of the weights."""
    if rule == "fedbuff":
        options = {"server_learning_rate": len(entries) / sum(weights)} | options
    what = Merge(packed, dense, entries, weights, arrived=[rho])
    new = merge(AGGREGATIONS[rule](**options), what)
    return new.packed, new.dense


def merged(packed, entries, weights, rule="mask_aware", rho=1.0, dense=(), **options):
    new, new_dense = step(floats(*packed), floats(*dense), entries, weights, rule, rho, **options)
    assert new.dtype == new_dense.dtype == np.float32
    return new.tolist(), new_dense.tolist()


def naive(packed, entries, weights, rule, rho) -> np.ndarray:
    """The formulas entry by entry, in float64."""
    new = np.array(packed, np.float64)
    for x in range(len(packed)):
        held = []
        for each, weight in zip(entries, weights, strict=True):
            at = range(len(each.values)) if each.index is None else each.index.tolist()
            held += [(weight, float(v)) for p, v in zip(at, each.values, strict=True) if p == x]
        total = sum(weight for weight, _ in held)
        weighted = sum(weight * value for weight, value in held)
        if rule == "average":
            new[x] = weighted / sum(weights)
        elif rule == "gradient":
            new[x] += (weighted - total * new[x]) / sum(weights)
        elif rule == "fedbuff":
            new[x] += weighted / sum(weights)
        elif held:
            share = 1.0 if rule == "mask_aware" else rho
            new[x] = share * weighted / total + (1 - share) * new[x]
    return new


# --- mask aware


def test_the_holders_of_an_entry_are_averaged():
    # holders: both, both, the second alone, nobody
    entries = [entry(0, [2, 4]), entry(1, [6, 12, 7])]
    assert merged([1, 1, 1, 9], entries, [1, 3])[0] == [5, 10, 7, 9]


def test_the_dense_part_is_averaged_over_everybody():
    entries = [entry(0, [], [2, 4]), entry(1, [1], [6, 12])]
    assert merged([1], entries, [1, 3], dense=[0, 0])[1] == [5, 10]


@pytest.mark.parametrize("rule", ["mask_aware", "mix"])
def test_uncovered_entries_keep_their_value(rule):
    old = [0.1, -0.3, 1e-30, 7.7]
    prefix, indexed = entry(0, [0.5]), entry(0, [0.5], index=[2])
    assert merged(old, [prefix], [1], rule, 0.4)[0][1:] == floats(*old)[1:].tolist()
    kept = merged(old, [indexed], [1], rule, 0.4)[0]
    assert [kept[i] for i in (0, 1, 3)] == floats(0.1, -0.3, 7.7).tolist()


def test_an_entry_delivered_as_zero_is_covered():
    assert merged([1, 1], [entry(0, [0.0])], [1])[0] == [0, 1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("index", [None, [0, 1, 2]])
def test_clients_that_return_the_model_never_change_it(rule, index):
    rng = np.random.default_rng(0)
    packed, dense = rng.standard_normal((2, 3)).astype(np.float32)
    weights = [1, 2**-0.6, 3**-0.6, 0.7]
    now, now_dense = packed, dense
    for _ in range(50):
        entries = [entry(c, now, now_dense, index) for c in range(4)]
        now, now_dense = step(now, now_dense, entries, weights, rule, 0.37)
    assert now.tolist() == pytest.approx(packed.tolist(), rel=1e-6)
    assert now_dense.tolist() == pytest.approx(dense.tolist(), rel=1e-6)


def test_clients_that_return_the_model_leave_every_bit():
    packed, dense = np.random.default_rng(1).standard_normal((2, 999)).astype(np.float32)
    entries = [entry(c, packed[:n], dense) for c, n in enumerate((999, 500, 200, 50))]
    new, new_dense = step(packed, dense, entries, [1, 0.66, 0.52, 3])
    assert new.tobytes() == packed.tobytes() and new_dense.tobytes() == dense.tobytes()


@pytest.mark.parametrize("index", [None, [0, 1, 2]])
def test_a_single_holder_counts_exactly(index):
    values = floats(0.1, 1e-8, 3e8)
    others = entry(1, [5], [5, 5], None if index is None else [3])
    alone = entry(0, values, [0.3, 0.7], index)
    new, _ = step(floats(9, 9, 9, 9), floats(0, 0), [alone], [0.123])
    assert new[:3].tobytes() == values.tobytes()
    new, _ = step(floats(9, 9, 9, 9), floats(0, 0), [others, alone], [0.9, 0.1])
    assert new[1:3].tobytes() == values[1:].tobytes()


def test_weights_count_by_their_ratio_only():
    entries = [entry(0, [1, 2]), entry(1, [3, 5])]
    assert merged([0, 0], entries, [1, 1])[0] == merged([0, 0], entries, [40, 40])[0] == [2, 3.5]


# --- average and mix


def test_average_counts_absent_entries_as_zero():
    entries = [entry(0, [2, 4]), entry(1, [6, 12, 8])]
    assert merged([1, 1, 1, 9], entries, [1, 3], "average")[0] == [5, 10, 6, 0]


def test_mix_moves_by_rho_towards_the_mean_of_the_holders():
    entries = [entry(0, [2, 4], [8]), entry(1, [6, 12, 7], [0])]
    new, dense = merged([1, 2, 3, 9], entries, [1, 3], "mix", 0.25, [10])
    assert new == [2, 4, 4, 9]  # means 5, 10, 7
    assert dense == [8]  # mean 2


def test_mix_with_rho_one_is_mask_aware():
    entries = [entry(0, [2, 4]), entry(1, [6, 12, 7])]
    assert merged([1, 2, 3, 9], entries, [1, 3], "mix", 1.0)[0] == [5, 10, 7, 9]


@pytest.mark.parametrize("rule", RULES)
def test_full_models_of_the_current_version_merge_to_the_plain_mean(rule):
    values = np.random.default_rng(2).standard_normal((5, 100)).astype(np.float32)
    entries = [entry(c, v, v[:7]) for c, v in enumerate(values)]
    old = np.ones(100, np.float32)
    new, dense = step(old, old[:7], entries, [20] * 5, rule)
    mean = values.astype(np.float64).mean(0)
    assert np.allclose(new, mean, rtol=0, atol=3e-7)
    assert np.allclose(dense, mean[:7], rtol=0, atol=3e-7)


def test_at_full_density_mask_aware_equals_fed_avg_bit_for_bit():
    values = np.random.default_rng(3).standard_normal((4, 200_000)).astype(np.float32)
    entries = [entry(c, v) for c, v in enumerate(values)]
    old, none = np.zeros(200_000, np.float32), floats()
    one, _ = step(old, none, entries, [20] * 4, "mask_aware")
    two, _ = step(old, none, entries, [20] * 4, "average")
    assert one.tobytes() == two.tobytes()


# --- gradient and fedbuff


def test_gradient_counts_absent_entries_as_unchanged():
    entries = [entry(0, [2, 4], [8]), entry(1, [6, 12, 7], [0])]
    # the holders' steps from the model times their share: (1 x 1 + 3 x 5) / 4 = 4, ...
    new, dense = merged([1, 2, 3, 9], entries, [1, 3], "gradient", dense=[10])
    assert new == [5, 10, 6, 9]  # 1 + 4, 2 + 8, 3 + 3/4 x 4, kept
    assert dense == [2]  # 10 + (1 x -2 + 3 x -10) / 4


def test_fedbuff_adds_the_mean_change():
    entries = [entry(0, [2, 4], [8]), entry(1, [6, 12, 8], [0])]
    new, dense = merged([1, 2, 3, 9], entries, [1, 3], "fedbuff", dense=[10])
    assert new == [6, 12, 9, 9]  # + (2 + 18) / 4, + (4 + 36) / 4, + 24 / 4, + 0
    assert dense == [12]


def test_the_server_learning_rate_and_stale_weights_scale_the_change():
    half_stale = [entry(0, [8.0])]  # sigma 0.5 of one update of one sample, eta 2
    new, _ = step(floats(1), floats(), half_stale, [0.5], "fedbuff", server_learning_rate=2)
    assert new.tolist() == [1 + 2 * 0.5 * 8]


def test_fed_buff_takes_the_mean_of_running_statistics():
    """Changes of old versions, added up, would carry a variance below 0."""
    updates = [entry(c, [2, own], [4, own], num_samples=10) for c, own in enumerate((0.1, 0.4))]
    statistics = (np.array([False, True]), np.array([False, True]))
    what = Merge(floats(1, 0.5), floats(1, 0.5), updates, [10.0, 5.0], statistics=statistics)
    new = merge(AGGREGATIONS["fedbuff"](), what)
    assert new.packed.tolist() == pytest.approx([1 + 15 * 2 / 20, (10 * 0.1 + 5 * 0.4) / 15])
    assert new.dense.tolist() == pytest.approx([1 + 15 * 4 / 20, (10 * 0.1 + 5 * 0.4) / 15])


def test_changes_of_nothing_leave_every_bit():
    packed, dense = np.random.default_rng(4).standard_normal((2, 99)).astype(np.float32)
    entries = [entry(c, np.zeros(n), np.zeros(99)) for c, n in enumerate((99, 50, 20))]
    new, new_dense = step(packed, dense, entries, [1, 2, 3], "fedbuff")
    assert new.tobytes() == packed.tobytes() and new_dense.tobytes() == dense.tobytes()


# --- any arrangement


@st.composite
def arrangements(draw):
    """A model and updates, some in the current masks' prefix order, some of older masks."""
    size = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    entries, weights = [], []
    for client in range(draw(st.integers(1, 5))):
        count = draw(st.integers(0, size))
        index = None
        if draw(st.booleans()):
            index = np.sort(rng.permutation(size)[:count]).astype(np.int32)
        values = rng.standard_normal(count)
        entries.append(entry(client, values, rng.standard_normal(3), index))
        weights.append(draw(st.floats(0.1, 10)))
    return rng.standard_normal(size).astype(np.float32), entries, weights


@settings(max_examples=200, deadline=None)
@given(arrangements(), st.sampled_from([*RULES, "fedbuff"]), st.floats(0, 1), st.integers(1, 9))
def test_any_arrangement_equals_the_naive_formulas(arrangement, rule, rho, chunk):
    packed, entries, weights = arrangement
    with mock.patch.object(merging, "CHUNK", chunk):
        new, _ = step(packed, floats(0, 0, 0), entries, weights, rule, rho)
    assert np.allclose(new, naive(packed, entries, weights, rule, rho), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@settings(max_examples=60, deadline=None)
@given(arrangements(), st.sampled_from([*RULES, "fedbuff"]))
def test_the_inputs_are_never_modified_and_never_returned(arrangement, rule):
    packed, entries, weights = arrangement
    dense = floats(1, 2, 3)
    for array in (packed, dense, *(a for e in entries for a in (e.values, e.dense))):
        array.flags.writeable = False
    before = [a.tobytes() for e in entries for a in (e.values, e.dense)]
    new, new_dense = step(packed, dense, entries, weights, rule, 0.5)
    assert [a.tobytes() for e in entries for a in (e.values, e.dense)] == before
    sources = [packed, dense, *(a for e in entries for a in (e.values, e.dense))]
    assert not any(np.shares_memory(a, b) for a in sources for b in (new, new_dense))


# --- staleness


@pytest.mark.parametrize(
    ("rule", "age", "weight"),
    [
        ("constant", 1, 1.0),
        ("constant", 50, 1.0),
        ("poly", 1, 1.0),
        ("poly", 2, 0.659753955386447),  # 2^-.6
        ("poly", 3, 0.517281857971786),
        ("poly", 32, 0.125),
        ("hinge", 1, 1.0),
        ("hinge", 3, 1.0),  # r - tag = 2: the last without a penalty
        ("hinge", 4, 0.625),  # 1 / (.6 + 1)
        ("hinge", 8, 0.25),  # 1 / (.6 x 5 + 1)
    ],
)
def test_staleness_weights_of_section_6(rule, age, weight):
    got = staleness_weight(age, rule=rule, exponent=0.6, hinge_delay=2)
    assert got == pytest.approx(weight, rel=1e-12)


def test_exponent_and_delay_are_choices():
    assert staleness_weight(4, rule="poly", exponent=0.5, hinge_delay=2) == pytest.approx(0.5)
    assert staleness_weight(9, rule="poly", exponent=0, hinge_delay=2) == 1
    assert staleness_weight(4, rule="hinge", exponent=1, hinge_delay=0) == pytest.approx(0.25)
