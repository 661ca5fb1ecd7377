"""Attempts at a transfer: one loss counts once, and what comes late changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedgmr_hpc.config.errors import WireError
from fedgmr_hpc.config.sections import WireConfig
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.network.faults import FaultPlan
from fedgmr_hpc.network.fluid import Listener
from fedgmr_hpc.network.links import Broadcast
from fedgmr_hpc.network.throttle import Moved
from fedgmr_hpc.runtime.timeline import Tracer
from fedgmr_hpc.runtime.wall import transfers
from fedgmr_hpc.runtime.wall.transfers import Cycle, Transfers
from fedgmr_hpc.runtime.wall.worker import LiveWorker, _Download
from fedgmr_hpc.transport.contract import Message, Tag
from fedgmr_hpc.wire.pieces import SIZE, Incoming, Mark, Outgoing, read_mark

CLIENT, RANK, NUMBER = 4, 1, 9
TASK = Assignment(CLIENT, 0, 0, 0, 1.0, 10, 0, 0.1, False)
DISPATCH = b"0123456789"
NUM_BYTES = 500  # that its link carries for it, as with `links.size: nominal`


class Sent:
    """A transport of two ranks that keeps what is sent."""

    size = 2

    def __init__(self) -> None:
        self.messages: list[tuple[Tag, Mark, bytes]] = []

    def send(self, dest: int, tag: Tag, *parts: bytes) -> None:
        data = b"".join(parts)
        self.messages.append((tag, read_mark(memoryview(data)), data[SIZE:]))


class Clock:
    """A clock at 5 s that keeps what is dispatched and whose transfers are given up."""

    def __init__(self) -> None:
        self.broadcasts: list[Broadcast] = []
        self.given_up: list[int] = []

    def now_s(self) -> float:
        return 5.0

    def broadcast(self, at_s: float, broadcast: Broadcast) -> None:
        self.broadcasts.append(broadcast)

    def expect_upload(self, client: int, num_bytes: int) -> None:
        self.given_up.append(client)

    def offer(self, client: int) -> None:
        pass


@pytest.fixture
def bench() -> SimpleNamespace:
    """Transfers whose links are moved by hand, with one dispatch that is under way."""
    bench = SimpleNamespace(sent=Sent(), clock=Clock(), rows=[], updates=[], damaged=False)

    def deliver(cycle: Cycle, message: Message, now_s: float) -> None:
        if bench.damaged:
            raise WireError("damaged")
        bench.updates.append(bytes(message.payload))

    bench.transfers = Transfers(
        WireConfig(max_resends=3),
        FaultPlan((), seed=0),
        bench.sent,
        bench.clock,
        {CLIENT: RANK},
        upload_bytes=lambda task: len(DISPATCH),
        record=bench.rows.append,
        deliver=deliver,
    )
    bench.cycle = Cycle(TASK, NUMBER, Outgoing([memoryview(DISPATCH)]), 0.0)
    bench.transfers.cycles[CLIENT] = bench.cycle
    bench.transfers.broadcast(0.0, Broadcast(10, (Listener(CLIENT, 0, 10, NUM_BYTES),), {}))
    bench.clock.broadcasts.clear()
    let_through(bench, "down")
    return bench


class Time:
    """What the transfers take for `time`; it stands still but for `pass_s`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s

    def pass_s(self, bench: SimpleNamespace, seconds: float) -> None:
        """Let time pass while the server looks at all times."""
        for _ in range(int(seconds / 0.125)):
            self.now_s += 0.125
            bench.transfers.look()
            bench.transfers.move(Moved(5.0))


@pytest.fixture
def clock_time(monkeypatch: pytest.MonkeyPatch) -> Time:
    passing = Time()
    monkeypatch.setattr(transfers, "time", passing)
    return passing


def let_through(bench: SimpleNamespace, direction: str) -> None:
    key = (CLIENT, direction)
    bench.transfers.move(Moved(5.0, began={key: 4.0}, finished={key: 4.5}))


def tell(bench: SimpleNamespace, tag: Tag, attempt: int, piece: bytes = b"") -> None:
    mark = Mark(CLIENT, NUMBER, 0, len(DISPATCH), attempt)
    bench.transfers.take(Message(RANK, tag, memoryview(mark.pack() + piece)))


def pieces(sent: Sent) -> list[tuple[int, bytes]]:
    """(attempt, bytes) of every piece."""
    return [(mark.attempt, piece) for tag, mark, piece in sent.messages if tag == Tag.PIECE]


def test_a_dispatch_is_sent_again_as_the_next_attempt(bench):
    assert pieces(bench.sent) == [(0, DISPATCH)]
    tell(bench, Tag.RETRY, 0)
    (again,) = bench.clock.broadcasts
    assert again == Broadcast(NUM_BYTES, (Listener(CLIENT, 0, NUM_BYTES, NUM_BYTES),), {})
    let_through(bench, "down")
    assert pieces(bench.sent) == [(0, DISPATCH), (1, DISPATCH)]


def test_a_loss_that_is_told_twice_is_counted_once(bench):
    tell(bench, Tag.RETRY, 0)
    tell(bench, Tag.RETRY, 0)  # before the next attempt has begun
    let_through(bench, "down")
    tell(bench, Tag.RETRY, 0)  # and after
    assert bench.cycle.num_resent == len(bench.clock.broadcasts) == 1
    tell(bench, Tag.RETRY, 1)
    assert bench.cycle.num_resent == len(bench.clock.broadcasts) == 2


def test_every_attempt_that_is_lost_counts_up_to_the_limit(bench):
    for attempt in range(3):
        tell(bench, Tag.RETRY, attempt)
    with pytest.raises(WireError, match="its dispatch came damaged; sent 4 times"):
        tell(bench, Tag.RETRY, 3)


