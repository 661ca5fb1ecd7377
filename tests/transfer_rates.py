"""`torchrun ... transfer_rates.py KIND`: how fast a frame moves between two ranks over a transport.

Rank 0 prints the best of several rates to the other rank and back, as JSON. Over NCCL each rank has
a device of its own; the others move host memory.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

from fedgmr_hpc.transport.contract import Tag
from fedgmr_hpc.transport.joining import make_transport
from fedgmr_hpc.transport.ranks import detect_launch

FRAME_BYTES = 26_414_840  # of Conv2 for FEMNIST
WAIT_S = 120.0


def main(kind: str, num_repeats: int = 10, num_bytes: int = FRAME_BYTES) -> None:
    transport = make_transport(kind, detect_launch(os.environ))
    assert transport is not None and transport.size == 2
    frame = np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8)
    down_s, up_s = [], []
    for _ in range(num_repeats + 1):  # the first is no measurement
        if transport.rank:
            payload = transport.recv(WAIT_S).payload
            transport.send(0, Tag.GOT, b"")
            transport.recv(WAIT_S)
            transport.send(0, Tag.UPDATE, payload)
            transport.flush(WAIT_S)
            continue
        began_s = time.perf_counter()
        transport.send(1, Tag.FRAME, frame)
        transport.recv(WAIT_S)
        down_s.append(time.perf_counter() - began_s)
        began_s = time.perf_counter()
        transport.send(1, Tag.GRANT, b"")
        payload = transport.recv(WAIT_S).payload
        up_s.append(time.perf_counter() - began_s)
        assert np.array_equal(np.frombuffer(payload, np.uint8), frame)
    if transport.rank == 0:
        best = {"down_gb_per_s": min(down_s[1:]), "up_gb_per_s": min(up_s[1:])}
        print(json.dumps({name: num_bytes / took_s / 1e9 for name, took_s in best.items()}))
    transport.close()


if __name__ == "__main__":
    main(sys.argv[1])
