"""A client rank's I/O loop: receive, decode, train, encode, send.

Messages are served strictly in order: frames of a version, then the tasks that use them, so a rank
holds one version for training and one for evaluation, whatever number of clients it serves. On a
GPU several clients of a version train side by side: their steps are queued, each in a stream of its
own, and answered in the order in which they came. A
failure travels to the server as a value with its stage, client, version and traceback; the server
ends the run.

Shapes: P prunable entries, K kept entries, D dense entries.
"""

from __future__ import annotations

import json
import socket
import struct
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fedgmr_hpc.config.choices.failures import plugin_failure
from fedgmr_hpc.config.choices.registry import AGGREGATIONS
from fedgmr_hpc.config.errors import Failure, RunError, Stage, TransportError, WireError
from fedgmr_hpc.config.records import Floats, shared_fields
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.data.federated import FederatedData, Pool
from fedgmr_hpc.fl.client_memory import Memories, Memory
from fedgmr_hpc.fl.submodels import read_masks
from fedgmr_hpc.fl.updates import Assignment, SubModelKey
from fedgmr_hpc.models.layout import Layout
from fedgmr_hpc.runtime.provenance import rank_software
from fedgmr_hpc.runtime.rank_state import keeps_memories
from fedgmr_hpc.runtime.timeline import Tracer
from fedgmr_hpc.storage.checkpoint import pack_tree, unpack_tree
from fedgmr_hpc.storage.process import resident_bytes
from fedgmr_hpc.training.evaluator import VersionEvaluator
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.sgd import Trained
from fedgmr_hpc.transport.contract import Message, Tag, Transport
from fedgmr_hpc.wire.error_feedback import round_with_feedback
from fedgmr_hpc.wire.frames import Frame, Kind, decode_frame, encode_parts
from fedgmr_hpc.wire.parcels import Parcel, hands_over
from fedgmr_hpc.wire.received_model import ReceivedModel

SERVER_RANK = 0
FLUSH_TIMEOUT_S = 60.0


@dataclass(frozen=True, eq=False)
class _Begun:
    """A task whose steps are taken, or queued on a GPU."""

    task: Assignment
    received: ReceivedModel
    training: LocalTraining
    trained: Trained
    memory: Memory | None
    began_s: float


