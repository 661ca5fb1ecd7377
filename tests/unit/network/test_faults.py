"""Fault plans: whom they hit, when, how often, and that the same plan hits the same transfers."""

from __future__ import annotations

import pytest

from fedgmr_hpc.config.sections import FaultConfig
from fedgmr_hpc.network.faults import FaultPlan, flip_bit

TRANSFERS = [
    (client, way, number) for client in range(5) for way in ("down", "up") for number in range(100)
]


def make_plan(*faults: dict, seed=0) -> FaultPlan:
    return FaultPlan([FaultConfig.model_validate(fault) for fault in faults], seed)


def hits(plan: FaultPlan, client=0, direction="down", number=1, attempt=0, now_s=0.0) -> set[int]:
    return set(plan.hits(client, direction, number, attempt, now_s))


def hit_transfers(plan: FaultPlan, attempt=0, fault=0) -> list[tuple]:
    return [key for key in TRANSFERS if fault in plan.hits(*key, attempt, 0.0)]


# --- whom


def test_no_faults_hit_nothing():
    assert hits(make_plan()) == set()


def test_a_fault_without_conditions_hits_every_attempt():
    plan = make_plan({"kind": "drop"})
    assert hit_transfers(plan) == hit_transfers(plan, attempt=7) == TRANSFERS


def test_a_fault_of_probability_0_hits_nothing():
    assert hit_transfers(make_plan({"kind": "drop", "probability": 0})) == []


def test_a_fault_hits_its_client_only():
    plan = make_plan({"kind": "drop", "client": 2})
    assert [client for client in range(4) if hits(plan, client)] == [2]


@pytest.mark.parametrize(
    ("direction", "expected"), [("down", ["down"]), ("up", ["up"]), ("both", ["down", "up"])]
)
def test_a_fault_hits_its_direction_only(direction, expected):
    plan = make_plan({"kind": "corrupt", "direction": direction})
    assert [way for way in ("down", "up") if hits(plan, direction=way)] == expected


@pytest.mark.parametrize("kind", ["delay", "drop", "corrupt", "duplicate"])
def test_a_fault_hits_what_begins_in_its_time(kind):
    plan = make_plan({"kind": kind, "at_s": 2, "for_s": 3})
    assert [now_s for now_s in (0.0, 1.99, 2.0, 4.99, 5.0) if hits(plan, now_s=now_s)] == [
        2.0,
        4.99,
    ]


def test_a_cut_concerns_whatever_is_under_way_in_its_time():
    plan = make_plan({"kind": "cut", "at_s": 2, "for_s": 3})
    hit = plan.hits(0, "up", 1, 0, 0.0)  # began before
    held = [plan.is_held(hit, 0.0, now_s) for now_s in (0.0, 1.99, 2.0, 4.99, 5.0)]
    assert held == [False, False, True, True, False]


def test_several_faults_are_told_apart():
    plan = make_plan(
        {"kind": "drop", "client": 0},
        {"kind": "corrupt", "direction": "up"},
        {"kind": "duplicate", "at_s": 1},
    )
    assert hits(plan, 0, "down", now_s=0.0) == {0}
    assert hits(plan, 0, "up", now_s=1.0) == {0, 1, 2}
    assert hits(plan, 1, "up", now_s=0.0) == {1}
    found = plan.hits(1, "up", 1, 0, 1.0)
    kinds = ("delay", "cut", "drop", "corrupt", "duplicate")
    assert [kind for kind in kinds if plan.has(found, kind)] == ["corrupt", "duplicate"]


# --- how often


def test_a_probability_is_the_share_of_transfers_hit():
    assert 240 < len(hit_transfers(make_plan({"kind": "drop", "probability": 0.3}))) < 360


def test_the_same_plan_hits_the_same_transfers():
    fault = {"kind": "drop", "probability": 0.5}
    first, again, other = (make_plan(fault, seed=seed) for seed in (7, 7, 8))
    assert hit_transfers(first) == hit_transfers(again)
    assert hit_transfers(first) == hit_transfers(first)  # asking changes nothing
    assert hit_transfers(first) != hit_transfers(other)


def test_every_attempt_draws_anew():
    plan = make_plan({"kind": "drop", "probability": 0.5})
    first, second = hit_transfers(plan), hit_transfers(plan, attempt=1)
    assert 200 < len(set(first) & set(second)) < 300  # a quarter of 1000


def test_many_attempts_repeat_no_draw_of_another_transfer():
    plan = make_plan({"kind": "drop", "probability": 0.5})

    def course(direction: str, number: int) -> list[bool]:
        return [bool(hits(plan, 0, direction, number, attempt)) for attempt in range(64)]

    courses = [course(way, number) for number in (1, 2) for way in ("down", "up")]
    for index, one in enumerate(courses):
        for shift in range(0, 64, 16):
            assert all(other[shift:] != one[: 64 - shift] for other in courses[:index])
    assert all(16 < sum(one) < 48 for one in courses)


def test_both_directions_draw_independently():
    found = hit_transfers(make_plan({"kind": "drop", "probability": 0.5}))
    down, up = ({(c, n) for c, way, n in found if way == w} for w in ("down", "up"))
    assert 90 < len(down & up) < 160  # a quarter of 500


def test_faults_draw_independently():
    plan = make_plan(*2 * [{"kind": "drop", "probability": 0.5}])
    both = set(hit_transfers(plan)) & set(hit_transfers(plan, fault=1))
    assert 200 < len(both) < 300


def test_one_more_fault_leaves_the_hits_of_the_others():
    fault = {"kind": "drop", "probability": 0.5}
    assert hit_transfers(make_plan(fault)) == hit_transfers(make_plan(fault, {"kind": "cut"}))


# --- holding back


def test_a_delay_holds_a_transfer_from_its_beginning():
    plan = make_plan({"kind": "delay", "delay_s": 1.5})
    hit = plan.hits(0, "down", 1, 0, 10.0)
    assert [plan.is_held(hit, 10.0, now_s) for now_s in (10.0, 11.49, 11.5)] == [True, True, False]


def test_only_faults_that_hit_hold_back():
    plan = make_plan({"kind": "delay", "delay_s": 1.5}, {"kind": "cut", "client": 1})
    assert not plan.is_held(frozenset(), 0.0, 0.0)
    assert not plan.is_held(plan.hits(0, "down", 1, 0, 0.0), 0.0, 2.0)
    assert plan.is_held(plan.hits(1, "down", 1, 0, 0.0), 0.0, 2.0)


@pytest.mark.parametrize("kind", ["drop", "corrupt", "duplicate"])
def test_other_faults_hold_nothing_back(kind):
    plan = make_plan({"kind": kind, "delay_s": 5})
    assert not plan.is_held(plan.hits(0, "down", 1, 0, 0.0), 0.0, 0.0)


# --- damage


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_one_bit_of_the_last_byte_is_turned_over(kind):
    piece = kind(b"\x00\xff\x02")
    assert flip_bit(piece) == b"\x00\xff\x03"
    assert piece == b"\x00\xff\x02"
    assert flip_bit(flip_bit(piece)) == piece
