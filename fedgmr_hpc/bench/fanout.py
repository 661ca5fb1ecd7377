"""The ranks' side of `bench fanout`: one full ResNet-18 frame from rank 0 to all other ranks.

Every rank is sent the frame, `send`, or each node is, `relay` (transport/relay.py); where the
transport has no relay the two are the same. Every rank checks the frame's checksum. The ceiling is
one send a node: what the bytes that left rank 0 cannot be less than.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import xxhash

from fedgmr_hpc.bench.case import Row
from fedgmr_hpc.models import make_layout
from fedgmr_hpc.runtime.roles import guard
from fedgmr_hpc.transport.contract import Shared, Tag, Transport
from fedgmr_hpc.transport.joining import make_transport
from fedgmr_hpc.transport.ranks import detect_launch
from fedgmr_hpc.wire.frames import Frame, Kind, encode_parts

TIMEOUT_S = 120.0
WAYS = ("send", "relay")


def main() -> int:
    """Run one rank of the benchmark; return its exit code."""
    out, quick = Path(sys.argv[1]), "--quick" in sys.argv[2:]
    transport = make_transport("auto", detect_launch(os.environ))
    if transport is None:
        raise SystemExit("bench fanout needs at least two ranks")
    repeats = 1 if quick else 5
    return guard(transport, lambda: run(transport, out, repeats))


def run(transport: Transport, out: Path, repeats: int) -> int:
    """Send, as rank 0, and leave the rows in `out`; the other ranks check what they get."""
    if transport.rank:
        answer(transport)
        return 0
    rows = [fan_out(transport, way, repeats) for way in WAYS]
    for rank in range(1, transport.size):
        transport.send(rank, Tag.STOP)
    out.write_text(json.dumps(rows))
    return 0


def make_frame() -> tuple[memoryview, ...]:
    """Return a frame of the whole ResNet-18."""
    layout = make_layout("resnet18")
    values = np.random.default_rng(0).standard_normal(layout.num_weights, np.float32)
    packed, dense = np.split(values, [layout.num_prunable])
    return encode_parts(
        Frame(
            kind=Kind.INCREMENT,
            run=1,
            client=-1,
            base_version=0,
            mask_id=0,
            level=0,
            density=1.0,
            num_prunable=layout.num_prunable,
            values=packed,
            dense=dense,
        )
    )


def fan_out(transport: Transport, way: str, repeats: int) -> Row:
    """Send the frame `repeats` times to every rank, after a warm-up; return the row of the means.

    Raises:
        ValueError: a rank got other bytes.
    """
    parts = make_frame()
    num_bytes = sum(len(part) for part in parts)
    digest = xxhash.xxh3_64_intdigest(b"".join(parts))
    spent_s, cpu_s, handed_bytes = 0.0, 0.0, 0
    for turn in range(-1, repeats):
        began_s, cpu_began_s = time.perf_counter(), time.process_time()
        handed = transport.sent_bytes - transport.relayed_bytes
        shared = Shared(*parts)
        for rank in range(1, transport.size):
            if way == "relay":
                transport.send_shared(rank, Tag.FRAME, shared)
            else:
                transport.send(rank, Tag.FRAME, *parts)
        transport.flush(TIMEOUT_S)
        own_s = time.process_time() - cpu_began_s
        for _ in range(1, transport.size):
            answer = transport.recv(TIMEOUT_S)
            if int(bytes(answer.payload)) != digest:
                raise ValueError(f"rank {answer.source} got other bytes")
        if turn >= 0:
            spent_s += (time.perf_counter() - began_s) / repeats
            cpu_s += own_s / repeats
            handed_bytes = transport.sent_bytes - transport.relayed_bytes - handed
    return {
        "way": way,
        "ranks": transport.size,
        "frame MB": num_bytes / 1e6,
        "sends": handed_bytes / num_bytes,
        "rank 0, MB": handed_bytes / 1e6,
        "rank 0, cpu ms": cpu_s * 1e3,
        "all have it, ms": spent_s * 1e3,
    }


def answer(transport: Transport) -> None:
    """Be a client rank: say what has come."""
    while (message := transport.recv(TIMEOUT_S)).tag != Tag.STOP:
        digest = xxhash.xxh3_64_intdigest(message.payload)
        transport.send(0, Tag.RESULT, str(digest).encode())


if __name__ == "__main__":
    sys.exit(main())
