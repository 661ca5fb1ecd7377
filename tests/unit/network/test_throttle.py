"""The wall clock with its hands moved by the test: links of 100 bytes/s down and 50 bytes/s up."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.sections import LinksConfig
from fedgmr_hpc.network import throttle
from fedgmr_hpc.network.fluid import Listener
from fedgmr_hpc.network.links import Arrival, Broadcast, VirtualClock
from fedgmr_hpc.network.throttle import TICK_S, Moved, WallClock

RATES = {
    "client_sigma": 0.0,
    "server_sigma": 0.0,
    "client_down_bytes_per_s": 100.0,
    "client_up_bytes_per_s": 50.0,
    "server_up_bytes_per_s": 1000.0,
    "server_down_bytes_per_s": 1000.0,
}
START_S = 1234.5  # what the machine's clock says when a run begins


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`hand.s` is wall seconds since the start."""
    hand = SimpleNamespace(s=0.0)
    fake = SimpleNamespace(perf_counter=lambda: START_S + hand.s)
    monkeypatch.setattr(throttle, "time", fake)
    return hand


def make_clock(clients=3, time_scale=1.0, rank_of=None, seed=0, **links) -> WallClock:
    rank_of = rank_of or dict.fromkeys(range(clients), 1)
    config = LinksConfig.model_validate({**RATES, **links})
    return WallClock(config, [1.0] * clients, seed, time_scale, rank_of)


def make_broadcast(size=100, upload_bytes=20, clients=(0,)) -> Broadcast:
    """Everybody needs all of it."""
    listeners = tuple(Listener(client, 0, size, size) for client in clients)
    return Broadcast(size, listeners, dict.fromkeys(clients, upload_bytes))


def look(clock: WallClock, hand: SimpleNamespace, s: float) -> Moved:
    hand.s = s
    return clock.advance()


def deliver(clock: WallClock, hand: SimpleNamespace, s: float, *clients: int, size: int) -> None:
    """Dispatches at `s` that take no time; then uploads of `size` bytes may be offered."""
    hand.s = s
    clock.broadcast(s, make_broadcast(0, size, clients))
    moved = look(clock, hand, s + 1e-6)
    assert set(moved.finished) == {(client, "down") for client in clients}


def about(times: dict) -> object:
    return pytest.approx(times, abs=1e-5)


# --- a cycle


def test_a_dispatch_goes_at_the_rate_of_its_link(hand):
    clock = make_clock()
    clock.broadcast(0.0, make_broadcast(100))
    assert look(clock, hand, 0.25).frac == about({(0, "down"): 0.25})
    assert look(clock, hand, 0.5).frac == about({(0, "down"): 0.5})
    moved = look(clock, hand, 1.5)
    assert moved.finished == about({(0, "down"): 1.0})
    assert (moved.frac, moved.now_s) == ({}, 1.5)


def test_the_beginning_of_a_transfer_is_told_once(hand):
    clock = make_clock()
    clock.broadcast(0.0, make_broadcast(100))
    assert look(clock, hand, 0.25).began == {(0, "down"): 0.0}
    assert look(clock, hand, 0.5).began == {}


def test_an_upload_begins_with_its_offer(hand):
    clock = make_clock()
    clock.broadcast(0.0, make_broadcast(100, upload_bytes=20))
    assert look(clock, hand, 2.0).finished == about({(0, "down"): 1.0})
    clock.offer(0)
    moved = look(clock, hand, 2.1)
    assert moved.began == {(0, "up"): 2.0}
    assert moved.frac == about({(0, "up"): 0.25})
    assert look(clock, hand, 3.0).finished == about({(0, "up"): 2.4})


def test_an_offer_can_be_for_later(hand):
    clock = make_clock()
    deliver(clock, hand, 1.0, 0, size=20)
    hand.s = 2.0
    clock.offer(0, delay_s=0.5)
    moved = look(clock, hand, 2.4)
    assert (moved.began, moved.frac) == ({}, {})
    moved = look(clock, hand, 3.0)
    assert moved.began == {(0, "up"): 2.5}
    assert moved.finished == about({(0, "up"): 2.9})


def test_a_dispatch_waits_for_its_time(hand):
    clock = make_clock()
    clock.broadcast(3.0, make_broadcast(100))
    moved = look(clock, hand, 2.9)
    assert (moved.began, moved.frac) == ({}, {})
    moved = look(clock, hand, 3.5)
    assert moved.began == {(0, "down"): 3.0}
    assert moved.frac == about({(0, "down"): 0.5})


def test_a_dispatch_whose_time_is_past_begins_now(hand):
    clock = make_clock()
    hand.s = 4.0
    clock.broadcast(3.0, make_broadcast(100))
    assert look(clock, hand, 6.0).finished == about({(0, "down"): 5.0})


def test_nothing_ends_twice(hand):
    clock = make_clock()
    clock.broadcast(0.0, make_broadcast(100))
    look(clock, hand, 2.0)
    moved = look(clock, hand, 3.0)
    assert moved == Moved(3.0)


