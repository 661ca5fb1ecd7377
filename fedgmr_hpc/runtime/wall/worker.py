"""A client rank on the wall clock: transfers go on while clients train.

The main thread looks after messages alone: pieces of dispatches come in, pieces of updates go out
as far as the server grants. A second thread decodes, trains, evaluates and encodes, one job after
the other, evaluations first. So a slow link never keeps another client of this rank from training.

A client-step takes `compute_s x time_scale`, from the last byte of its dispatch on: an update that
is ready earlier waits, one that is ready later has overrun its time and says so.
"""

from __future__ import annotations

import heapq
import itertools
import json
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fedgmr_hpc.config.errors import Stage, TransportError, TransportTimeout, WireError
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.runtime.worker import SERVER_RANK, Worker, report_failure
from fedgmr_hpc.training.sgd import evaluate
from fedgmr_hpc.transport.contract import Message, Tag, Transport
from fedgmr_hpc.wire.frames import Frame, decode_frame
from fedgmr_hpc.wire.pieces import SIZE, Incoming, Mark, Outgoing, read_mark
from fedgmr_hpc.wire.received_model import ReceivedModel

BUSY_LOOK_S, IDLE_LOOK_S = 2e-3, 0.05  # how long a wait for messages lasts with and without work
INLINE_BYTES = 1 << 14  # an update up to this length needs no grant
LEAVE_S = 30.0  # how long the job at hand may take at the end
_LEAVE, _EVALUATE, _TRAIN = range(3)  # order of jobs
_Where = tuple[Stage, int | None, int | None]  # stage, client, version
_NOWHERE: _Where = ("receive", None, None)


@dataclass(slots=True)
class _Download:
    """A dispatch on its way in."""

    task: Assignment
    number: int
    lengths: list[int]  # bytes of each frame
    payload: Incoming
    attempt: int = 0  # the least that can still get through


@dataclass(slots=True)
class _Answer:
    """A trained update on its way out."""

    client: int
    number: int
    payload: Outgoing
    has_overrun: bool
    offered_s: float = 0.0


