"""When a window closes, what a round is, and who is still waited for (docs/method.md#admission)."""

from __future__ import annotations

import pytest

from fedgmr_hpc.config.axes import AdmissionConfig
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.fl.admission import Admission

HIGH = (1.0, 0.5, 0.2, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05)
LOW = (1.0, 1.0, 0.5, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05)


@pytest.mark.parametrize(
    ("shares", "pacing"),
    [
        (HIGH, {0}),
        (LOW, {0, 1}),
        ((0.05,), {0}),  # never fewer than one
        ((0.1, 0.5, 0.2, 0.5), {1, 3}),  # the greatest share, whatever it is and whoever has it
        ((0.05,) * 7, set(range(7))),
    ],
)
def test_a_window_is_paced_by_the_greatest_share(shares, pacing):
    assert pacing_clients("window", shares) == pacing


def pacing_clients(kind, shares, taking=None) -> set[int]:
    window = Admission(AdmissionConfig(kind=kind), shares)
    window.open(taking)
    return window.awaited


def test_a_barrier_is_paced_by_everybody():
    assert pacing_clients("barrier", HIGH) == set(range(10))


def test_only_a_window_has_slack():
    close_s = {
        kind: Admission(AdmissionConfig(kind=kind), (1.0,)).close_s(3.0, {0})
        for kind in ("window", "barrier", "count", "each")
    }
    assert close_s == {"window": 3.5, "barrier": 3.0, "count": 3.0, "each": 3.0}


def test_a_window_is_paced_by_the_greatest_share_that_is_left():
    assert pacing_clients("window", HIGH, {1, 2, 3}) == {1}
    assert pacing_clients("window", LOW, {1, 4, 5}) == {1}
    assert pacing_clients("window", HIGH, {5, 8}) == {5, 8}
    assert pacing_clients("barrier", HIGH, {2, 7}) == {2, 7}


# --- the open window: arrivals in, closing time out


def admission(shares=(1.0, 0.5, 0.5), **choices) -> Admission:
    return Admission(AdmissionConfig(**choices), shares)


@pytest.mark.parametrize(
    ("choices", "arrived", "close_s"),
    [
        ({}, {1, 2}, None),
        ({}, {0}, 7.5),
        ({"slack_s": 2.0}, {0, 2}, 9.0),
        ({"kind": "barrier"}, {0, 1}, None),
        ({"kind": "barrier"}, {0, 1, 2}, 7.0),
        ({"kind": "count", "count": 2}, {2}, None),
        ({"kind": "count", "count": 2}, {2, 1}, 7.0),
        ({"kind": "each"}, {2}, 7.0),
    ],
)
def test_a_window_closes_when_what_it_waits_for_is_there(choices, arrived, close_s):
    assert admission(**choices).close_s(7.0, arrived) == close_s


@pytest.mark.parametrize("kind", ["window", "barrier", "each"])
def test_a_window_is_told_to_close_once(kind):
    window = admission((1.0, 1.0), kind=kind)
    assert window.close_s(7.0, {0, 1}) is not None
    assert window.close_s(7.1, {0, 1}) is None
    window.merge(2)
    assert window.close_s(9.0, {0, 1}) is not None


# --- rounds


@pytest.mark.parametrize("kind", ["window", "barrier"])
def test_a_merge_is_a_round(kind):
    window = admission(kind=kind)
    for number in range(1, 4):
        window.merge(1)
        assert window.round == number


@pytest.mark.parametrize(
    ("choices", "merges", "rounds"),
    [
        ({"kind": "each"}, [1] * 7, [0, 0, 1, 1, 1, 2, 2]),
        ({"kind": "count", "count": 2}, [2] * 4, [0, 1, 2, 2]),  # 2 4 6 8 of 3 clients
        ({"kind": "count", "count": 2}, [3, 2, 3, 1], [1, 1, 2, 3]),
    ],
)
def test_as_many_updates_as_clients_are_a_round(choices, merges, rounds):
    window, found = admission(**choices), []
    for num_updates in merges:
        window.merge(num_updates)
        found.append(window.round)
    assert found == rounds


def test_a_round_needs_fewer_updates_when_clients_have_gone_and_none_is_undone():
    window = admission((1.0,) * 4, kind="each")
    for _ in range(7):
        window.merge(1)  # one round, and 3 of 4 updates
    window.lose([0], set())
    assert window.round == 1
    window.merge(1)  # 4 updates are a round of 3, and 1 of the next
    assert window.round == 2
    window.merge(1)
    window.merge(1)
    assert window.round == 3


def test_many_clients_going_at_once_can_end_several_rounds_with_one_merge():
    window = admission((1.0,) * 6, kind="each")
    for _ in range(5):
        window.merge(1)
    window.lose([0, 1, 2, 3], set())
    window.merge(1)  # 6 updates of 2 clients
    assert window.round == 3


# --- clients that are gone


