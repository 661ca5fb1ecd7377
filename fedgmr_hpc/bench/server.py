"""The ranks' side of `bench server`: how many small updates a second the server takes.

The whole wall-clock server is at work: transfers, the coordinator with a merge whenever half of the
clients have delivered, a new dispatch for each of them, and the rows of the store. The client ranks
answer every dispatch at once with the same short update, over links that bind nobody. The ceiling
is a bare request and reply over the same transport, in the same run.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fedgmr_hpc.config.errors import TransportTimeout
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.models import make_layout
from fedgmr_hpc.network.links import Arrival
from fedgmr_hpc.runtime.experiment import make_progress
from fedgmr_hpc.runtime.preparation import prepare_experiment
from fedgmr_hpc.runtime.roles import guard
from fedgmr_hpc.runtime.server import Server
from fedgmr_hpc.runtime.wall.pool import LivePool
from fedgmr_hpc.storage.writer import ResultWriter
from fedgmr_hpc.transport.contract import Message, Tag, Transport
from fedgmr_hpc.transport.joining import make_transport
from fedgmr_hpc.transport.ranks import detect_launch
from fedgmr_hpc.wire.frames import Frame, Kind, encode_frame
from fedgmr_hpc.wire.pieces import SIZE, Incoming, Mark, read_mark

CLIENTS_PER_RANK = 4
DENSITY = 0.02
TIMEOUT_S = 20.0
_STOP, _PING = Tag.STOP, Tag.CLOCK
_LAYOUT = make_layout("digits_cnn")
NUM_DENSE = _LAYOUT.num_weights - _LAYOUT.num_prunable


def main() -> int:
    """Run one rank of the benchmark; return its exit code."""
    out, quick = Path(sys.argv[1]), "--quick" in sys.argv[2:]
    transport = make_transport("auto", detect_launch(os.environ))
    if transport is None:
        raise SystemExit("bench server needs at least two ranks")
    return guard(transport, lambda: run(transport, out, 1.0 if quick else 5.0))


def run(transport: Transport, out: Path, length_s: float) -> int:
    """Serve, as rank 0, and leave the row in `out`; the other ranks answer."""
    if transport.rank:
        bare_answer(transport)
        answer(transport)
        idle_share(transport, length_s)
        return 0
    bare_per_s = bare_rate(transport, length_s)
    with tempfile.TemporaryDirectory() as folder:
        row = serve_updates(transport, make_case(folder, transport.size, length_s))
    row |= {"bare/s": bare_per_s, "of bare": row["updates/s"] / bare_per_s}
    row["idle, cores"] = idle_share(transport, length_s)
    out.write_text(json.dumps([row]))
    return 0


def make_case(folder: str, num_ranks: int, length_s: float) -> Config:
    """Return a case of small sub-models, merges of half of the clients and unbounded links."""
    count = CLIENTS_PER_RANK * (num_ranks - 1)
    free = ("client_down", "client_up", "server_up", "server_down")
    return load_config(
        "digits",
        [
            "clock=wall",
            "method=wo_gmr",
            f"clients.count={count}",
            f"clients.shares={[DENSITY] * count}",
            "admission.kind=count",
            f"admission.count={count // 2}",
            "aggregation.buffered=false",
            "links.client_sigma=0",
            "links.server_sigma=0",
            "links.compute_s=0",
            "links.merge_s=0",
            *(f"links.{name}_bytes_per_s=1e13" for name in free),
            f"run.max_time_s={length_s}",
            "run.max_rounds=1000000",
            "run.interval_rounds=1000000",
            "progress=quiet",
            f"results.path={folder}/server.h5",
        ],
    )


def bare_rate(transport: Transport, length_s: float) -> float:
    """Return how many requests a second the server answers when it does nothing else."""
    served, ends_s = 0, time.perf_counter() + length_s
    while time.perf_counter() < ends_s:
        message = transport.recv(TIMEOUT_S)
        transport.send(message.source, _PING, b"x" * 64)
        served += 1
    for rank in range(1, transport.size):
        transport.send(rank, _STOP, b"")
    for _ in range(1, transport.size):
        while transport.recv(TIMEOUT_S).tag != _STOP:
            pass
    return served / length_s


def bare_answer(transport: Transport) -> None:
    """Be a client rank that keeps as many requests under way as it has clients."""
    for _ in range(CLIENTS_PER_RANK):
        transport.send(0, _PING, b"x" * 64)
    while transport.recv(TIMEOUT_S).tag != _STOP:
        transport.send(0, _PING, b"x" * 64)
    transport.send(0, _STOP, b"")


def serve_updates(transport: Transport, config: Config) -> dict[str, Any]:
    """Serve a run whose clients need no time; return the row of the table."""
    experiment = prepare_experiment(config)
    hello = struct.pack("<Qq", experiment.run_id, config.eval.chunk)
    for rank in range(1, transport.size):
        transport.send(rank, Tag.HELLO, hello)
    waits: list[float] = []
    served = Counter(dict.fromkeys(range(1, transport.size), 0))  # who starves counts, too
    writer = ResultWriter(
        experiment.path,
        config_yaml="",
        provenance={},
        num_clients=config.clients.count,
        num_weights=_LAYOUT.num_weights,
        layout_json="",
        num_ranks=transport.size,
    )
    with writer, make_progress(experiment) as progress:
        server = Server(config, transport, experiment.data, writer, progress, experiment.run_id)
        watch(server, waits, served)
        began_s = time.perf_counter()
        server.run()
        took_s = time.perf_counter() - began_s
        writer.finish("finished")
    return {
        "ranks": transport.size,
        "clients": config.clients.count,
        "updates/s": len(waits) / took_s,
        "wait p50 ms": float(np.quantile(waits, 0.5)) * 1e3,
        "wait p99 ms": float(np.quantile(waits, 0.99)) * 1e3,
        "fairness": min(served.values()) / max(served.values()),
    }


def watch(server: Server, waits: list[float], served: Counter[int]) -> None:
    """Note how long each update waits for the server, and whose rank it is from."""
    pool = server.pool
    assert isinstance(pool, LivePool)
    take_next = pool.next

    def timed() -> Any:
        happened = take_next()
        if isinstance(happened, Arrival):
            waits.append(pool.clock.now_s() - happened.now_s)
            served[pool.rank_of[happened.client]] += 1
        return happened

    server.clock.next = timed  # type: ignore[method-assign]


def answer(transport: Transport) -> None:
    """Be a client rank that answers at once: no decoding, no training."""
    run_id, _ = struct.unpack("<Qq", transport.recv(TIMEOUT_S).payload)
    tasks: dict[int, dict[str, Any]] = {}
    payloads: dict[int, Incoming] = {}
    while (message := transport.recv(TIMEOUT_S)).tag != Tag.STOP:
        if message.tag == Tag.TASK:
            content = json.loads(bytes(message.payload))
            client = content["task"]["client"]
            tasks[client], payloads[client] = content, Incoming(sum(content["lengths"]))
        elif message.tag == Tag.PIECE:
            mark = read_mark(message.payload)
            payloads[mark.client].put(mark, message.payload[SIZE:])
            if payloads[mark.client].is_complete:
                send_update(transport, tasks[mark.client], run_id)
        elif message.tag == Tag.EVALUATE:
            answer_evaluation(transport, message)
        elif message.tag == Tag.CLOCK:
            transport.send(0, Tag.CLOCK, struct.pack("<d", time.perf_counter()))
    goodbye = {"host": "", "device": "cpu", "num_tasks": 0, "train_s": 0.0, "wait_s": 0.0}
    transport.send(0, Tag.STOP, json.dumps(goodbye).encode())


def answer_evaluation(transport: Transport, message: Message) -> None:
    """Nothing is right."""
    result = json.loads(bytes(message.payload)) | {"correct": 0, "loss_sum": 0.0}
    transport.send(0, Tag.RESULT, json.dumps(result).encode())


def send_update(transport: Transport, content: dict[str, Any], run_id: int) -> None:
    """Return the update that answers a dispatch: zeros."""
    task, number = content["task"], content["number"]
    frame = Frame(
        kind=Kind.UPDATE,
        run=run_id,
        client=task["client"],
        base_version=task["base_version"],
        mask_id=task["mask_id"],
        level=task["level"],
        density=task["density"],
        num_prunable=task["num_kept"],
        values=np.zeros(task["num_kept"], np.float32),
        dense=np.zeros(NUM_DENSE, np.float32),
        score=float("nan"),
        num_samples=1,
    )
    update = encode_frame(frame)
    mark = Mark(task["client"], number, 0, sum(content["lengths"]))
    transport.send(0, Tag.GOT, mark.pack())
    transport.send(0, Tag.OFFER, mark._replace(end=len(update)).pack(), update)


def idle_share(transport: Transport, length_s: float) -> float:
    """Return the cores that this rank uses while it waits for a message that never comes."""
    used_s = time.process_time()
    try:
        transport.recv(length_s)
    except TransportTimeout:
        pass
    return (time.process_time() - used_s) / length_s


if __name__ == "__main__":
    sys.exit(main())
