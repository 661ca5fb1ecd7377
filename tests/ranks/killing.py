"""Runs that are forked from this process, killed, and started again: no import is paid for twice.

Ranks are processes of their own that talk over gloo, or one process that is server and clients.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from launchers import last_of_each

import fedgmr_hpc.launch as launch

LIMIT_S = 60.0


def start(folder: Path, num_ranks: int, *words: str) -> list[int]:
    """Forks the ranks of a run, which write to ranks.log; returns their process ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [_fork(folder, rank, num_ranks, port, words) for rank in range(num_ranks)]


def _fork(folder: Path, rank: int, num_ranks: int, port: int, words: tuple[str, ...]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 99
    try:
        output = os.open(folder / "ranks.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        torch.set_num_threads(1)
        if num_ranks > 1:
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
            values = (rank, rank, num_ranks, num_ranks, port)
            os.environ |= {name: str(value) for name, value in zip(names, values, strict=True)}
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        code = launch.main(last_of_each(*words))
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pids: list[int], limit_s: float = LIMIT_S) -> list[int]:
    """The exit codes of all ranks, negative for a signal; kills what is left at the limit."""
    codes: dict[int, int] = {}
    deadline_s = time.monotonic() + limit_s
    while len(codes) < len(pids) and time.monotonic() < deadline_s:
        for pid in set(pids) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    end(set(pids) - codes.keys())
    return [codes.get(pid, -signal.SIGKILL) for pid in pids]


def end(pids: set[int]) -> None:
    """Kills and buries processes that this one has started."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def kill(pids: list[int], victim: int, others_s: float = 0.3) -> bool:
    """Kills a rank, gives the others a moment to notice, then ends them as a launcher does; False
    if the run was at its end before.
    """
    ended, status = os.waitpid(pids[victim], os.WNOHANG)
    if ended:
        codes = wait([pid for pid in pids if pid != ended])
        assert not status and not any(codes), (status, codes)
        return False
    os.kill(pids[victim], signal.SIGKILL)
    wait(pids, others_s)
    return True


def await_text(path: Path, text: str) -> None:
    """Waits until a file holds a text; fails with what it holds at the limit."""
    deadline_s = time.monotonic() + LIMIT_S
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline_s, path.read_text() if path.exists() else "no file"
        time.sleep(0.02)