def test_latency_delays_both_ways(hand):
    clock = make_clock(latency_s=0.2)
    clock.broadcast(0.0, make_broadcast(100, upload_bytes=20))
    moved = look(clock, hand, 0.1)
    assert (moved.began, moved.frac) == ({}, {})
    moved = look(clock, hand, 0.7)
    assert moved.began == {(0, "down"): 0.2}
    assert moved.frac == about({(0, "down"): 0.5})
    assert look(clock, hand, 2.0).finished == about({(0, "down"): 1.2})
    clock.offer(0)
    moved = look(clock, hand, 3.0)
    assert moved.began == {(0, "up"): 2.2}
    assert moved.finished == about({(0, "up"): 2.6})


# --- sharing


def test_uploads_share_the_servers_link(hand):
    clock = make_clock(server_down_bytes_per_s=60.0)
    deliver(clock, hand, 1.0, 0, 1, size=60)
    hand.s = 2.0
    clock.offer(0)
    clock.offer(1)
    look(clock, hand, 3.0)  # 30 bytes/s each
    clock.expect_upload(1, 60)  # from now on client 0 has all that its own link takes, 50 bytes/s
    assert look(clock, hand, 9.0).finished == about({(0, "up"): 3.6})


def test_clients_of_one_rank_share_its_cap(hand):
    clock = make_clock(3, rank_of={0: 1, 1: 1, 2: 2}, rank_up_bytes_per_s=40.0)
    deliver(clock, hand, 1.0, 0, 1, 2, size=40)
    hand.s = 2.0
    for client in range(3):
        clock.offer(client)
    # 20 bytes/s for each of rank 1, 40 bytes/s for the one of rank 2
    expected = {(2, "up"): 3.0, (0, "up"): 4.0, (1, "up"): 4.0}
    assert look(clock, hand, 9.0).finished == about(expected)


# --- giving up


def test_a_given_up_upload_begins_anew_with_its_new_size(hand):
    clock = make_clock()
    deliver(clock, hand, 1.0, 0, size=100)
    hand.s = 2.0
    clock.offer(0)
    assert look(clock, hand, 3.0).frac == about({(0, "up"): 0.5})
    clock.expect_upload(0, 50)
    assert look(clock, hand, 9.0) == Moved(9.0)
    clock.offer(0)
    assert look(clock, hand, 9.5).frac == about({(0, "up"): 0.5})
    assert look(clock, hand, 11.0).finished == about({(0, "up"): 10.0})


def test_a_given_up_dispatch_leaves_the_others(hand):
    clock = make_clock()
    clock.broadcast(0.0, make_broadcast(100, clients=(0, 1)))
    look(clock, hand, 0.5)
    clock.expect_upload(0, 20)
    assert look(clock, hand, 2.0).finished == about({(1, "down"): 1.0})


def test_a_given_up_dispatch_is_sent_again_to_one_client(hand):
    clock = make_clock()
    clock.broadcast(0.0, make_broadcast(100, clients=(0, 1)))
    look(clock, hand, 0.5)
    clock.expect_upload(0, 20)
    clock.broadcast(0.5, Broadcast(100, (Listener(0, 0, 100, 100),), {}))
    expected = {(1, "down"): 1.0, (0, "down"): 1.5}
    assert look(clock, hand, 2.0).finished == about(expected)
    clock.offer(0)
    assert look(clock, hand, 3.0).finished == about({(0, "up"): 2.4})


def test_a_given_up_dispatch_that_has_not_begun_leaves_the_others(hand):
    clock = make_clock(latency_s=1.0)
    clock.broadcast(0.0, make_broadcast(100, clients=(0, 1)))
    clock.expect_upload(0, 20)
    moved = look(clock, hand, 3.0)
    assert moved.began == {(1, "down"): 1.0}
    assert moved.finished == about({(1, "down"): 2.0})
    clock.offer(0)
    assert look(clock, hand, 9.0).finished == about({(0, "up"): 4.4})


def test_a_given_up_upload_that_has_not_begun_never_does(hand):
    clock = make_clock(latency_s=1.0)
    clock.broadcast(1.0, make_broadcast(0, 20))
    look(clock, hand, 3.0)
    hand.s = 4.0
    clock.offer(0)
    look(clock, hand, 4.5)
    clock.expect_upload(0, 50)
    clock.offer(0)
    moved = look(clock, hand, 9.0)
    assert moved.began == {(0, "up"): 5.5}
    assert moved.finished == about({(0, "up"): 6.5})


def test_giving_up_keeps_what_else_is_due_in_order(hand):
    clock = make_clock()
    deliver(clock, hand, 1.0, 0, size=20)
    clock.offer(0, delay_s=0.5)
    for at_s in (6.0, 3.0, 5.0, 4.0):
        clock.close_at(at_s)
    clock.expect_upload(0, 20)
    assert look(clock, hand, 9.0) == Moved(9.0, closed=[3.0, 4.0, 5.0, 6.0])


# --- windows


