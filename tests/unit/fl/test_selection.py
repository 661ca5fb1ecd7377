"""Who is sent something next: samples, and clients that come and go."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedgmr_hpc
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.fl.coordinator import Coordinator
from fedgmr_hpc.fl.events import (
    CloseAt,
    Closed,
    Delivered,
    Dispatch,
    Evaluate,
    Evaluated,
    Finish,
    Lost,
    Started,
)
from fedgmr_hpc.fl.selection import Availability, Selection, read_availability
from fedgmr_hpc.fl.submodels import PrunableLayer
from fedgmr_hpc.fl.updates import Update
from fedgmr_hpc.storage.reader import Result, differing_columns, read_result

DAY = Availability({1: [(2.0, 4.0), (7.0, 8.0)], 3: [(0.0, 1.0)]}, 10.0)
ONCE = Availability({1: [(2.0, 4.0), (7.0, 8.0)]})
MPIRUN = Path(sys.executable).with_name("mpirun")
TINY = ("run.max_rounds=12", "run.interval_rounds=3", "train.steps=2", "eval.client_samples=64",
        "data.max_train=600", "data.max_test=200")  # fmt: skip


# --- intervals


@pytest.mark.parametrize(
    ("now_s", "next_s"),
    [
        (0, 2), (2, 2), (3.9, 3.9), (4, 7), (7.5, 7.5), (8, 12), (9.9, 12),
        (10, 12), (12, 12), (14, 17), (17.5, 17.5), (18, 22), (1002.5, 1002.5), (1005, 1007),
    ],
)  # fmt: skip
def test_intervals_are_half_open_and_come_again_with_the_period(now_s, next_s):
    assert DAY.next_s(1, now_s) == next_s


@pytest.mark.parametrize(("now_s", "next_s"), [(0, 2), (5, 7), (7.9, 7.9), (8, math.inf)])
def test_without_a_period_the_last_interval_is_the_last(now_s, next_s):
    assert ONCE.next_s(1, now_s) == next_s


def test_clients_without_intervals_can_always_be_chosen():
    assert [DAY.next_s(0, now_s) for now_s in (0.0, 5.0, 12.5)] == [0.0, 5.0, 12.5]


TIMES = st.integers(0, 300).map(lambda tenths: tenths / 10)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(TIMES, min_size=2, max_size=8, unique=True).filter(lambda t: len(t) % 2 == 0),
    st.floats(0.01, 5.0),
    st.floats(0, 1e5),
)
def test_whoever_waits_until_the_next_time_can_be_chosen_then(ends, gap, now_s):
    ends = sorted(ends)
    spans = list(zip(ends[::2], ends[1::2], strict=True))
    trace = Availability({0: spans}, ends[-1] + gap)
    next_s = trace.next_s(0, now_s)
    assert next_s >= now_s
    for _ in range(2):  # rounding of a period's multiples may need one more look
        next_s = trace.next_s(0, next_s)
    assert trace.next_s(0, next_s) == next_s
    assert next_s - now_s <= trace.period_s + 1e-6


# --- the file


def write(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_file_is_read_in_any_order_with_spaces_and_blank_lines(tmp_path):
    path = write(tmp_path, "client, from_s, to_s", "1,7,8", "", "0, 0.5, 1e1", "1,2,4", "")
    trace = read_availability(path, 2, None)
    assert trace == Availability({1: [(2, 4), (7, 8)], 0: [(0.5, 10)]}, math.inf)


def test_intervals_may_touch_and_may_last(tmp_path):
    path = write(tmp_path, "client,from_s,to_s", "0,0,2", "0,2,inf")
    trace = read_availability(path, 1, 5.0)
    assert [trace.next_s(0, now_s) for now_s in (1.9, 2.0, 4.9, 5.0)] == [1.9, 2.0, 4.9, 5.0]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes("\ufeffclient,from_s,to_s\r\n0,0,2\r\n".encode())
    assert read_availability(str(path), 1, None).next_s(0, 1.0) == 1.0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["client,from,to"], " must begin with the header client,from_s,to_s (got client,from,to)"),
        (["0,1,2"], " must begin with the header client,from_s,to_s (got 0,1,2)"),
        ([""], " must begin with the header client,from_s,to_s (got nothing)"),
        (["client,from_s,to_s", "0,1"], ":2: a row must be client,from_s,to_s (got 0,1)"),
        (["client,from_s,to_s", "0,1,2,3"], ":2: a row must be client,from_s,to_s (got 0,1,2,3)"),
        (["client,from_s,to_s", '"0', '1",1,2'],
         ":2: a row must be client,from_s,to_s (got 0\\n1,1,2)"),
        (["client,from_s,to_s", "0,1,2", "x,1,2"],
         ":3: a row must be client,from_s,to_s (got x,1,2)"),
        (["client,from_s,to_s", "0,1,late"], ":2: a row must be client,from_s,to_s (got 0,1,late)"),
        (["client,from_s,to_s", "3,1,2"], ":2: client must be between 0 and 2 (got 3)"),
        (["client,from_s,to_s", "-1,1,2"], ":2: client must be between 0 and 2 (got -1)"),
        (["client,from_s,to_s", "0,2,2"],
         ":2: from_s and to_s must lie in order between 0 and the period (got 2 to 2)"),
        (["client,from_s,to_s", "0,-1,2"],
         ":2: from_s and to_s must lie in order between 0 and the period (got -1 to 2)"),
        (["client,from_s,to_s", "0,5,11"],
         ":2: from_s and to_s must lie in order between 0 and the period (got 5 to 11)"),
        (["client,from_s,to_s", "0,10,inf"],
         ":2: from_s and to_s must lie in order between 0 and the period (got 10 to inf)"),
        (["client,from_s,to_s", "0,nan,2"],
         ":2: from_s and to_s must lie in order between 0 and the period (got nan to 2)"),
        (["client,from_s,to_s", "", "0,2,1"],
         ":3: from_s and to_s must lie in order between 0 and the period (got 2 to 1)"),
        (["client,from_s,to_s", "1,0,5", "1,4,6"], ": intervals of client 1 overlap"),
    ],
)  # fmt: skip
def test_a_file_that_says_what_cannot_be_is_refused_naming_the_line(tmp_path, lines, said):
    path = write(tmp_path, *lines)
    with pytest.raises(ValueError) as error:
        read_availability(path, 3, 10.0)
    assert str(error.value) == f"clients.availability: {path}{said}"


def test_a_file_that_is_not_there_or_no_text_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="clients.availability: .*nowhere.csv cannot be read"):
        read_availability(str(tmp_path / "nowhere.csv"), 3, None)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="clients.availability: .*bytes.csv cannot be read"):
        read_availability(str(tmp_path / "bytes.csv"), 3, None)


# --- the draw


def selecting(sampled=None, seed=0, availability=None, **clients) -> Selection:
    """Return the selection among 30 clients."""
    section = make_config({"clients": {"count": 30, "sampled": sampled, **clients}}).clients
    return Selection(section, seed, [1.0] * 30, availability)


def choose(selection, idle, num_taking, now_s, version) -> list[int]:
    return selection.choose(idle, num_taking, now_s, 0, [1.0] * 30, (version, 0))


def test_all_idle_and_available_clients_take_part_without_sampling():
    selection = selecting(None, 0, DAY)
    assert choose(selection, [0, 1, 2, 3], 0, 0.5, 0) == [0, 2, 3]
    assert choose(selection, [0, 1, 2, 3], 5, 2.0, 0) == [0, 1, 2]
    assert choose(selection, [1, 3], 0, 5.0, 0) == []


def test_the_sample_is_filled_up_from_the_idle_and_never_over():
    selection = selecting(3)
    assert len(choose(selection, range(10), 0, 0.0, 0)) == 3
    assert len(choose(selection, range(8), 2, 0.0, 0)) == 1
    assert choose(selection, range(7), 3, 0.0, 0) == []
    assert choose(selection, range(7), 4, 0.0, 0) == []
    assert choose(selection, [4, 8], 1, 0.0, 0) == [4, 8]
    assert choose(selection, [], 0, 0.0, 0) == []


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.sets(st.integers(0, 20)), st.integers(0, 12), st.integers(0, 10**6))
def test_a_draw_is_an_ascending_part_of_the_idle(sampled, idle, num_taking, version):
    chosen = choose(selecting(sampled, 3), sorted(idle), num_taking, 0.0, version)
    assert chosen == sorted(set(chosen)) and set(chosen) <= idle
    assert len(chosen) == min(len(idle), max(0, sampled - num_taking))


def test_draws_are_keyed_by_seed_and_version():
    drawn = [choose(selecting(3, seed), range(30), 0, 0.0, version)
             for seed, version in ((0, 0), (0, 0), (0, 1), (1, 0))]  # fmt: skip
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn}) == 3


def test_every_client_is_drawn_equally_often():
    counts, selection = np.zeros(10, int), selecting(3)
    for version in range(2000):
        counts[choose(selection, range(10), 0, 0.0, version)] += 1
    assert np.abs(counts - 600).max() < 5 * math.sqrt(2000 * 0.3 * 0.7)


def test_only_available_clients_are_drawn():
    selection = selecting(1, 0, DAY)
    assert {choose(selection, [1, 3], 0, 0.5, version)[0] for version in range(20)} == {3}


def test_the_next_time_to_look_is_that_of_the_first_who_comes():
    selection = selecting(None, 0, DAY)
    assert selection.wake_s([1, 3], 5.0) == 7.0
    assert selection.wake_s([1, 3], 8.5) == 10.0
    assert selection.wake_s([0, 1], 5.0) == 5.0
    assert selecting(None, 0, ONCE).wake_s([1], 9.0) == math.inf
    assert selection.wake_s([], 1.0) == math.inf


# --- a coordinator that samples, with clients that come and go

LAYERS = [PrunableLayer("a", 0, 6, 1.0)]
WEIGHTS = np.array([6, 5, 4, 3, 2, 1, 10, 20], np.float32)


class Run:
    """A coordinator; its events come as the test orders. Merges take no time."""

    def __init__(self, num_clients=6, availability=None, method="wo_gmr", **sections):
        values = {
            "method": method,
            "clients": {"count": num_clients, "shares": [0.5] * num_clients},
            "run": {"interval_rounds": 1000, "max_rounds": 10_000},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        self.config = make_config(values)
        shares = self.config.clients.bandwidth_shares()
        self.core = Coordinator(self.config, shares, WEIGHTS, LAYERS, availability)
        self.in_flight, self.close_s, self.sent_s = {}, None, []
        self.send(Started(0.0))
        self.send(Evaluated(0.0, 0.0))

    def send(self, event) -> list:
        commands = self.core.handle(event)
        for command in commands:
            if isinstance(command, Dispatch):
                self.in_flight.update({a.client: a for a in command.assignments})
                self.sent_s += [(event.now_s, a.client) for a in command.assignments]
            elif isinstance(command, CloseAt):
                self.close_s = command.at_s
        return commands

    def deliver(self, client: int, now_s: float) -> list:
        task = self.in_flight.pop(client)
        update = Update(client, task.base_version, task.mask_id, task.level, task.density,
                        0.0, float("nan"), 1, values=np.zeros(task.num_kept, np.float32),
                        dense=np.zeros(2, np.float32), grad_squares=None)  # fmt: skip
        return self.send(Delivered(now_s, update))

    def close(self) -> list:
        at_s, self.close_s = self.close_s, None
        return self.send(Closed(at_s, at_s))

    @property
    def taking(self) -> set[int]:
        return set(self.in_flight) | set(self.core.buffer.arrived)


KINDS = [
    {"kind": "window"},
    {"kind": "barrier"},
    {"kind": "each"},
    {"kind": "count", "count": 2},
]


@pytest.mark.parametrize("admission", KINDS, ids=lambda choices: choices["kind"])
def test_never_more_than_the_sample_take_part_and_everybody_does_eventually(admission):
    run = Run(8, clients={"sampled": 3}, admission=admission)
    rng, seen, now_s = np.random.default_rng(0), set(), 0.0
    for _ in range(300):
        assert run.taking == run.core.admission.taking
        assert len(run.taking) == 3
        seen |= run.taking
        if run.close_s is None:
            now_s += 1
            run.deliver(int(rng.choice(sorted(run.in_flight))), now_s)
        else:
            now_s = run.close_s
            run.close()
    assert seen == set(range(8))
    assert run.core.version > 50


COUNTED = {"method": "fedbuff", "admission": {"kind": "count", "count": 2}}


def test_as_many_train_at_any_time_where_clients_go_on_at_once():
    run = Run(8, clients={"sampled": 3}, **COUNTED)
    rng, seen, now_s = np.random.default_rng(0), set(), 0.0
    for _ in range(300):
        assert run.core.admission.taking == set(run.in_flight)
        seen |= set(run.in_flight)
        now_s += 1
        run.deliver(int(rng.choice(sorted(run.in_flight))), now_s)
        if run.close_s is not None:
            assert len(run.in_flight) == 2
            now_s = run.close_s
            run.close()
        assert len(run.in_flight) == 3
    assert seen == set(range(8))
    assert run.core.version == 150


def test_who_is_drawn_at_once_differs_from_update_to_update():
    run = Run(40, clients={"sampled": 8}, method="fedbuff", admission={"kind": "count", "count": 8})
    drawn = []
    for step in range(7):
        (sent,) = run.deliver(min(run.in_flight), float(step))
        drawn += [a.client for a in sent.assignments]
    assert len(set(np.diff(drawn))) > 3  # not the same place in the list each time


def test_a_lost_client_is_replaced_at_once_where_clients_go_on_at_once():
    run = Run(4, clients={"sampled": 2}, **COUNTED)
    gone = min(run.in_flight)
    del run.in_flight[gone]
    (sent,) = run.send(Lost(1.0, (gone,), "gone"))
    assert [a.client for a in sent.assignments][0] not in {gone}
    assert len(run.in_flight) == 2


def test_a_window_is_filled_again_when_who_takes_part_is_lost():
    """Client 1 was away at the start and is back when client 0 goes; client 2's update waits."""
    run = Run(3, Availability({1: [(2.0, 9.0)], 2: [(0.0, 1.0)]}, 10.0), **COUNTED)
    assert set(run.in_flight) == {0, 2}
    run.deliver(2, 1.5)
    del run.in_flight[0]
    (sent,) = run.send(Lost(3.0, (0,), "gone"))
    assert [a.client for a in sent.assignments] == [1]
    assert run.close_s is None


