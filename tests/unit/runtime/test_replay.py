"""The event log: its chain, a replay that follows it, and every way in which a log can be wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.fl.events import Closed, Delivered, Evaluated, Lost, Started
from fedgmr_hpc.fl.updates import Update
from fedgmr_hpc.network.links import Arrival, Broadcast, WindowEnd
from fedgmr_hpc.runtime.replay import EventLog, ReplayClock, check_versions
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.storage.rows import EventRow
from fedgmr_hpc.storage.writer import ResultWriter

CONFIG = make_config({"clients": {"count": 3}})
COLUMNS = [field.name for field in fields(EventRow)]


def delivered(now_s: float, client: int) -> Delivered:
    nothing = np.zeros(0, np.float32)
    update = Update(
        client=client,
        base_version=0,
        mask_id=0,
        level=0,
        density=1.0,
        values=nothing,
        dense=nothing,
        grad_squares=None,
        train_loss=0.5,
        score=float("nan"),
        num_samples=4,
    )
    return Delivered(now_s, update)


EVENTS = [
    delivered(1.5, 2),
    delivered(1.75, 0),
    Closed(2.0, 2.5),
    Evaluated(2.625, 0.5),
    Lost(3.0, (1,), "silent"),
    delivered(3.0, 2),
    Closed(3.5, 4.0),
]


def log_rows(config=CONFIG, events=EVENTS) -> list[EventRow]:
    log = EventLog(config)
    rows = [log.row(event) for event in events]
    assert None not in rows
    return rows


ROWS = log_rows()


def make_result(rows=ROWS, hashes=(), weights=(), versions=None, config=None) -> Result:
    dtypes = {"now_s": "f8", "ready_s": "f8", "chain_xxh3": "u8"}
    columns = zip(*map(astuple, rows), strict=True) if rows else [()] * len(COLUMNS)
    versions = range(0, 5 * len(hashes), 5) if versions is None else versions
    return Result(
        path=Path("run.h5"),
        status="finished",
        config_yaml="",
        config=config or {},
        provenance={},
        merges={},
        evaluations={
            "version": np.array(versions, np.int64),
            "model_xxh3": np.array(hashes, np.uint64),
        },
        updates={},
        events={
            name: np.array(values, dtypes.get(name, "i8"))
            for name, values in zip(COLUMNS, columns, strict=True)
        },
        transfers={},
        ranks={},
        weights=np.array(weights, np.float32),
        layout_json="{}",
    )


def refusal(rows: list[EventRow], config=CONFIG) -> str:
    with pytest.raises(ValueError) as error:
        ReplayClock(config, make_result(rows))
    return str(error.value)


# --- the log


def test_a_row_says_what_the_coordinator_saw():
    assert [astuple(row)[:4] for row in ROWS] == [
        (0, 1.5, 1.5, 2),
        (0, 1.75, 1.75, 0),
        (1, 2.0, 2.5, -1),
        (2, 2.625, 2.625, -1),
        (3, 3.0, 3.0, 1),
        (0, 3.0, 3.0, 2),
        (1, 3.5, 4.0, -1),
    ]


def test_the_start_needs_no_row_and_leaves_the_chain():
    log = EventLog(CONFIG)
    assert log.row(Started(0.0)) is None
    assert [log.row(event) for event in EVENTS] == ROWS


def test_clients_are_lost_one_by_one():
    with pytest.raises(ValueError, match=r"Lost.clients must have one client an event"):
        EventLog(CONFIG).row(Lost(3.0, (1, 2), "silent"))


def test_equal_runs_have_equal_chains():
    assert log_rows() == ROWS
    assert len({row.chain_xxh3 for row in ROWS}) == len(ROWS)


def test_a_chain_covers_every_event_before():
    others = log_rows(events=[delivered(1.5, 1), *EVENTS[1:]])
    assert [row[:4] for row in map(astuple, others[1:])] == [
        row[:4] for row in map(astuple, ROWS[1:])
    ]
    assert not {row.chain_xxh3 for row in others} & {row.chain_xxh3 for row in ROWS}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"method": "fedavg"},
        {"train": {"steps": 6}},
        {"links": {"latency_s": 0.5}},
        {"data": {"alpha": 0.7}},
    ],
)
def test_a_chain_covers_the_configuration(changes):
    config = make_config({"clients": {"count": 3}, **changes})
    assert log_rows(config)[0].chain_xxh3 != ROWS[0].chain_xxh3


@pytest.mark.parametrize(
    "changes",
    [
        {"results": {"path": "elsewhere.h5"}},
        {"progress": "quiet"},
        {"transport": "mpi"},
        {"device": "cpu"},
        {"trace": True},
        {"data": {"root": "/data", "cache": "/scratch"}},
    ],
)
def test_what_changes_no_event_is_no_part_of_a_chain(changes):
    assert log_rows(make_config({"clients": {"count": 3}, **changes})) == ROWS


def test_an_older_log_counts_keys_without_effect_too():
    config = make_config({"clients": {"count": 3}, "time_scale": 0.5})
    assert log_rows(config) == ROWS
    log = EventLog(config, counts_unused=True)
    older = [row for row in map(log.row, EVENTS) if row is not None]
    assert older[0].chain_xxh3 != ROWS[0].chain_xxh3
    assert ReplayClock(config, make_result(older)).next() == Arrival(1.5, 2)
    assert "event 2 of 7 is damaged" in refusal([*older[:2], *ROWS[2:]], config)


# --- the verb


def test_a_run_whose_plug_in_has_moved_is_replayed_with_it(tmp_path: Path) -> None:
    plugin, moved = tmp_path / "moves.py", tmp_path / "new" / "moves.py"
    plugin.write_text("")
    words = ["data.max_train=200", "data.max_test=40", "run.max_rounds=2", "clients.count=2"]
    words += [f"results.path={tmp_path}/run.h5", "progress=quiet"]
    fedgmr_hpc = [sys.executable, "-m", "fedgmr_hpc"]
    subprocess.run([*fedgmr_hpc, "launch", "--plugin", str(plugin), *words], check=True)
    moved.parent.mkdir()
    plugin.rename(moved)
    again = [*fedgmr_hpc, "replay", f"{tmp_path}/run.h5"]
    ran = subprocess.run(again, capture_output=True, text=True)
    assert ran.returncode == 2 and "if it was moved, name it with --plugin FILE" in ran.stderr
    ran = subprocess.run([*again, "--plugin", str(moved)], capture_output=True, text=True)
    assert ran.returncode == 0 and "all the same bit for bit" in ran.stdout, ran.stderr
    moved.write_text("x = 1\n")
    ran = subprocess.run([*again, "--plugin", str(moved)], capture_output=True, text=True)
    assert ran.returncode == 2 and "plugins: moves.py must be the file that the " in ran.stderr
    assert "(got one that has changed since)" in ran.stderr


# --- the replay


def test_a_replay_hands_out_the_events_in_order():
    clock = ReplayClock(CONFIG, make_result())
    assert clock.next() == Arrival(1.5, 2)
    assert clock.next() == Arrival(1.75, 0)
    assert clock.next() == WindowEnd(2.0)
    assert clock.merge_end_s(2.0) == 2.5
    assert clock.validated_s(2.5) == 2.625
    lost = clock.next()
    assert isinstance(lost, Lost) and (lost.now_s, lost.clients) == (3.0, (1,))
    assert clock.next() == Arrival(3.0, 2)
    assert clock.next() == WindowEnd(3.5)
    assert clock.merge_end_s(3.5) == 4.0


def test_what_the_coordinator_wants_changes_no_logged_event():
    clock = ReplayClock(CONFIG, make_result())
    clock.broadcast(0.0, Broadcast(0, (), {}))
    clock.close_at(0.25)
    assert clock.next() == Arrival(1.5, 2)


def test_a_replay_logs_the_same_rows():
    clock, log = ReplayClock(CONFIG, make_result()), EventLog(CONFIG)
    rows = []
    for kind in (Arrival, Arrival, Closed, Evaluated, Lost, Arrival, Closed):
        if kind is Evaluated:
            rows.append(log.row(Evaluated(clock.validated_s(2.5), 0.5)))
            continue
        happened = clock.next()
        if isinstance(happened, Arrival):
            rows.append(log.row(delivered(happened.now_s, happened.client)))
        elif isinstance(happened, WindowEnd):
            rows.append(log.row(Closed(happened.now_s, clock.merge_end_s(happened.now_s))))
        else:
            rows.append(log.row(happened))
    assert rows == ROWS


def test_a_log_is_followed_from_its_file(tmp_path):
    with ResultWriter(
        tmp_path / "run.h5",
        config_yaml="",
        provenance={},
        num_clients=3,
        num_weights=2,
        layout_json="{}",
        num_ranks=1,
    ) as writer:
        for row in ROWS:
            writer.append(row)
    clock = ReplayClock(CONFIG, read_result(tmp_path / "run.h5"))
    assert [clock.next() for _ in range(3)] == [Arrival(1.5, 2), Arrival(1.75, 0), WindowEnd(2.0)]


# --- a log that is wrong


DAMAGE = {
    "kind": [-1, 0, 1, 2, 3, 4, 2**62, -(2**63)],
    "now_s": [0.0, -0.0, -1.0, 1.5000000000000002, 1e300, float("inf"), float("nan")],
    "ready_s": [0.0, -0.0, -1.0, 2.5000000000000004, 1e300, float("inf"), float("nan")],
    "client": [-(2**63), -2, -1, 0, 1, 2, 2**63 - 1],
    "chain_xxh3": [0, 1, 2**64 - 1],
}


@pytest.mark.parametrize("index", range(len(ROWS)))
@pytest.mark.parametrize("name", COLUMNS)
def test_a_damaged_field_is_found_and_its_event_named(index, name):
    row = ROWS[index]
    values = [value for value in DAMAGE[name] if value != getattr(row, name)]
    if name == "chain_xxh3":
        values += [row.chain_xxh3 ^ 1 << bit for bit in range(64)]
    for value in values:
        rows = [*ROWS[:index], replace(row, **{name: value}), *ROWS[index + 1 :]]
        assert refusal(rows) == (
            f"replay run.h5: event {index} of 7 is damaged or belongs to another configuration"
        )


STORED = {
    "kind": st.integers(-(2**63), 2**63 - 1),
    "now_s": st.floats(),
    "ready_s": st.floats(),
    "client": st.integers(-(2**63), 2**63 - 1),
    "chain_xxh3": st.integers(0, 2**64 - 1),
}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(COLUMNS), st.integers(0, len(ROWS) - 1), st.data())
def test_whatever_a_file_can_hold_in_its_place_is_found(name, index, data):
    old = getattr(ROWS[index], name)
    value = data.draw(STORED[name].filter(lambda value: value != old))
    rows = [*ROWS[:index], replace(ROWS[index], **{name: value}), *ROWS[index + 1 :]]
    assert f"event {index} of 7 is damaged" in refusal(rows)


def test_a_zero_that_changed_its_sign_is_found():
    (row,) = log_rows(events=[delivered(0.0, 1)])
    assert "event 0 of 1" in refusal([replace(row, now_s=-0.0)])


@pytest.mark.parametrize("index", range(len(ROWS) - 1))
def test_a_missing_event_is_found(index):
    assert f"event {index} of 6 " in refusal([*ROWS[:index], *ROWS[index + 1 :]])


@pytest.mark.parametrize("index", range(len(ROWS) - 1))
def test_swapped_and_repeated_events_are_found(index):
    first, second = ROWS[index : index + 2]
    assert f"event {index} of 7 " in refusal([*ROWS[:index], second, first, *ROWS[index + 2 :]])
    assert f"event {index + 1} of 8 " in refusal([*ROWS[: index + 1], *ROWS[index:]])


def test_a_log_of_another_configuration_is_refused():
    message = refusal(ROWS, make_config({"clients": {"count": 3}, "seed": 1}))
    assert message.startswith("replay run.h5: event 0 of 7 is damaged or belongs to another")


def test_a_log_without_events_is_refused():
    assert refusal([]) == "replay run.h5: it holds no events"


def test_a_log_that_ends_early_says_after_how_many_events():
    clock = ReplayClock(CONFIG, make_result(ROWS[:2]))
    clock.next()
    clock.next()
    with pytest.raises(RunError, match="the log ends after 2 events, before the run does"):
        clock.next()


def test_a_log_that_ends_before_a_validation_says_so():
    clock = ReplayClock(CONFIG, make_result(ROWS[:3]))
    for _ in range(3):
        clock.next()
    with pytest.raises(RunError, match="the log ends after 3 events"):
        clock.validated_s(2.5)


def test_a_run_that_takes_another_course_than_its_log_is_stopped():
    clock = ReplayClock(CONFIG, make_result())
    with pytest.raises(RunError, match="event 0 of the log is of kind 0"):
        clock.validated_s(0.0)
    for _ in range(3):
        clock.next()
    with pytest.raises(RunError, match="event 3 of the log is of kind 2"):
        clock.next()


# --- the versions


def test_equal_versions_are_reported_in_one_line():
    recorded = make_result(hashes=[2**64 - 1, 7], weights=[1.0, 2.0])
    replayed = make_result(hashes=[2**64 - 1, 7], weights=[1.0, 2.0])
    assert check_versions(recorded, replayed) == (
        "replay of run.h5: 2 evaluated versions, all the same bit for bit"
    )


@pytest.mark.parametrize(
    ("hashes", "version"), [([2, 2, 3], 0), ([1, 9, 9], 5), ([1, 2, 2**63], 10), ([1, 2], 10)]
)
def test_the_first_version_that_differs_is_named(hashes, version):
    with pytest.raises(RunError, match="the replayed model differs") as error:
        check_versions(make_result(hashes=[1, 2, 3]), make_result(hashes=hashes))
    assert error.value.version == version


def test_a_recorded_run_that_broke_off_is_compared_as_far_as_it_goes():
    recorded = make_result(hashes=[1, 2])
    replayed = make_result(hashes=[1, 2, 3], weights=[1.0])
    assert "2 evaluated versions, all the same" in check_versions(recorded, replayed)


@pytest.mark.parametrize(
    ("then", "now"), [([1.0, 2.0], [1.0, 2.0000002]), ([0.0], [-0.0]), ([1.0], []), ([1.0], [1, 1])]
)
def test_final_weights_that_differ_are_an_error(then, now):
    recorded = make_result(hashes=[1, 2], weights=then)
    with pytest.raises(RunError, match="the replayed final weights differ") as error:
        check_versions(recorded, make_result(hashes=[1, 2], weights=now))
    assert error.value.version == 5


def test_weights_that_overflowed_alike_are_the_same():
    broken = make_result(hashes=[1], weights=[float("nan"), float("inf")])
    assert "all the same" in check_versions(broken, broken)


FAST = {"train": {"deterministic": False}}


@pytest.mark.parametrize("now", [[3.0, 4.0], [3.0, 4.2499]])
def test_without_repeatable_algorithms_near_weights_are_enough(now):
    recorded = make_result(hashes=[1], weights=[3.0, 4.0], config=FAST)
    line = check_versions(recorded, make_result(hashes=[2], weights=now))
    assert "of their norm from the recorded ones" in line and "at most 0.05" in line


@pytest.mark.parametrize("now", [[3.0, 4.2501], [3.0], [float("nan"), 4.0]])
def test_weights_that_are_far_are_an_error_even_so(now):
    recorded = make_result(hashes=[1], weights=[3.0, 4.0], config=FAST)
    with pytest.raises(RunError, match="at most 0.05"):
        check_versions(recorded, make_result(hashes=[1], weights=now))


def test_a_run_that_broke_off_without_weights_is_not_compared_nearly():
    recorded = make_result(hashes=[1], config=FAST)
    assert "nothing to compare" in check_versions(recorded, make_result(hashes=[1], weights=[1.0]))
