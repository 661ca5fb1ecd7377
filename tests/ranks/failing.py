"""`python failing.py STAGE [launch arguments]`: a run in which rank 2 fails on purpose."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import fedgmr_hpc.launch as launch
import fedgmr_hpc.runtime.worker as worker
import fedgmr_hpc.training.local_training as training
import fedgmr_hpc.training.masked as masked
from fedgmr_hpc.runtime.wall.worker import LiveWorker
from fedgmr_hpc.transport.contract import Tag

BROKEN_RANK, CALLS_BEFORE = 2, 4
NUM_ASKED = 9  # times that a traced rank is asked at the start what its time is


def broken(function: Any, when: Any = lambda *a, **k: True) -> Any:
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += bool(when(*args, **kwargs))
        if calls > CALLS_BEFORE and when(*args, **kwargs):
            raise ZeroDivisionError("broken on purpose")
        return function(*args, **kwargs)

    return wrapped


def not_finite(entries: Any) -> Any:
    """The first update that this rank makes has an entry that is NaN."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        values, dense = entries(*args, **kwargs)
        if calls == 1:
            values[0] = float("nan")
        return values, dense

    return wrapped


def lost_at_the_end(tell_time: Any, how: int) -> Any:
    """This rank sends itself a signal when its clock is compared for the last time.

    If that kills it, it answers first: once it is asked again, gloo sees that it is gone.
    """
    num_told = 0

    def told(worker: LiveWorker) -> None:
        nonlocal num_told
        num_told += 1
        if num_told > NUM_ASKED and how == signal.SIGSTOP:
            os.kill(os.getpid(), how)
        tell_time(worker)
        if num_told > NUM_ASKED:
            worker.transport.flush(5.0)
            os.kill(os.getpid(), how)

    return told


def break_stage(stage: str) -> None:
    from fedgmr_hpc.transport.mpi import MpiTransport

    if stage == "receive":
        MpiTransport.recv = broken(MpiTransport.recv)  # type: ignore[method-assign]
    elif stage == "send":
        is_update = lambda self, dest, tag, *parts: tag == Tag.UPDATE  # noqa: E731
        MpiTransport.send = broken(MpiTransport.send, is_update)  # type: ignore[method-assign]
    elif stage == "train":
        masked.MaskedModel.train = broken(masked.MaskedModel.train)  # type: ignore[method-assign]
    elif stage == "silence":
        masked.MaskedModel.train = lambda *a, **k: time.sleep(600)  # type: ignore[method-assign]
    elif stage == "late silence":
        told = lost_at_the_end(LiveWorker._tell_time, signal.SIGSTOP)
        LiveWorker._tell_time = told  # type: ignore[method-assign]
    elif stage == "nan":
        masked.MaskedModel.entries = not_finite(masked.MaskedModel.entries)  # type: ignore
    elif stage == "death":
        masked.MaskedModel.train = lambda *a, **k: os.kill(os.getpid(), 9)  # type: ignore
    else:
        places = {
            "decode": (worker, "decode_frame"),
            "encode": (worker, "encode_parts"),
            "evaluate": (training, "evaluate"),
        }
        module, name = places[stage]
        setattr(module, name, broken(getattr(module, name)))


if __name__ == "__main__":
    if int(os.environ["PMI_RANK"]) == BROKEN_RANK:
        break_stage(sys.argv[1])
    sys.exit(launch.main(sys.argv[2:]))