def test_updates_that_nobody_will_add_to_are_merged():
    spans = {client: [(0.0, 5.0)] for client in range(2)}
    run = Run(2, Availability(spans, 10.0), **COUNTED)
    del run.in_flight[1]
    run.send(Lost(1.0, (1,), "gone"))
    assert run.deliver(0, 6.0) == [CloseAt(6.0)]  # it cannot be chosen before 10
    assert run.close()[0].clients == (0,)
    assert run.close_s == 10.0


def test_a_barrier_waits_for_the_sample_only_and_draws_anew():
    run = Run(6, clients={"sampled": 2}, admission={"kind": "barrier"})
    first = set(run.in_flight)
    for client in sorted(first):
        assert run.close_s is None
        run.deliver(client, 1.0)
    run.close()
    assert run.core.round == 1
    samples = [first, set(run.in_flight)]
    for _ in range(20):
        for client in sorted(run.in_flight):
            run.deliver(client, 2.0)
        run.close()
        samples.append(set(run.in_flight))
    assert len({tuple(sorted(sample)) for sample in samples}) > 5


def test_a_round_of_single_updates_is_one_of_every_client_of_the_sample():
    run = Run(6, clients={"sampled": 2}, admission={"kind": "each"})
    rounds = []
    for step in range(6):
        run.deliver(min(run.in_flight), float(step))
        run.close()
        rounds.append(run.core.round)
    assert rounds == [0, 1, 1, 2, 2, 3]


