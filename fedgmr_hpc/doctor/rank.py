"""One rank of a checkup: it joins the others within a deadline, then leads or follows.

Rank 0 leads: it has every check made and prints what was found (checkup.py). Every other rank
answers its questions until it says stop. A rank that does not answer within the limit is named; it
ends the job.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.doctor.checkup import Checkup, Work
from fedgmr_hpc.doctor.probes import Probes
from fedgmr_hpc.runtime.roles import EXIT_BAD_INPUT, guard
from fedgmr_hpc.storage.process import pin_core
from fedgmr_hpc.transport.contract import Tag, make_inproc
from fedgmr_hpc.transport.joining import make_transport
from fedgmr_hpc.transport.ping import Peer
from fedgmr_hpc.transport.ranks import Launch, detect_launch, take_slice


def check_rank(config: Config | ValueError, limit_s: float, as_json: bool = False) -> int:
    """Check a machine as this rank of a job, before a run begins there.

    Args:
        config: of the run, or what is wrong with it, which rank 0 reports.
        limit_s: the longest silence of a rank, and the longest time of a check that only looks.
        as_json: print one JSON document on rank 0 instead of lines.

    Returns:
        The exit code, the same on every rank: 0 where nothing failed, 1 where something did, 2 for
        bad input.

    Raises:
        ValueError: the launcher and the transport do not fit.
    """
    torch.set_num_threads(1)
    launch = detect_launch(os.environ)
    kind, device = "auto", "cpu"
    if isinstance(config, Config):
        kind, device = config.transport, config.device
        if config.run.pin_cores:
            pin_core(launch.local_rank, launch.local_size)
    take_slice(launch, os.environ)
    with _time_to_join(launch, limit_s):
        transport = make_transport(kind, launch, device) or make_inproc(1)[0]
    peer = Peer(transport, limit_s)
    peer.tell(0, Tag.HELLO, {"host": socket.gethostname(), "pid": os.getpid()})
    part = _follow if transport.rank else partial(_lead, config, as_json)
    return guard(transport, lambda: part(peer, launch))


@contextmanager
def _time_to_join(launch: Launch, limit_s: float) -> Iterator[None]:
    """End this process with exit code 1 if other ranks do not join it in time, and say so.

    MPI starts inside an import that lets no other Python thread run, hence the child.
    """
    if launch.size == 1:
        yield
        return
    reading, writing = os.pipe()
    watched = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            if not select.select([reading], [], [], limit_s)[0]:
                os.write(2, _describe_wait(launch, watched, limit_s).encode())
        finally:
            os._exit(0)
    os.close(reading)
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(limit_s + 2.0, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            os.close(writing)
            os.waitpid(child, 0)


def _describe_wait(launch: Launch, pid: int, limit_s: float) -> str:
    rank = f"fedgmr_hpc: error: rank {launch.rank} of {launch.size} on {socket.gethostname()}"
    if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TtD":
        return f"{rank}: process {pid} is stopped, or hangs in its file system\n"
    missing = "those that say nothing, or say that they are stopped, are missing"
    return f"{rank}: not all ranks have joined in {limit_s:g} s: {missing}\n"


def _follow(peer: Peer, launch: Launch) -> int:
    """Do what rank 0 asks for until it says stop; return the exit code."""
    probes: Probes | None = None
    while True:
        peer.wait(lambda: bool(peer.inbox))
        message = peer.inbox.popleft()
        order = json.loads(bytes(message.payload))
        if message.tag == Tag.STOP:
            return int(order["code"])
        if message.tag == Tag.HELLO:
            peer.server = f"rank 0 on {order['host']}"
            probes = Probes(make_config(order["config"]), peer.rank, launch)
        elif order["probe"] == "ping":
            peer.tell(0, Tag.RESULT, {"trips": peer.ping_all(order["ranks"])})
        elif probes is not None:
            _answer(peer, Work(probes, order["probe"]))


def _answer(peer: Peer, work: Work) -> None:
    """Send what a probe finds; if rank 0 goes on before, it no longer wants to know."""
    peer.wait(lambda: work.facts is not None or bool(peer.inbox))
    if work.facts is not None:
        peer.tell(0, Tag.RESULT, work.facts)


def _lead(config: Config | ValueError, as_json: bool, peer: Peer, launch: Launch) -> int:
    """Have everything checked, as rank 0; return the exit code."""
    if isinstance(config, ValueError):
        for line in str(config).splitlines():
            print(f"fedgmr_hpc: error: {line}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    else:
        hello = {"host": socket.gethostname(), "config": config.model_dump(mode="json")}
        for rank in peer.others:
            peer.tell(rank, Tag.HELLO, hello)
        code = Checkup(config, peer, Probes(config, 0, launch)).run(as_json)
    for rank in peer.others:
        peer.tell(rank, Tag.STOP, {"code": code})
    return code
