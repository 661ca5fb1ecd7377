"""Partitions, validation cuts and batch streams: literals by hand, laws by hypothesis."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.data.partition import (
    batch_indices,
    class_counts,
    cut_validation,
    make_partition,
    order,
    skew,
)

SEEDS = st.integers(0, 2**31)
GOLDEN = {"iid": "234ec7fd4a4c", "group": "03995531d1d2", "dirichlet": "d993b93c2b3c"}


def deal(
    kind, y, group=None, *, num_clients, alpha=0.6, shards=2, sort_by_size=True, seed=0, **keys
):
    group = np.zeros(len(y), np.int32) if group is None else np.array(group, np.int32)
    return make_partition(
        kind,
        np.array(y, np.int64),
        group,
        num_clients=num_clients,
        alpha=alpha,
        shards_per_client=shards,
        speeds=[1.0] * num_clients if sort_by_size else None,
        seed=seed,
    )


def as_lists(parts):
    return [part.tolist() for part in parts]


def test_iid_gives_equal_slices_and_leaves_the_remainder():
    parts = deal("iid", [0] * 11, num_clients=3)
    assert [len(part) for part in parts] == [3, 3, 3]
    assert len(set(np.concatenate(parts).tolist())) == 9
    assert all(part.dtype == np.int64 for part in parts)


def test_iid_of_the_papers_femnist_gives_3594_images_each():
    parts = deal("iid", np.zeros(35_948), num_clients=10)
    assert [len(part) for part in parts] == [3_594] * 10


def test_group_deals_consecutive_writers_and_the_last_takes_the_rest():
    group = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    parts = deal("group", [0] * 10, group, num_clients=2)
    assert as_lists(parts) == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]


def test_group_counts_only_writers_that_are_left_after_a_subset():
    parts = deal("group", [0] * 6, [5, 5, 90, 90, 120, 120], num_clients=3)
    assert as_lists(parts) == [[0, 1], [2, 3], [4, 5]]


def test_group_of_the_papers_193_writers_gives_19_each_and_22_to_the_last():
    group = np.repeat(np.arange(193), 2)
    parts = deal("group", np.zeros(386), group, num_clients=10)
    assert [len(part) // 2 for part in parts] == [19] * 9 + [22]


def test_dirichlet_cuts_each_class_in_order_at_the_rounded_down_cumulative_share(monkeypatch):
    class FixedShares:
        def dirichlet(self, alpha):
            assert alpha.tolist() == [0.6, 0.6, 0.6]
            return np.array([0.55, 0.25, 0.2])  # of 4: cuts at floor 2.2 = 2 and floor 3.2 = 3

    monkeypatch.setattr(skew, "make_rng", lambda *key, **named: FixedShares())
    y = [0, 1, 0, 1, 0, 1, 0, 1]
    parts = deal("dirichlet", y, num_clients=3, sort_by_size=False)
    assert as_lists(parts) == [[0, 2, 1, 3], [4, 5], [6, 7]]
    assert as_lists(deal("dirichlet", y, num_clients=3)) == [[4, 5], [6, 7], [0, 2, 1, 3]]


def test_shards_are_cut_in_label_order_and_dealt_by_a_permutation(monkeypatch):
    class Fixed:
        def permutation(self, num):
            assert num == 4
            return np.array([2, 0, 3, 1])  # client 0 gets shards 2 and 0, client 1 shards 3 and 1

    monkeypatch.setattr(skew, "make_rng", lambda *key, **named: Fixed())
    y = [1, 0, 1, 0, 2, 2, 3, 3]  # in label order: 1 3 | 0 2 | 4 5 | 6 7
    assert as_lists(deal("shards", y, num_clients=2)) == [[1, 3, 4, 5], [0, 2, 6, 7]]


def test_shards_differ_by_one_where_they_cannot_be_equal_and_none_is_lost():
    parts = deal("shards", [0] * 50, num_clients=20, shards=1)
    assert sorted(map(len, parts)) == [2] * 10 + [3] * 10
    assert sorted(np.concatenate(parts).tolist()) == list(range(50))


def test_a_shard_as_large_as_half_a_class_holds_one_class():
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 20))
    parts = deal("shards", y, num_clients=10, shards=1)
    assert [len(set(y[part].tolist())) for part in parts] == [1] * 10


def test_too_many_shards_name_the_largest_number():
    with pytest.raises(ValueError, match=r"data\.shards_per_client must be between 1 and 5 when"):
        deal("shards", [0] * 11, num_clients=2, shards=6)


def test_ten_thousand_clients_of_fifty_thousand_samples_all_get_two():
    y = np.arange(50_000) % 10
    parts = deal("dirichlet", y, num_clients=10_000)
    assert min(map(len, parts)) == 2
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(50_000))


def test_poor_clients_are_filled_up_from_the_richest_unless_too_many_lack():
    counts = np.array([[5, 0, 2], [1, 1, 0]])  # sizes 6, 1, 2
    assert skew._fill_up(counts, most=1).tolist() == [[4, 1, 2], [1, 1, 0]]
    assert skew._fill_up(counts, most=0).tolist() == counts.tolist()


def test_parts_stay_those_that_published_figures_were_made_with():
    y, group = np.arange(1000) % 10, np.arange(1000) // 20
    digests = {}
    for kind in ("iid", "group", "dirichlet"):
        parts = deal(kind, y, group, num_clients=10, seed=3)
        train, val = cut_validation(parts, frac=0.1, seed=3)
        joined = np.concatenate([*parts, *train, *val])
        digests[kind] = hashlib.sha256(joined.astype("<i8").tobytes()).hexdigest()[:12]
    assert digests == GOLDEN


def test_dirichlet_redraws_until_every_client_has_two_samples(monkeypatch):
    steps = []

    def counted(seed, role, client=0, step=0):
        steps.append((role, client, step))
        share = [1.0, 0.0] if step < 3 else [0.5, 0.5]
        return type("Rng", (), {"dirichlet": lambda self, alpha: np.array(share)})()

    monkeypatch.setattr(skew, "make_rng", counted)
    assert as_lists(deal("dirichlet", [0] * 4, num_clients=2)) == [[0, 1], [2, 3]]
    assert steps == [("partition", 0, step) for step in range(4)]


def test_dirichlet_gives_up_with_every_key_that_clashes():
    with pytest.raises(ValueError) as error:
        deal("dirichlet", [0] * 8, num_clients=4, alpha=1e-3)
    for word in ("clients.count=4", "data.partition=dirichlet", "data.alpha=0.001", "100 draws"):
        assert word in str(error.value)
    assert "data.max_train" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind, num_clients, most", [("iid", 5, 4), ("dirichlet", 5, 4), ("group", 4, 3), ("iid", 0, 4)]
)
def test_too_many_clients_name_the_largest_number(kind, num_clients, most):
    expected = rf"clients\.count must be between 1 and {most} when .*\(got {num_clients}\)"
    with pytest.raises(ValueError, match=expected):
        deal(kind, [0] * 9, [0, 0, 0, 1, 1, 1, 2, 2, 2], num_clients=num_clients)


def test_group_client_with_one_sample_is_refused():
    with pytest.raises(
        ValueError, match=r"clients\.count=2 with .*=group leaves client 1 with 1 of"
    ):
        deal("group", [0] * 4, [0, 0, 0, 1], num_clients=2)


def test_unknown_kind_and_alpha_name_key_value_and_allowed():
    with pytest.raises(ValueError, match="data.partition must be 'iid', 'group', .* .got 'random'"):
        deal("random", [0] * 4, num_clients=2)
    with pytest.raises(ValueError, match=r"data\.alpha must be a finite number.* \(got 0\)"):
        deal("dirichlet", [0] * 4, num_clients=2, alpha=0)
    with pytest.raises(ValueError, match=r"data\.alpha must be a finite number.* \(got inf\)"):
        deal("dirichlet", [0] * 4, num_clients=2, alpha=float("inf"))


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["iid", "group", "dirichlet", "shards", "quantity"]),
    num_clients=st.integers(1, 6),
    labels=st.lists(st.integers(0, 4), min_size=60, max_size=150),
    seed=SEEDS,
    sort=st.booleans(),
)
def test_parts_are_disjoint_and_complete(kind, num_clients, labels, seed, sort):
    group = np.arange(len(labels)) // 5
    parts = deal(
        kind, labels, group, num_clients=num_clients, alpha=5, sort_by_size=sort, seed=seed
    )
    dealt = np.concatenate(parts)
    expected = len(labels) // num_clients * num_clients if kind == "iid" else len(labels)
    assert len(parts) == num_clients
    assert min(map(len, parts)) >= 2
    assert len(dealt) == len(set(dealt.tolist())) == expected
    assert set(dealt.tolist()) <= set(range(len(labels)))
    if kind in ("dirichlet", "quantity") and sort:
        assert [len(part) for part in parts] == sorted(len(part) for part in parts)


def test_the_seed_decides_and_nothing_else():
    y = np.arange(100) % 10
    for kind in ("iid", "dirichlet", "shards"):
        first, again = (deal(kind, y, num_clients=4, seed=1) for _ in range(2))
        other = deal(kind, y, num_clients=4, seed=2)
        assert as_lists(first) == as_lists(again) != as_lists(other)


# validation


def test_validation_takes_the_rounded_up_share_and_leaves_one_to_train():
    parts = [np.arange(n, dtype=np.int64) for n in (1, 2, 10, 11, 70)]
    train, val = cut_validation(parts, frac=0.1, seed=0)
    assert [len(part) for part in val] == [0, 1, 1, 2, 7]
    assert [len(part) for part in train] == [1, 1, 9, 9, 63]


def test_the_least_share_is_one_sample_and_none_is_none():
    parts = [np.arange(7), np.arange(1)]
    assert [len(val) for val in cut_validation(parts, frac=1e-17, seed=0)[1]] == [1, 0]
    assert [len(val) for val in cut_validation(parts, frac=0.0, seed=0)[1]] == [0, 0]


def test_validation_share_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"data\.validation_frac must be .* less than 1 \(got 1\)"):
        cut_validation([np.arange(4)], frac=1, seed=0)


@settings(deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.floats(0, 0.99), SEEDS)
def test_validation_and_training_are_disjoint_and_lose_nothing(sizes, frac, seed):
    parts = np.split(np.random.default_rng(1).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    train, val = cut_validation(parts, frac=frac, seed=seed)
    for part, kept, held in zip(parts, train, val, strict=True):
        assert len(kept) >= 1
        assert sorted([*kept, *held]) == sorted(part)


def test_a_clients_cut_does_not_depend_on_the_other_clients():
    a, b = np.arange(30), np.arange(30, 80)
    both, alone = cut_validation([a, b], frac=0.2, seed=3), cut_validation([a], frac=0.2, seed=3)
    assert both[1][0].tolist() == alone[1][0].tolist()


# batches


@settings(deadline=None)
@given(num=st.integers(1, 40), batch=st.integers(1, 50), epochs=st.integers(1, 4), seed=SEEDS)
def test_every_local_epoch_covers_each_sample_exactly_once(num, batch, epochs, seed):
    steps = -(-num * epochs // batch)
    row = [batch_indices(num, batch=batch, step=s, seed=seed, client=2) for s in range(steps)]
    assert all(len(piece) == batch for piece in row)
    stream = np.concatenate(row)
    for epoch in range(epochs):
        assert sorted(stream[epoch * num : (epoch + 1) * num]) == list(range(num))


def test_a_batch_over_an_epochs_end_joins_two_permutations():
    def at(step, batch):
        return batch_indices(5, batch=batch, step=step, seed=0, client=0).tolist()

    assert at(0, 4) + at(1, 4) + at(2, 4) == at(0, 12) == at(0, 6) + at(1, 6)


def test_steps_are_stateless_and_differ_by_client_epoch_and_seed():
    def at(step=0, seed=0, client=0):
        return batch_indices(100, batch=100, step=step, seed=seed, client=client).tolist()

    later, first = at(step=7), at()
    order._epoch_order.cache_clear()
    assert (at(step=7), at()) == (later, first)
    assert len({tuple(order) for order in (first, later, at(seed=1), at(client=1))}) == 4


def test_a_batch_may_be_changed_without_touching_the_next_call():
    batch_indices(6, batch=6, step=0, seed=0, client=0)[:] = 0
    assert sorted(batch_indices(6, batch=6, step=0, seed=0, client=0)) == [0, 1, 2, 3, 4, 5]


def test_batches_of_nothing_are_refused():
    with pytest.raises(ValueError, match="samples and batch must be at least 1 .got 0 and 4"):
        batch_indices(0, batch=4, step=0, seed=0, client=0)


def test_class_counts_are_per_client_and_class():
    parts = [np.array([0, 1, 2]), np.array([3]), np.array([], np.int64)]
    counts = class_counts(parts, np.array([2, 0, 2, 1]), 4)
    assert counts.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