def test_a_slow_client_stays_in_the_sample_until_it_delivers():
    run = Run(6, clients={"sampled": 2}, admission={"kind": "each"})
    slow, other = sorted(run.in_flight)
    for step in range(30):
        run.deliver(other, float(step))
        run.close()
        assert slow in run.in_flight and len(run.in_flight) == 2
        (other,) = set(run.in_flight) - {slow}
    assert run.in_flight[slow].base_version == 0


def test_a_lost_client_makes_room_for_another_one():
    run = Run(4, clients={"sampled": 2}, admission={"kind": "barrier"})
    gone, left = sorted(run.in_flight)
    run.in_flight.pop(gone)
    run.send(Lost(0.5, (gone,), "silent"))
    run.deliver(left, 1.0)
    run.close()
    assert len(run.in_flight) == 2 and gone not in run.in_flight


def test_when_the_whole_sample_is_lost_others_are_drawn_at_once():
    run = Run(4, clients={"sampled": 2}, admission={"kind": "barrier"})
    gone = tuple(sorted(run.in_flight))
    run.in_flight = {}
    assert run.send(Lost(3.0, gone, "silent")) == [CloseAt(3.0)]
    run.close()
    assert set(run.in_flight) == set(range(4)) - set(gone)
    assert run.core.version == 0


