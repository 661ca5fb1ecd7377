"""Stands in for `python -m fedgmr_hpc.launch`: waits for USR2 at its first start, then ends.

As launch does, it leaves with exit code 75 when it was told to checkpoint; started again by a
requeue it ends well. It prints what a rank sees of its place and its GPUs.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

CHECKPOINTED = 75
WRITE_S = 2.0  # rank 0 writes, when the other ranks have gone
START_S = 600.0


def checkpoint(signum: int, frame: object) -> None:
    say(f"told by {signal.Signals(signum).name}")
    if find_rank() == "0":
        time.sleep(WRITE_S)
        say("checkpoint written")
    sys.exit(CHECKPOINTED)


def find_rank() -> str:
    return next(os.environ[name] for name in ("RANK", "PMI_RANK") if name in os.environ)


def say(text: str) -> None:
    sys.stdout.write(f"rank {find_rank()} on {socket.gethostname()}: {text}\n")
    sys.stdout.flush()


signal.signal(signal.SIGUSR2, checkpoint)
restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
say(f"restarts {restarts}, GPUs {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}")
say(f"words {' '.join(sys.argv[1:])}")
if not restarts:
    time.sleep(START_S)