def test_a_window_that_waited_only_for_the_gone_closes_with_what_is_there():
    window = admission()
    assert window.close_s(6.0, {1}) is None
    window.lose([0], {1})
    assert window.close_s(7.0, {1}) == 7.5
    window.merge(1)
    assert window.awaited == {1, 2}


def test_a_window_without_arrivals_is_paced_by_those_who_are_left():
    window = admission((1.0, 0.5, 0.5, 0.1))
    window.lose([0], set())
    assert window.close_s(7.0, set()) is None
    assert window.awaited == {1, 2}
    assert window.close_s(8.0, {1, 3}) is None
    assert window.close_s(9.0, {1, 2, 3}) == 9.5


def test_a_window_goes_on_waiting_for_the_pacing_clients_that_are_left():
    window = admission((1.0, 1.0, 0.5))
    window.lose([0], {2})
    assert window.close_s(7.0, {2}) is None
    assert window.close_s(8.0, {1, 2}) == 8.5


def test_a_barrier_waits_for_everybody_who_is_left():
    window = admission(kind="barrier")
    window.lose([1], {0})
    assert window.close_s(7.0, {0}) is None
    assert window.close_s(8.0, {0, 2}) == 8.0


def test_a_count_is_at_most_the_number_of_clients_left():
    choices = AdmissionConfig(kind="count", count=3)
    window = Admission(choices, (1.0, 0.5, 0.5), is_buffered=True)
    window.lose([0], {1})
    assert window.close_s(7.0, {1}) is None
    window.lose([2], {1})
    assert window.close_s(8.0, {1}) == 8.0


# --- what the configuration refuses


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        (
            {"kind": "count"},
            "between 1 and 3 when admission.kind is 'count' and clients.count is 3 (got null)",
        ),
        (
            {"kind": "count", "count": 4},
            "between 1 and 3 when admission.kind is 'count' and clients.count is 3 (got 4)",
        ),
        ({"kind": "each", "count": 2}, "null when admission.kind is 'each' (got 2)"),
        ({"kind": "window", "count": 1}, "null when admission.kind is 'window' (got 1)"),
    ],
)
def test_a_count_goes_with_its_kind_and_the_number_of_clients(choices, line):
    with pytest.raises(ValueError) as error:
        make_config({"clients": {"count": 3}, "admission": choices})
    assert str(error.value) == f"admission.count must be {line}"


@pytest.mark.parametrize("count", [1, 3])
def test_a_count_up_to_the_number_of_clients_is_taken(count):
    config = make_config({"clients": {"count": 3}, "admission": {"kind": "count", "count": count}})
    assert config.admission.count == count


# --- clients that take part, of those there are


def test_a_window_is_paced_by_the_fastest_who_take_part():
    window = admission((1.0, 0.5, 0.5, 0.1))
    window.open({1, 2, 3})
    assert window.close_s(7.0, {1, 3}) is None
    assert window.close_s(8.0, {1, 2}) == 8.5


def test_a_barrier_waits_for_those_who_take_part():
    window = admission((1.0, 0.5, 0.5, 0.1), kind="barrier")
    window.open({1, 3})
    assert window.close_s(7.0, {1}) is None
    assert window.close_s(8.0, {1, 3}) == 8.0


@pytest.mark.parametrize(("is_buffered", "close_s"), [(True, 8.0), (False, None)])
def test_a_count_is_at_most_the_number_who_take_part_unless_they_go_on(is_buffered, close_s):
    choices = AdmissionConfig(kind="count", count=3)
    window = Admission(choices, (1.0,) * 5, is_buffered=is_buffered)
    window.open({0, 4})
    assert window.close_s(7.0, {0}) is None
    assert window.close_s(8.0, {0, 4}) == close_s
    assert Admission(choices, (1.0,)).close_s(9.0, {0}, 3) == 9.0


@pytest.mark.parametrize("kind", ["window", "barrier", "each"])
def test_a_window_without_anybody_does_not_close_by_itself(kind):
    window = admission(kind=kind)
    window.open(())
    assert window.awaited == set()
    assert window.close_s(7.0, set()) is None


def test_a_merge_keeps_who_takes_part_until_others_are_chosen():
    window = admission((1.0, 0.5, 0.5), kind="barrier")
    window.open({1, 2})
    window.merge(2)
    assert (window.taking, window.awaited) == ({1, 2}, {1, 2})


def test_a_round_of_updates_is_as_long_as_the_sample_or_those_left():
    config = AdmissionConfig(kind="each")
    window = Admission(config, (1.0,) * 6, sampled=3)
    for _ in range(5):
        window.merge(1)
    assert window.round == 1
    window.merge(1)
    assert window.round == 2
    window.lose([0, 1, 2, 3], set())  # two are left, fewer than the sample
    window.merge(1)
    window.merge(1)
    assert window.round == 3


def test_losing_the_pacing_client_of_a_sample_leaves_the_others_of_it():
    window = admission((1.0, 0.5, 0.2, 0.5))
    window.open({0, 2})
    window.lose([0], set())
    assert (window.awaited, window.active) == ({2}, {1, 2, 3})
    assert window.close_s(9.0, {2}) == 9.5