def test_with_sampling_the_buffer_holds_as_many_updates_as_take_part():
    """The oldest are evicted beyond the sample size (docs/method.md#buffer)."""
    run = Run(6, clients={"sampled": 2}, admission={"kind": "barrier"})
    for _ in range(10):
        for client in sorted(run.in_flight):
            run.deliver(client, 1.0)
        run.close()
        assert len(run.core.buffer._merged) == 2
    own = Run(6, clients={"sampled": 2}, admission={"kind": "barrier"},
              aggregation={"max_entries": 5})  # fmt: skip
    for _ in range(20):
        for client in sorted(own.in_flight):
            own.deliver(client, 1.0)
        own.close()
    assert len(own.core.buffer._merged) == 5


def test_the_run_wakes_up_when_somebody_comes():
    trace = Availability({c: [(3.0 + c, 6.0 + c)] for c in range(3)}, 20.0)
    run = Run(3, trace, admission={"kind": "barrier"})
    assert (run.in_flight, run.close_s) == ({}, 3.0)
    run.close()
    assert run.sent_s == [(3.0, 0)]
    run.deliver(0, 4.5)
    run.close()
    assert run.sent_s[1:] == [(4.5, 0), (4.5, 1)]
    run.deliver(1, 8.5)
    run.deliver(0, 9.5)  # after its interval: whoever has begun finishes
    assert run.core.version == 1
    commands = run.close()
    assert CloseAt(23.0) in commands and run.in_flight == {}
    assert run.core.version == 2
    run.close()
    assert run.sent_s[-1] == (23.0, 0)
    assert run.core.version == 2  # waking up merges nothing


