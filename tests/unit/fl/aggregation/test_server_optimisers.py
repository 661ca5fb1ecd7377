"""Rules that keep moments: FedAvgM and FedAdam by hand, and what they keep across masks."""

from __future__ import annotations

import numpy as np
import pytest

from fedgmr_hpc.config.choices.registry import AGGREGATIONS
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.fl.aggregation import BufferEntry, MeanRule, Merge, RuleState, merge
from fedgmr_hpc.fl.submodels import MaskSet, full_masks


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def updates(*rows, dense=()) -> list[BufferEntry]:
    return [
        BufferEntry(client, 0, floats(*row), None, floats(*dense), 1)
        for client, row in enumerate(rows)
    ]


def walk(rule, start, merges, dense=(), statistics=(None, None)):
    """Merge in turn; return every version and the state."""
    state = RuleState(rule, len(start), len(dense))
    packed, dense, seen = floats(*start), floats(*dense), []
    for entries in merges:
        ones = [1.0] * len(entries)
        new = merge(rule, Merge(packed, dense, entries, ones, statistics=statistics), state)
        packed, dense = new.packed, new.dense
        seen.append(packed.tolist())
    return seen, state


def test_momentum_makes_a_part_of_the_last_step_once_more():
    rule = AGGREGATIONS["momentum"](server_momentum=0.5, server_learning_rate=2.0)
    # means 3, 3: steps 2 and, from 1 + 2 x 2 = 5, -2; velocities 2 and 0.5 x 2 - 2 = -1
    seen, state = walk(rule, [1], [updates([2], [4]), updates([3])])
    assert seen == [[5], [3]]
    assert state.packed["velocity"].tolist() == [-1]


def test_without_momentum_it_is_mask_aware_bit_for_bit():
    rule, plain = AGGREGATIONS["momentum"](server_momentum=0.0), AGGREGATIONS["mask_aware"]()
    merges = [updates([0.5, 2, 4], [0.25]), updates([8, 1])]
    assert walk(rule, [1, 2, 3], merges)[0] == walk(plain, [1, 2, 3], merges)[0]


def test_adam_by_hand():
    rule = AGGREGATIONS["adam"](beta1=0.5, beta2=0.75, tau=1.0, server_learning_rate=3.0)
    # step 4: m = 2, v = 4, W = 0 + 3 x 2 / (2 + 1) = 2; then step 0: m = 1, v = 3
    seen, state = walk(rule, [0], [updates([4]), updates([2])])
    assert seen[0] == [2]
    assert seen[1][0] == pytest.approx(2 + 3 / (np.sqrt(3) + 1), rel=1e-6)
    assert (state.packed["mean_step"][0], state.packed["mean_square"][0]) == (1, 3)


@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("index", [None, [0]])
def test_what_nobody_holds_keeps_its_value_and_its_moments(name, index):
    rule, first = AGGREGATIONS[name](), updates([2, 2])
    at = None if index is None else np.array(index, np.int32)
    later = [BufferEntry(0, 0, floats(3), at, floats(), 1)]
    (one, two), state = walk(rule, [1, 1], [first, later])
    _, before = walk(rule, [1, 1], [first])
    assert one[1] == two[1] and one[0] != two[0]
    for vector in rule.vectors:
        assert state.packed[vector][1] == before.packed[vector][1] != 0
        assert state.packed[vector][0] != before.packed[vector][0]


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_clients_that_change_nothing_leave_a_fresh_server_alone(name):
    old = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    seen, state = walk(AGGREGATIONS[name](), old, [updates(old, old[:20])] * 3)
    assert seen[-1] == old.tolist()
    assert not any(vector.any() for vector in state.packed.values())


def test_running_statistics_take_the_mean():
    rule = AGGREGATIONS["momentum"](server_learning_rate=10.0)
    is_statistic = np.array([False, True])
    entries = updates([2, 2], dense=[2, 2])
    packed = merge(rule, Merge(floats(1, 1), floats(1, 1), entries, [1.0],
                               statistics=(is_statistic, is_statistic)))  # fmt: skip
    assert packed.packed.tolist() == packed.dense.tolist() == [11, 2]
    nobody = updates([], dense=[2, 2])
    kept = merge(rule, Merge(floats(1, 1), floats(1, 1), nobody, [1.0],
                             statistics=(is_statistic, None)))  # fmt: skip
    assert kept.packed.tolist() == [1, 1]


class Counting(MeanRule):
    """Divides each step by the number of merges so far."""

    numbers = {"merges": 0}

    def prepare(self, merge, numbers):
        numbers["merges"] += 1
        return numbers["merges"]

    def step(self, old, mean, part):
        mean.sub_(old).div_(part.prepared).add_(old)


def test_numbers_are_kept_from_merge_to_merge_and_belong_to_one_run():
    seen, state = walk(Counting(), [0], [updates([8]), updates([10])])
    assert seen == [[8], [9]]
    assert state.numbers == {"merges": 2}
    assert Counting.numbers == {"merges": 0}


def test_vectors_follow_the_entries_from_masks_to_masks():
    state = RuleState(AGGREGATIONS["momentum"](), 4, 1)
    state.packed["velocity"][:] = [10, 11, 12, 13]
    state.dense["velocity"][:] = 7
    new = MaskSet(1, (0.5, 1.0), (2, 4), np.array([3, 1, 0, 2], np.int32), 4)
    newer = MaskSet(2, (0.5, 1.0), (2, 4), np.array([2, 0, 3, 1], np.int32), 4)
    state.repack(full_masks(4), new)
    assert state.packed["velocity"].tolist() == [13, 11, 10, 12]
    state.repack(new, newer)
    assert state.packed["velocity"].tolist() == [12, 10, 13, 11]
    assert state.natural("velocity", newer).tolist() == [10, 11, 12, 13, 7]


@pytest.mark.parametrize("index", [None, [0]])
def test_a_step_that_returns_its_result_is_refused(index):
    class Returning(MeanRule):
        def step(self, old, mean, part):
            return (old + mean) / 2

    at = None if index is None else np.array(index, np.int32)
    need = "`step` of Returning must write the new values over `mean` and return nothing"
    with pytest.raises(RunError, match=need):
        walk(Returning(), [1], [[BufferEntry(0, 0, floats(2), at, floats(), 1)]])


class Summing(MeanRule):
    vectors = ("sum",)

    def step(self, old, mean, part):
        part.vectors["sum"] += mean - old


def test_a_vector_that_is_changed_in_place_by_an_operator_is_kept():
    _, state = walk(Summing(), [1], [updates([3]), updates([7])])
    assert state.packed["sum"].tolist() == [(3 - 1) + (7 - 3)]


def test_another_tensor_in_place_of_a_vector_is_refused():
    class Assigning(Summing):
        def step(self, old, mean, part):
            part.vectors["sum"] = part.vectors["sum"] + mean

    with pytest.raises(RunError, match=r"part.vectors\['sum'\] must be changed in place"):
        walk(Assigning(), [1], [updates([3])])
