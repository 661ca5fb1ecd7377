"""The ranks' side of `bench links`: what real transfers make of the rates they are held to.

Ten clients on two ranks, with links of 0.25 to 125 MB/s, all transfer at once; the server's own
links bind nobody. Every client gets a dispatch and answers with an update of the same size, as in
a run, but nothing is trained or decoded. The ceiling is the rate that was asked for.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.updates import Assignment
from fedgmr_hpc.network.fluid import Listener
from fedgmr_hpc.network.links import Broadcast
from fedgmr_hpc.network.throttle import WallClock
from fedgmr_hpc.runtime.ledger import PositionCodes
from fedgmr_hpc.runtime.rank_state import place_clients
from fedgmr_hpc.runtime.roles import guard
from fedgmr_hpc.runtime.wall.pool import LivePool
from fedgmr_hpc.runtime.wall.transfers import Cycle
from fedgmr_hpc.storage.rows import TransferRow
from fedgmr_hpc.transport.contract import Message, Tag, Transport
from fedgmr_hpc.transport.joining import make_transport
from fedgmr_hpc.transport.ranks import detect_launch
from fedgmr_hpc.wire.pieces import SIZE, Incoming, Mark, Outgoing, read_mark

MB_PER_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 125.0)
LONG_S, SHORT_S = 0.5, 0.04
UNBOUND_BYTES_PER_S = 1e12
TIMEOUT_S = 120.0


def main() -> int:
    """Run one rank of the benchmark; return its exit code."""
    out, quick = Path(sys.argv[1]), "--quick" in sys.argv[2:]
    transport = make_transport("auto", detect_launch(os.environ))
    if transport is None:
        raise SystemExit("bench links needs at least two ranks")
    return guard(transport, lambda: run(transport, out, quick))


def run(transport: Transport, out: Path, quick: bool) -> int:
    """Time transfers, as rank 0, and leave the rows in `out`; the other ranks answer."""
    if transport.rank:
        answer(transport)
        return 0
    rates = [rate for rate in MB_PER_S if rate >= 8.0 or not quick]
    pool = make_pool(transport, rates)
    rows = [row for length_s in (LONG_S, SHORT_S) for row in measure(pool, rates, length_s)]
    for rank in range(1, transport.size):
        transport.send(rank, Tag.STOP, b"")
    transport.flush(TIMEOUT_S)
    out.write_text(json.dumps(rows))
    return 0


def make_pool(transport: Transport, rates: list[float]) -> EchoPool:
    """Return a pool of clients with links of `rates` MB/s."""
    config = make_case(len(rates))
    shares = [rate / max(MB_PER_S) for rate in rates]
    rank_of = place_clients(len(rates), transport.size)
    return EchoPool(
        config,
        transport,
        0,
        PositionCodes(),
        lambda: None,
        clock=WallClock(config.links, shares, 0, 1.0, rank_of),
        rank_of=rank_of,
        upload_bytes=lambda task: task.num_kept,
        record=lambda row: None,
    )


def make_case(num_clients: int) -> Config:
    """Return a case of constant links, with a server that is never in the way."""
    top = max(MB_PER_S) * 1e6
    return load_config(
        "digits",
        [
            "clock=wall",
            f"clients.count={num_clients}",
            f"links.client_down_bytes_per_s={top}",
            f"links.client_up_bytes_per_s={top}",
            f"links.server_up_bytes_per_s={UNBOUND_BYTES_PER_S}",
            f"links.server_down_bytes_per_s={UNBOUND_BYTES_PER_S}",
            "links.client_sigma=0",
            "links.server_sigma=0",
        ],
    )


class EchoPool(LivePool):
    """A pool whose transfers mean nothing."""

    def _take_update(self, message: Message) -> None:
        pass


def transfer_bytes(rate: float, length_s: float) -> int:
    """Return bytes of a transfer at `rate` MB/s: its length in time, and 1 MB at least if it is
    long.
    """
    num_bytes = int(rate * 1e6 * length_s)
    return max(num_bytes, 1_000_000) if length_s >= LONG_S else num_bytes


def measure(pool: EchoPool, rates: list[float], length_s: float) -> Iterable[dict[str, Any]]:
    """Use all links at once, down and then up; yield a row for each transfer."""
    transfers: list[TransferRow] = []
    pool.transfers.record = transfers.append
    for client, rate in enumerate(rates):
        begin(pool, client, transfer_bytes(rate, length_s))
    deadline_s = time.monotonic() + TIMEOUT_S
    while len(transfers) < 2 * len(rates) and time.monotonic() < deadline_s:
        pool.pump("a transfer")
    pool.happened.clear()
    for row in sorted(transfers, key=lambda each: (each.is_upload, each.client)):
        yield describe(row, rates[row.client])


def begin(pool: EchoPool, client: int, num_bytes: int) -> None:
    """Dispatch `num_bytes` to a client, which answers with as many."""
    task = Assignment(client, 0, 0, 0, 1.0, num_bytes, 0, 1.0, False)
    payload = Outgoing([memoryview(bytes(num_bytes))])
    pool.num_dispatched += 1
    pool.transfers.cycles[client] = Cycle(task, pool.num_dispatched, payload, 0.0)
    content = {"client": client, "number": pool.num_dispatched, "bytes": num_bytes}
    pool.transport.send(pool.rank_of[client], Tag.TASK, json.dumps(content).encode())
    listener = Listener(client, 0, num_bytes, num_bytes)
    pool.broadcast(0.0, Broadcast(num_bytes, (listener,), {client: num_bytes}))


def describe(row: TransferRow, rate: float) -> dict[str, Any]:
    """Return a line of the table."""
    wanted_s, took_s = row.bytes / (rate * 1e6), row.bytes / row.achieved_bytes_per_s
    is_long = row.bytes >= 1_000_000 and wanted_s >= 0.15
    allowed_s = 0.02 * wanted_s if is_long else 2e-3 + 0.2 * wanted_s
    return {
        "direction": "up" if row.is_upload else "down",
        "asked MB/s": rate,
        "MB": row.bytes / 1e6,
        "asked ms": wanted_s * 1e3,
        "took ms": took_s * 1e3,
        "off": took_s / wanted_s - 1,
        "allowed": allowed_s / wanted_s,
        "within": abs(took_s - wanted_s) <= allowed_s,
    }


def answer(transport: Transport) -> None:
    """Be a client rank: take dispatches, offer as many bytes, send what is granted."""
    incoming: dict[int, Incoming] = {}
    outgoing: dict[int, Outgoing] = {}
    while (message := transport.recv(TIMEOUT_S)).tag != Tag.STOP:
        if message.tag == Tag.TASK:
            content = json.loads(bytes(message.payload))
            incoming[content["client"]] = Incoming(content["bytes"])
            continue
        mark = read_mark(message.payload)
        if message.tag == Tag.PIECE:
            payload = incoming[mark.client]
            payload.put(mark, message.payload[SIZE:])
            if payload.is_complete:
                outgoing[mark.client] = Outgoing([payload.buffer.data])
                done = Mark(mark.client, mark.number, 0, mark.end).pack()
                transport.send(0, Tag.GOT, done)
                transport.send(0, Tag.OFFER, done)
        elif message.tag == Tag.GRANT:
            update = outgoing[mark.client]
            head = mark._replace(begin=update.sent).pack()
            transport.send(0, Tag.PIECE, head, *update.take(mark.end))


if __name__ == "__main__":
    sys.exit(main())