def test_a_window_closes_at_its_time_however_late_one_looks(hand):
    clock = make_clock()
    clock.close_at(2.0)
    assert look(clock, hand, 1.99).closed == []
    assert look(clock, hand, 2.0).closed == [2.0]
    assert look(clock, hand, 3.0).closed == []
    clock.close_at(3.5)
    clock.close_at(3.25)
    assert look(clock, hand, 9.0).closed == [3.25, 3.5]


def test_a_window_whose_end_is_past_closes_at_once(hand):
    clock = make_clock()
    look(clock, hand, 5.0)
    clock.close_at(4.0)
    assert look(clock, hand, 5.0).closed == [4.0]


def test_a_window_does_not_disturb_transfers(hand):
    clock = make_clock()
    clock.broadcast(0.0, make_broadcast(100))
    clock.close_at(0.5)
    moved = look(clock, hand, 2.0)
    assert moved.closed == [0.5]
    assert moved.finished == about({(0, "down"): 1.0})


# --- when to look again


def test_an_idle_clock_waits_for_nothing(hand):
    assert math.isinf(make_clock().next_wall_s())


def test_an_idle_clock_waits_for_the_next_event(hand):
    clock = make_clock()
    clock.close_at(5.0)
    hand.s = 2.0
    assert clock.next_wall_s() == pytest.approx(3.0)


def test_what_is_due_is_not_waited_for(hand):
    clock = make_clock()
    clock.close_at(5.0)
    hand.s = 6.0
    assert clock.next_wall_s() == 0.0


def test_while_bytes_flow_one_looks_every_tick(hand):
    clock = make_clock()
    clock.broadcast(0.0, make_broadcast(100))
    look(clock, hand, 0.5)
    assert clock.next_wall_s() == TICK_S
    look(clock, hand, 1.0 - TICK_S / 4)
    assert clock.next_wall_s() == pytest.approx(TICK_S / 4)
    look(clock, hand, 1.5)
    assert math.isinf(clock.next_wall_s())


# --- scaled time


def test_a_scaled_run_is_that_much_faster(hand):
    clock = make_clock(time_scale=0.5)
    clock.broadcast(0.0, make_broadcast(100))
    clock.close_at(2.0)
    moved = look(clock, hand, 0.125)
    assert moved.now_s == clock.now_s() == 0.25
    assert moved.frac == about({(0, "down"): 0.25})
    moved = look(clock, hand, 0.75)
    assert moved.finished == about({(0, "down"): 1.0})
    assert clock.next_wall_s() == pytest.approx(0.25)  # the window ends at 2 s, 1 s of the wall
    assert look(clock, hand, 1.0).closed == [2.0]


# --- one law


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.0, 6.0), max_size=20))
def test_looking_more_often_changes_no_end(times):
    hand = SimpleNamespace(s=0.0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(throttle, "time", SimpleNamespace(perf_counter=lambda: hand.s))
        clock = make_clock(server_up_bytes_per_s=120.0)
        clock.broadcast(0.0, make_broadcast(100, clients=(0,)))
        clock.broadcast(0.5, make_broadcast(60, clients=(1,)))
        finished, fracs = {}, [0.0]
        for s in sorted(times):
            moved = look(clock, hand, s)
            finished |= moved.finished
            fracs += [frac for (client, _), frac in moved.frac.items() if client == 0]
        finished |= look(clock, hand, 10.0).finished
    # The server sends the first stream at 120 bytes/s, from 0.5 s on at 60: its last 40 bytes take
    # 2/3 s, and client 0 has caught up by then. The second has 20 left, its link takes 100.
    first_s = 0.5 + 40 / 60
    assert finished == about({(0, "down"): first_s, (1, "down"): first_s + 20 / 100})
    assert fracs == sorted(fracs)


@pytest.mark.parametrize("seed", [0, 1])
def test_both_clocks_let_an_update_arrive_at_the_same_time(hand, seed):
    links = {"client_sigma": 0.3, "server_sigma": 0.1, "compute_s": 0.5, "latency_s": 0.1}
    broadcast = make_broadcast(100, 20, clients=(0, 1, 2))
    virtual = VirtualClock(LinksConfig.model_validate({**RATES, **links}), [1.0] * 3, seed)
    virtual.broadcast(0.0, broadcast)
    arrivals = [virtual.next() for _ in range(3)]
    assert all(isinstance(arrival, Arrival) for arrival in arrivals)
    expected = {(arrival.client, "up"): arrival.now_s for arrival in arrivals}
    assert len(set(expected.values())) == 3

    clock = make_clock(seed=seed, **links)
    clock.broadcast(0.0, broadcast)
    downloaded = look(clock, hand, 0.1 + 1e-6).finished
    for _ in range(10_000):
        hand.s += 1e-3
        moved = clock.advance()
        for (client, direction), done_s in moved.finished.items():
            downloaded[client, direction] = done_s
            if direction == "down":  # offered as soon as it is trained
                clock.offer(client, delay_s=done_s + 0.5 - hand.s)
    uploaded = {key: done_s for key, done_s in downloaded.items() if key[1] == "up"}
    assert uploaded == pytest.approx(expected, abs=1e-6)