class Worker:
    """Serves one rank's tasks until the server says stop."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        data: FederatedData,
        run_id: int,
        device: str = "cpu",
    ) -> None:
        self.config, self.transport, self.data, self.run_id = config, transport, data, run_id
        self.device = device
        # from a GPU, entries come in pinned memory, which the server must not hold
        self.hands_over = device == "cpu" and hands_over(config.wire, transport)
        num_side_by_side = config.train.parallel_clients
        self.trainings = [LocalTraining(config, data, device) for _ in range(num_side_by_side)]
        self.begun: deque[_Begun] = deque()
        self.evaluator = VersionEvaluator(config, data, device)
        self.num_prunable = self.trainings[0].layout.num_prunable
        self.received = ReceivedModel(self.num_prunable)
        self.memories = Memories(self.num_prunable) if keeps_memories(config) else None
        self.num_changed = _num_changed(config, self.trainings[0].layout)
        self.eval_version = -1
        self.stage: Stage = "receive"
        self.client: int | None = None
        self.version: int | None = None
        self.num_tasks, self.train_s, self.wait_s = 0, 0.0, 0.0
        self._answered_s = 0.0  # when the last task was answered
        self.tracer = Tracer(config.trace)
        self.exit_code = 0  # with which the server wants this rank to end

    def run(self) -> None:
        """Serve until STOP; a failure is reported to the server and ends the loop."""
        try:
            while self._serve(self._receive()):
                pass
        except Exception as error:
            with suppress(TransportError):  # the server is gone, and has said why
                report_failure(self.transport, error, self.stage, self.client, self.version)

    def _receive(self) -> Message:
        """Return the next message; while none is there, finish what was begun."""
        while self.begun:
            if message := self.transport.recv_now():
                return message
            self._answer_first()
        self.stage, self.client, self.version = "receive", None, None
        began_s = time.perf_counter()
        with self.tracer.span("receive"):
            message = self.transport.recv(2 * self.config.run.timeout_s)
        self.wait_s += time.perf_counter() - began_s
        return message

    def _serve(self, message: Message) -> bool:
        if message.tag == Tag.FRAME:
            self._accept(message)
            return True
        if message.tag == Tag.TASK:
            self._train(Assignment(**json.loads(bytes(message.payload))))
            return True
        self._answer_all()
        if message.tag == Tag.MASKS:
            self._hold_ladder(message.payload)
        elif message.tag == Tag.EVALUATE:
            self._evaluate(json.loads(bytes(message.payload)))
        elif message.tag == Tag.CLOCK:
            self._tell_time()
        elif message.tag == Tag.MEMORIES:
            self._exchange_memories(message.payload)
        elif message.tag == Tag.STOP:
            self._say_goodbye(message.payload)
            return False
        return True  # HELLO only says that the server lives

    def _accept(self, message: Message) -> None:
        frame = self._open(message)
        if frame.kind != Kind.INCREMENT or frame.level == 0:  # whose weights tasks may still need
            self._answer_all()
        if frame.kind == Kind.INCREMENT:
            self.received.accept(frame)
        else:
            self._hold_for_evaluation(frame)

    def _open(self, message: Message) -> Frame:
        self.stage = "decode"
        if isinstance(message.handed, Frame):
            frame = message.handed
        else:
            with self.tracer.span("decode"):
                frame = decode_frame(message.payload)
        self.version = frame.base_version
        if frame.run != self.run_id:
            raise WireError(f"frame of run {frame.run:x}, this is {self.run_id:x}", stage="decode")
        return frame

    def _hold_for_evaluation(self, frame: Frame) -> None:
        self.eval_version = frame.base_version
        self.evaluator.load_version(torch.from_numpy(frame.values), torch.from_numpy(frame.dense))

    def _hold_ladder(self, payload: memoryview) -> None:
        self.stage = "decode"
        self.evaluator.load_ladder(read_masks(unpack_tree(payload)))

    def _train(self, task: Assignment) -> None:
        """Begin a task; finish the first one begun if no more can train side by side."""
        self.begun.append(self._begin_training(task, self.received, self.transport.poll))
        if len(self.begun) == len(self.trainings):
            self._answer_first()

    def _answer_all(self) -> None:
        while self.begun:
            self._answer_first()

    def _answer_first(self) -> None:
        update = self._end_training(self.begun.popleft())
        if self.hands_over:
            Parcel(update).hand(self.transport, SERVER_RANK, Tag.UPDATE)
        else:
            parts = self._encode(update)
            self.stage = "send"
            with self.tracer.span("send", update.client, update.base_version):
                self.transport.send(SERVER_RANK, Tag.UPDATE, *parts)
        self._answered_s = time.perf_counter()

    def _encode(self, update: Frame) -> tuple[memoryview, ...]:
        self.stage = "encode"
        with self.tracer.span("encode", update.client, update.base_version):
            return encode_parts(update)

    def answer(
        self, task: Assignment, received: ReceivedModel, after_step: Callable[[], None]
    ) -> Frame:
        """Train a client's sub-model of the version received; return the update, in new arrays."""
        return self._end_training(self._begin_training(task, received, after_step))

    def _begin_training(
        self, task: Assignment, received: ReceivedModel, after_step: Callable[[], None]
    ) -> _Begun:
        """Load a client's sub-model and train it, or queue that, where no other client trains."""
        self.stage, self.client, self.version = "train", task.client, task.base_version
        began_s = time.perf_counter()
        busy = [each.training for each in self.begun]
        training = next(each for each in self.trainings if each not in busy)
        memory = self._open_memory(task, received)
        trained = training.train(task, *received.sub_model(task.num_kept), after_step, memory)
        return _Begun(task, received, training, trained, memory, began_s)

    def _end_training(self, begun: _Begun) -> Frame:
        """Wait for a client's training; return the update, in new arrays."""
        task, training = begun.task, begun.training
        self.stage, self.client, self.version = "train", task.client, task.base_version
        mean_loss = training.mean_loss(begun.trained)
        began_s, ended_s = max(begun.began_s, self._answered_s), time.perf_counter()
        self.train_s += ended_s - began_s
        self.tracer.add("train", began_s, ended_s, task.client, task.base_version)
        self.stage = "evaluate"
        with self.tracer.span("evaluate", task.client, task.base_version):
            score = training.score(task) if task.measure else float("nan")
        self.stage = "encode"
        self.num_tasks += 1
        return self._update(begun, mean_loss, score)

    def _open_memory(self, task: Assignment, received: ReceivedModel) -> Memory | None:
        """Return what the client keeps, on its present mask; None where clients keep nothing."""
        if self.memories is None:
            return None
        return self.memories.open(task.client, task.mask_id, received.kept(task.num_kept))

    def _update(self, begun: _Begun, mean_loss: float, score: float) -> Frame:
        task, received = begun.task, begun.received
        values, dense = (part.numpy() for part in begun.training.entries())
        if self.num_changed is not None:
            received.subtract(values, dense, self.num_changed)
        if self.config.wire.dtype == "int8":
            assert begun.memory is not None
            values = round_with_feedback(begun.memory, values)
        return Frame(
            **shared_fields(task, SubModelKey),
            kind=Kind.UPDATE,
            run=self.run_id,
            num_prunable=self.num_prunable,
            values=values,
            dense=dense,
            extra=self._squares(begun),
            dtype=self.config.wire.dtype,
            train_loss=mean_loss,
            score=score,
            num_samples=begun.trained.num_samples,
        )

    def _squares(self, begun: _Begun) -> Floats:
        """Return [K] summed squared gradients, empty unless they were asked for."""
        if begun.trained.grad_squares is None:
            return np.empty(0, np.float32)
        squares: Floats = begun.training.entries(begun.trained.grad_squares)[0].numpy()
        return squares

    def _evaluate(self, task: dict[str, Any]) -> None:
        self.stage, self.version = "evaluate", task["version"]
        if task["version"] != self.eval_version:
            raise WireError(f"holds version {self.eval_version} for evaluation", stage="evaluate")
        stop = min(task["start"] + self.config.eval.chunk, self.data.pool_size(task["pool"]))
        with self.tracer.span("evaluate", version=self.eval_version):
            found = self._look_at(task["pool"], task["start"], stop, task["level"], task["norms"])
        self._send_json(Tag.RESULT, task | {"norms": None} | found)

    def _look_at(
        self, pool: Pool, start: int, stop: int, level: int | None, norms: list[float] | None
    ) -> dict[str, Any]:
        """Return what a chunk of a pool makes of the version held: scores, or the norms'
        statistics.

        Args:
            norms: [S] the statistics from now on; None if they are here or there are none.
        """
        if pool == "norms":
            return {"norms": self.evaluator.measure_statistics(start, stop, level).tolist()}
        if norms is not None:
            self.evaluator.load_statistics(torch.tensor(norms), level)
        correct, loss_sum = self.evaluator.evaluate(pool, start, stop, level)
        return {"correct": correct, "loss_sum": loss_sum}

    def _tell_time(self) -> None:
        self.transport.send(SERVER_RANK, Tag.CLOCK, struct.pack("<d", time.perf_counter()))

    def _exchange_memories(self, payload: memoryview) -> None:
        assert self.memories is not None
        if len(payload):
            self.memories.restore(unpack_tree(payload)["memories"])
        else:
            parts = pack_tree({"memories": self.memories.state()})
            self.transport.send(SERVER_RANK, Tag.MEMORIES, *parts)

    def _say_goodbye(self, payload: memoryview) -> None:
        self.exit_code = json.loads(bytes(payload))["code"]
        if self.config.trace:
            self.transport.send(SERVER_RANK, Tag.TRACE, self.tracer.to_bytes())
        self._send_json(
            Tag.STOP,
            {
                "host": socket.gethostname(),
                "device": self.device,
                "num_tasks": self.num_tasks,
                "train_s": self.train_s,
                "wait_s": self.wait_s,
                "rss_bytes": resident_bytes(),
                "sent_bytes": self.transport.sent_bytes,
                "received_bytes": self.transport.received_bytes,
                "cuda_graphs": self._tell_graphs(),
                **rank_software(self.transport, self.device, self.trainings[0].kernels),
            },
        )

    def _tell_graphs(self) -> str:
        """Say how steps ran on a GPU, for each of the clients side by side."""
        graphs = [each.graphs for each in self.trainings]
        return "; ".join(each.summary for each in graphs if each is not None)

    def _send_json(self, tag: Tag, content: dict[str, Any]) -> None:
        self.transport.send(SERVER_RANK, tag, json.dumps(content).encode())