def test_a_transfer_that_is_late_is_sent_again(clock_time, bench):
    clock_time.pass_s(bench, 2.0)
    assert bench.clock.broadcasts == []
    clock_time.pass_s(bench, 0.25)
    assert len(bench.clock.broadcasts) == 1


def test_what_came_while_the_server_did_something_else_is_not_late(clock_time, bench):
    clock_time.now_s += 60.0  # a merge, or a checkpoint
    bench.transfers.look()
    bench.transfers.move(Moved(5.0))
    assert bench.clock.broadcasts == [] and bench.transfers.patience_s < 1001
    clock_time.pass_s(bench, 2.25)
    assert len(bench.clock.broadcasts) == 1


def test_the_answers_of_a_rank_that_wakes_up_get_as_long_once_more(clock_time, bench):
    for _ in range(3):
        clock_time.pass_s(bench, 2.25)
        let_through(bench, "down")
    clock_time.pass_s(bench, 20.0)
    assert bench.cycle.num_resent == 3  # its rank may be dead, so the run does not fail
    bench.transfers.hear(RANK)  # an answer of another client
    clock_time.pass_s(bench, 2.0)
    with pytest.raises(WireError, match="nothing came of a transfer for 2.1 s; sent 4 times"):
        clock_time.pass_s(bench, 0.25)


def test_a_late_answer_gives_up_the_attempt_that_it_makes_needless(bench):
    tell(bench, Tag.RETRY, 0)
    key = (CLIENT, "down")
    bench.transfers.move(Moved(5.0, began={key: 4.9}))
    bench.clock.given_up.clear()
    tell(bench, Tag.GOT, 0)
    assert bench.clock.given_up == [CLIENT]
    (row,) = bench.rows
    assert row.achieved_bytes_per_s == 10  # from 4 s, when the first attempt began, to 5 s
    assert row.queue_wait_s == 0.0


def test_a_rank_that_is_being_sent_something_again_owes_nothing(bench):
    tell(bench, Tag.RETRY, 0)
    assert not bench.cycle.is_owed
    let_through(bench, "down")
    assert bench.cycle.is_owed


def test_a_dispatch_that_is_there_is_not_sent_again(bench):
    tell(bench, Tag.GOT, 0)
    tell(bench, Tag.RETRY, 0)
    assert bench.clock.broadcasts == [] and [row.num_resent for row in bench.rows] == [0]


def test_a_damaged_update_is_asked_for_once_and_late_pieces_of_it_are_ignored(bench):
    tell(bench, Tag.GOT, 0)
    tell(bench, Tag.OFFER, 0)
    bench.damaged = True
    tell(bench, Tag.PIECE, 0, b"abcdefghij")
    asked = [mark for tag, mark, _ in bench.sent.messages if tag == Tag.RETRY]
    assert asked == [Mark(CLIENT, NUMBER, 0, 10, attempt=1)]
    bench.damaged = False
    tell(bench, Tag.OFFER, 0)
    tell(bench, Tag.PIECE, 0, b"?" * 10)
    assert bench.updates == [] and bench.cycle.num_resent == 1
    tell(bench, Tag.PIECE, 1, b"abcdefghij")
    assert bench.updates == [b"abcdefghij"] and CLIENT not in bench.transfers.cycles
    assert [(row.is_upload, row.num_resent) for row in bench.rows] == [(0, 0), (1, 1)]


def test_an_update_that_came_with_its_offer_waits_for_its_links(bench):
    tell(bench, Tag.GOT, 0)
    tell(bench, Tag.OFFER, 0, b"abcdefghij")
    bench.transfers.move(Moved(5.0, frac={(CLIENT, "up"): 0.9}))
    assert bench.updates == []
    let_through(bench, "up")
    assert bench.updates == [b"abcdefghij"]


# --- the client rank's end


def make_worker(num_bytes: int) -> tuple[LiveWorker, Sent]:
    """A client rank that waits for a dispatch of one frame."""
    worker, sent = LiveWorker.__new__(LiveWorker), Sent()
    worker.transport, worker.tracer, worker.run_id = sent, Tracer(False), 0
    worker.downloads = {CLIENT: _Download(TASK, NUMBER, [num_bytes], Incoming(num_bytes))}
    return worker, sent


def put(worker: LiveWorker, begin: int, piece: bytes, attempt: int) -> None:
    mark = Mark(CLIENT, NUMBER, begin, begin + len(piece), attempt)
    worker._take_piece(mark, memoryview(piece))


def test_a_damaged_dispatch_that_comes_twice_is_asked_for_once():
    worker, sent = make_worker(4)
    put(worker, 0, b"junk", 0)
    put(worker, 0, b"junk", 0)
    assert [(tag, mark.attempt) for tag, mark, _ in sent.messages] == [(Tag.RETRY, 0)]
    put(worker, 0, b"junk", 1)
    assert [mark.attempt for _, mark, _ in sent.messages] == [0, 1]


def test_an_attempt_that_the_server_gave_up_is_begun_anew():
    worker, sent = make_worker(4)
    put(worker, 0, b"xx", 0)
    put(worker, 0, b"a", 1)  # other cuts
    assert worker.downloads[CLIENT].payload.buffer[:1].tobytes() == b"a"
    put(worker, 2, b"xx", 0)
    assert worker.downloads[CLIENT].payload.filled == 1 and sent.messages == []
    put(worker, 2, b"cd", 1)  # a byte is missing
    assert [(tag, mark.attempt) for tag, mark, _ in sent.messages] == [(Tag.RETRY, 1)]
