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
from typing import Any, TextIO, cast

import torch
from launchers import last_of_each

import fedgmr_hpc.launch as launch
import fedgmr_hpc.results.summary
import fedgmr_hpc.runtime.rank_process  # noqa: F401

LIMIT_S = 180.0


def start(folder: Path, num_ranks: int, *words: str, pause_at: str = "") -> list[int]:
    """Forks the ranks of a run, which write to ranks.log; returns their process ids.

    With `pause_at`, returns once rank 0 has written that text and stopped itself; send it CONT.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = [_fork(folder, rank, num_ranks, port, words, pause_at) for rank in range(num_ranks)]
    if pause_at:
        _await_pause(folder, pids)
    return pids


class _Pausing:
    """A stream that stops this process when a text has been written to it for the first time."""

    def __init__(self, stream: TextIO, text: str) -> None:
        self.stream, self.text = stream, text

    def write(self, text: str) -> int:
        length = self.stream.write(text)
        self.stream.flush()
        if self.text and self.text in text:
            self.text = ""
            os.kill(os.getpid(), signal.SIGSTOP)
        return length

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _await_pause(folder: Path, pids: list[int]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not (changed := os.waitpid(pids[0], os.WNOHANG | os.WUNTRACED))[0]:
        if time.monotonic() > deadline_s:
            end(set(pids))
            raise AssertionError((folder / "ranks.log").read_text())
        time.sleep(0.01)
    assert os.WIFSTOPPED(changed[1]), (folder / "ranks.log").read_text()


def _fork(
    folder: Path, rank: int, num_ranks: int, port: int, words: tuple[str, ...], pause_at: str
) -> int:
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
        if rank == 0 and pause_at:
            sys.stderr = cast(TextIO, _Pausing(sys.stderr, pause_at))
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