def test_a_run_whose_clients_never_come_again_ends_with_an_error():
    run = Run(2, Availability({0: [(0.0, 1.0)], 1: [(0.0, 1.0)]}), admission={"kind": "barrier"})
    for client in (0, 1):
        run.deliver(client, 2.0)
    with pytest.raises(RunError, match="no client will be available again"):
        run.close()


@pytest.mark.parametrize(("from_s", "end_s"), [(0.0, 1.0), (5000.0, 6000.0)])
def test_a_run_ends_in_time_where_nobody_comes_before_that(from_s, end_s):
    trace = Availability({client: [(from_s, end_s)] for client in (0, 1)})
    run = Run(2, trace, admission={"kind": "barrier"}, run={"max_time_s": 100.0})
    if from_s == 0:
        for client in (0, 1):
            run.deliver(client, 2.0)
        (merged, _) = run.close()
        assert (merged.version, merged.clients) == (1, (0, 1))
    assert (run.close_s, run.in_flight) == (100.0, {})
    (look,) = run.close()
    assert isinstance(look, Evaluate) and look.version == (from_s == 0)
    (finish,) = run.send(Evaluated(100.0, 0.5))  # the merge has been reported before
    assert isinstance(finish, Finish) and run.core.is_last


@pytest.mark.parametrize("sampled", [None, 2])
@pytest.mark.parametrize("admission", KINDS, ids=lambda choices: choices["kind"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_client_outside_its_intervals_is_never_dispatched(admission, sampled, data):
    spans = {
        client: sorted(
            (20.0 * part + data.draw(st.integers(0, 9)), 20.0 * part + 10)
            for part in range(data.draw(st.integers(1, 2)))
        )
        for client in range(5)
    }
    trace = Availability(spans, 50.0)
    run = Run(5, trace, clients={"sampled": sampled}, admission=admission)
    now_s = 0.0
    for _ in range(40):
        if run.close_s is not None and (not run.in_flight or data.draw(st.booleans())):
            now_s = max(now_s, run.close_s)
            run.close_s = now_s
            run.close()
        elif run.in_flight:
            now_s += data.draw(st.sampled_from([0.0, 0.5, 3.0, 11.0]))
            run.deliver(data.draw(st.sampled_from(sorted(run.in_flight))), now_s)
    assert run.sent_s
    for at_s, client in run.sent_s:
        assert any(begin <= at_s % 50 < end for begin, end in spans[client])


# --- whole runs


@pytest.fixture
def trace_csv(tmp_path) -> str:
    early = [f"{client},3,6" for client in range(5)]
    late = [f"{client},8,9" for client in range(5, 10)]
    return write(tmp_path, "client,from_s,to_s", *early, *late)


def words(trace: str, path: Path) -> tuple[str, ...]:
    return (*TINY, f"clients.availability={trace}", "clients.availability_period_s=10",
            "clients.sampled=3", "progress=quiet", f"results.path={path}")  # fmt: skip


def check_run(result: Result) -> None:
    """Ten seconds a day: clients 0 to 4 check in from 3 to 6, the others from 8 to 9."""
    assert result.status == "finished" and result.merges["version"][-1] == 12
    assert (result.merges["num_merged"] <= 3).all()
    rows = list(zip(result.updates["client"], result.updates["now_s"], strict=True))
    for client, arrived_s in rows:
        begin, end = (3, 6) if client < 5 else (8, 9)
        # a cycle takes .5 s of training and, at these sizes, less than .5 s on the links
        assert 0.5 < (arrived_s - begin) % 10 < end - begin + 1.5
    assert len({client for client, _ in rows}) > 5


def test_digits_with_sampled_clients_that_come_and_go(tmp_path, trace_csv):
    config = fedgmr_hpc.load_config(None, words(trace_csv, tmp_path / "run.h5"))
    check_run(fedgmr_hpc.run(config))


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python")
def test_the_sample_does_not_depend_on_the_ranks(tmp_path, trace_csv):
    alone = words(trace_csv, tmp_path / "alone.h5")
    fedgmr_hpc.run(fedgmr_hpc.load_config(None, alone))
    start = [str(MPIRUN), "-n", "3", sys.executable, "-m", "fedgmr_hpc.launch"]
    subprocess.run([*start, *words(trace_csv, tmp_path / "ranks.h5")], check=True, timeout=300)
    results = [read_result(tmp_path / f"{name}.h5") for name in ("alone", "ranks")]
    assert differing_columns(*results) in ([], ["config"])
    assert np.array_equal(results[0].weights, results[1].weights)


def test_sampling_draws_all_clients_of_a_run(tmp_path):
    choices = [*TINY, "method=fedavg", "clients.sampled=3", "progress=quiet",
               f"results.path={tmp_path / 'run.h5'}"]  # fmt: skip
    result = fedgmr_hpc.run(fedgmr_hpc.load_config(None, choices))
    assert set(result.updates["client"].tolist()) == set(range(10))
    assert (result.merges["num_merged"] == 3).all()


def test_a_dispatch_on_waking_up_leaves_at_that_time(tmp_path):
    path = write(tmp_path, "client,from_s,to_s", *(f"{client},100,200" for client in range(10)))
    shared = [f"clients.availability={path}", "progress=quiet", "run.max_rounds=1"]
    arrivals = []
    for merge_s in (0.0, 5.0):
        file = tmp_path / f"{merge_s}.h5"
        choices = [*shared, f"links.merge_s={merge_s}", f"results.path={file}"]
        result = fedgmr_hpc.run(fedgmr_hpc.load_config(None, TINY, choices))
        arrivals.append(float(result.updates["now_s"].min()))
    assert arrivals[0] == pytest.approx(arrivals[1], abs=1e-9)