def report_failure(
    transport: Transport,
    error: Exception,
    stage: Stage,
    client: int | None = None,
    version: int | None = None,
) -> None:
    """Send an exception to the server as a value, with its traceback."""
    named = None if isinstance(error, RunError) else plugin_failure(error)
    text = named or f"{type(error).__name__}: {getattr(error, 'message', error)}"
    trace = "".join(traceback.format_exception(error))
    is_told = named is not None or isinstance(error, RunError) or _is_refusal(error)
    failure = Failure(transport.rank, client, version, stage, text, trace, is_told)
    transport.send(SERVER_RANK, Tag.FAILURE, json.dumps(asdict(failure)).encode())
    transport.flush(FLUSH_TIMEOUT_S)


def _is_refusal(error: Exception) -> bool:
    """Return whether this package, not a library that it calls, refuses a value."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, ValueError) and frame.f_globals["__name__"].startswith("fedgmr_hpc")


def _num_changed(config: Config, layout: Layout) -> tuple[int, int] | None:
    """Return how many prunable and dense entries clients send the changes of, None for none."""
    rule = AGGREGATIONS[config.aggregation.rule]
    if rule.wants != "changes":
        return None
    if not rule.steps_statistics:
        return layout.num_trained
    return layout.num_prunable, layout.num_weights - layout.num_prunable