class LiveWorker(Worker):
    """Serves one rank's clients until the server says stop."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        data: FederatedData,
        run_id: int,
        device: str = "cpu",
    ) -> None:
        super().__init__(config, transport, data, run_id, device)
        self.compute_s = config.links.compute_s * config.time_scale
        self.models: dict[int, ReceivedModel] = {}  # by client
        self.downloads: dict[int, _Download] = {}  # by client
        self.uploads: dict[int, _Answer] = {}  # by client, kept until the next dispatch
        self.num_jobs = itertools.count()
        self.jobs: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]]
        self.jobs = queue.PriorityQueue()
        self.errors: queue.SimpleQueue[tuple[Exception, _Where]] = queue.SimpleQueue()
        self.failed_at: _Where = _NOWHERE
        self.answers: queue.SimpleQueue[tuple[float, _Answer]] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.held: list[tuple[float, int, _Answer]] = []  # by the time they may be offered
        self.heard_s = time.perf_counter()
        self.main_thread = 0

    def run(self) -> None:
        """Serve until STOP; a failure is reported to the server and ends the loop."""
        self.main_thread = threading.get_ident()
        training = threading.Thread(target=self._labour, name="training", daemon=True)
        self._add_job(_EVALUATE, self._warm_up)
        training.start()
        try:
            while self._turn():
                pass
        except Exception as error:
            with suppress(TransportError):  # the server is gone, and has said why
                report_failure(self.transport, error, *self.failed_at)
        self._add_job(_LEAVE, None)
        training.join(LEAVE_S)

    def _turn(self) -> bool:
        """Return one message, if there is one, and whatever has become ready; False after STOP."""
        message = self._next_message()
        if message is not None and message.tag == Tag.STOP:
            self._say_goodbye(message.payload)
            return False
        if message is not None:
            self._take(message)
        self._collect()
        self._offer()
        return True

    def _next_message(self) -> Message | None:
        look_s = BUSY_LOOK_S if self.is_busy else IDLE_LOOK_S
        began_s = time.perf_counter()
        try:
            message = self.transport.recv(look_s)
            self.heard_s = time.perf_counter()
            return message
        except TransportTimeout:
            if began_s - self.heard_s > 2 * self.config.run.timeout_s:
                raise
            return None
        finally:
            self.wait_s += (time.perf_counter() - began_s) * (not self.is_busy)

    def _take(self, message: Message) -> None:
        if message.tag == Tag.TASK:
            self._expect(json.loads(bytes(message.payload)))
        elif message.tag == Tag.PIECE:
            self._take_piece(read_mark(message.payload), message.payload[SIZE:])
        elif message.tag == Tag.GRANT:
            self._send_piece(read_mark(message.payload))
        elif message.tag == Tag.CLOCK:
            self._tell_time()
        elif message.tag == Tag.RETRY:
            self._offer_again(read_mark(message.payload))
        elif message.tag == Tag.FRAME:
            self._add_job(_EVALUATE, partial(self._accept, message))
        elif message.tag == Tag.MASKS:
            self._add_job(_EVALUATE, partial(self._hold_ladder, message.payload))
        elif message.tag == Tag.EVALUATE:
            self._add_job(_EVALUATE, partial(self._evaluate, json.loads(bytes(message.payload))))

    def _expect(self, content: dict[str, Any]) -> None:
        task, lengths = Assignment(**content["task"]), content["lengths"]
        self.downloads[task.client] = _Download(
            task, content["number"], lengths, Incoming(sum(lengths))
        )

    def _take_piece(self, mark: Mark, piece: memoryview) -> None:
        download = self.downloads.get(mark.client)
        if download is None or download.number != mark.number:
            return  # of a transfer that is complete: a duplicate
        if mark.attempt < download.attempt:
            return  # of an attempt that failed
        if mark.attempt > download.attempt:  # the server has given up the one before
            download.payload, download.attempt = Incoming(download.payload.size), mark.attempt
        try:
            download.payload.put(mark, piece)
        except WireError:
            self._ask_again(download)
            return
        if download.payload.is_complete:
            self._finish(download, mark)

    def _finish(self, download: _Download, mark: Mark) -> None:
        arrived_s, view, frames, begin = time.perf_counter(), download.payload.buffer.data, [], 0
        try:
            for length in download.lengths:
                frames.append(self._read_frame(view[begin : begin + length]))
                begin += length
        except WireError:
            self._ask_again(download)
            return
        del self.downloads[mark.client]
        self.uploads.pop(mark.client, None)
        job = partial(self._train_on, download.task, download.number, frames, arrived_s)
        self._add_job(_TRAIN, job)
        self.transport.send(SERVER_RANK, Tag.GOT, mark._replace(begin=0).pack())

    def _read_frame(self, payload: memoryview) -> Frame:
        """Decode in the main thread; stage, client and version are the training thread's."""
        with self.tracer.span("decode"):
            frame = decode_frame(payload)
        if frame.run != self.run_id:
            raise WireError(f"frame of run {frame.run:x}, this is {self.run_id:x}", stage="decode")
        return frame

    def _ask_again(self, download: _Download) -> None:
        """Have a dispatch sent once more that came damaged."""
        size, attempt = download.payload.size, download.attempt
        mark = Mark(download.task.client, download.number, 0, size, attempt)
        download.payload, download.attempt = Incoming(size), attempt + 1
        self.transport.send(SERVER_RANK, Tag.RETRY, mark.pack())

    def _send_piece(self, mark: Mark) -> None:
        answer = self.uploads[mark.client]
        begin = answer.payload.sent
        parts = answer.payload.take(mark.end)
        head = mark._replace(begin=begin).pack()
        self.transport.send(SERVER_RANK, Tag.PIECE, head, *parts)
        if mark.end == answer.payload.size:
            now_s = time.perf_counter()
            self.tracer.add("throttle", answer.offered_s, now_s, mark.client)

    def _offer_again(self, mark: Mark) -> None:
        answer = self.uploads[mark.client]
        answer.payload.rewind()
        self._send_offer(answer)

    def _add_job(self, kind: int, job: Callable[[], None] | None) -> None:
        self.jobs.put((kind, next(self.num_jobs), job))

    def _labour(self) -> None:
        """Run the training thread."""
        while True:
            _, _, job = self.jobs.get()
            if job is None:
                return
            self.stage, self.client, self.version = _NOWHERE
            try:
                job()
            except Exception as error:
                self.errors.put((error, (self.stage, self.client, self.version)))
                return
            self.jobs.task_done()

    def _warm_up(self) -> None:
        """Train and evaluate once on nothing, so that no client pays for first calls."""
        training, train = self.trainings[0], self.config.train
        size = training.layout.num_prunable
        dense = torch.zeros(training.layout.num_weights - size)
        batch = next(iter(self.data.train_batches(0, 0, 1)))
        training.sub_model.load(torch.zeros(size), dense, None, mask_id=-1)
        training.sub_model.train(
            iter([batch] * 2),
            training.loss,
            learning_rate=train.learning_rate,
            sgd=training.sgd,
        )
        evaluate(self.evaluator.net, [batch], training.loss, training.hits)
        training.sub_model.load(torch.zeros(size), dense, None, mask_id=-1)

    def _train_on(
        self, task: Assignment, number: int, frames: list[Frame], arrived_s: float
    ) -> None:
        self.stage, self.client, self.version = "decode", task.client, task.base_version
        model = self.models.setdefault(task.client, ReceivedModel(self.num_prunable))
        for frame in frames:
            model.accept(frame)
        payload = Outgoing(self._encode(self.answer(task, model, lambda: None)))
        ready_s = arrived_s + self.compute_s
        has_overrun = time.perf_counter() > ready_s
        self.answers.put((ready_s, _Answer(task.client, number, payload, has_overrun)))

    def _send_json(self, tag: Tag, content: dict[str, Any]) -> None:
        """Only the main thread sends; the other one leaves what it has here."""
        if threading.get_ident() == self.main_thread:
            super()._send_json(tag, content)
        else:
            self.results.put(content)

    def _collect(self) -> None:
        """Take what the training thread has done."""
        if not self.errors.empty():
            error, self.failed_at = self.errors.get()
            raise error
        while not self.results.empty():
            super()._send_json(Tag.RESULT, self.results.get())
        while not self.answers.empty():
            ready_s, answer = self.answers.get()
            heapq.heappush(self.held, (ready_s, next(self.num_jobs), answer))

    @property
    def is_busy(self) -> bool:
        """Whether there is something that the main thread may have to pass on."""
        is_done = self.results.empty() and self.answers.empty()
        return bool(self.jobs.unfinished_tasks or self.held or not is_done)

    def _offer(self) -> None:
        """Offer the updates whose time has come."""
        while self.held and self.held[0][0] <= time.perf_counter():
            _, _, answer = heapq.heappop(self.held)
            self.uploads[answer.client] = answer
            answer.offered_s = time.perf_counter()
            self._send_offer(answer)

    def _send_offer(self, answer: _Answer) -> None:
        """Take a short update that comes along; the server holds it until its link would have
        carried it.
        """
        size = answer.payload.size
        mark = Mark(answer.client, answer.number, int(answer.has_overrun), size)
        short = answer.payload.take(size) if size <= INLINE_BYTES else []
        self.transport.send(SERVER_RANK, Tag.OFFER, mark.pack(), *short)
