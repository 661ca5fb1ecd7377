"""`python -m fedgmr_hpc doctor [CONFIG] [key=value ...]`: checks a place before a run begins there.

Start it as the run: by mpirun, srun or torchrun with as many ranks, or as one process. CONFIG and
the words are those of launch. Rank 0 prints where each rank runs, and then a line a check:

    ranks    which rank on which host, cores and device; what they share
    ping     the round trip of every pair; who is slow, who is silent
    links    rates between rank 0 and each other rank, against the tiers of their clients
    mpi      the MPI library, and whether it is CUDA-aware
    data     the data set is there, and every rank reads the same bytes
    results  a result file can be made, locked and followed where results go
    time     steps of the run's model on every rank; who is slow; how long a run takes
    memory   what the ranks of a host will take
    disk     what results and checkpoints will take

Exit code, on every rank: 0 where nothing failed (a warning is no failure), 1 where something did, 2
for bad input. A rank that answers no more is named after `--limit` seconds; it ends the job.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import select
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from fedgmr_hpc.config.files import load_config, make_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.doctor.checkup import Checkup, Work
from fedgmr_hpc.doctor.probes import Probes
from fedgmr_hpc.runtime.roles import EXIT_BAD_INPUT, guard
from fedgmr_hpc.storage.process import pin_core
from fedgmr_hpc.transport.contract import Tag, make_inproc
from fedgmr_hpc.transport.joining import make_transport
from fedgmr_hpc.transport.ping import Peer
from fedgmr_hpc.transport.ranks import Launch, detect_launch, take_slice

LIMIT_S = 60.0


def main(words: Sequence[str]) -> int:
    """Runs this rank; returns its exit code.

    Raises:
        ValueError: the launcher and the transport do not fit; what is wrong otherwise is printed.
    """
    arguments = _parse(words)
    limit_s = arguments.limit if arguments.limit > 0 else LIMIT_S
    torch.set_num_threads(1)
    launch = detect_launch(os.environ)
    config = _try_load(arguments)
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
    part = _follow if transport.rank else partial(_lead, config)
    return guard(transport, lambda: part(peer, launch))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m fedgmr_hpc doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about = "YAML file, or the name of one in configs/runs; again: laid over it"
    parser.add_argument("--config", action="append", default=[], help=about)
    parser.add_argument("words", nargs="*", metavar="CONFIG key=value")
    limit = "longest silence of a rank, and of a check that only looks (default: %(default)g)"
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help=limit)
    return parser.parse_intermixed_args(list(words))


def _try_load(arguments: argparse.Namespace) -> Config | ValueError:
    named = [word for word in arguments.words if "=" not in word]
    try:
        if not arguments.limit > 0:
            raise ValueError(f"--limit: got {arguments.limit:g}, allowed: seconds above 0")
        if len(named) > 1 or (named and arguments.config):
            got = " and ".join([*arguments.config, *named])
            raise ValueError(f"doctor: got {got}, allowed: one (or --config for each)")
        overrides = [word for word in arguments.words if "=" in word]
        return load_config(arguments.config or named, overrides)
    except ValueError as error:
        return error


@contextmanager
def _time_to_join(launch: Launch, limit_s: float) -> Iterator[None]:
    """Ends this process with exit code 1 if other ranks do not join it in time, and says so.

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
    """Any other rank: does what rank 0 asks for until it says stop; returns the exit code."""
    probes: Probes | None = None
    while True:
        peer.wait(lambda: bool(peer.inbox))
        message = peer.inbox.popleft()
        letter = json.loads(bytes(message.payload))
        if message.tag == Tag.STOP:
            return int(letter["code"])
        if message.tag == Tag.HELLO:
            peer.server = f"rank 0 on {letter['host']}"
            probes = Probes(make_config(letter["config"]), peer.rank, launch)
        elif letter["probe"] == "ping":
            peer.tell(0, Tag.RESULT, {"trips": peer.ping_all(letter["ranks"])})
        elif probes is not None:
            _answer(peer, Work(probes, letter["probe"]))


def _answer(peer: Peer, work: Work) -> None:
    """Sends what a probe finds; if rank 0 goes on before, it no longer wants to know."""
    peer.wait(lambda: work.facts is not None or bool(peer.inbox))
    if work.facts is not None:
        peer.tell(0, Tag.RESULT, work.facts)


def _lead(config: Config | ValueError, peer: Peer, launch: Launch) -> int:
    """Rank 0: has everything checked; returns the exit code."""
    if isinstance(config, ValueError):
        for line in str(config).splitlines():
            print(f"fedgmr_hpc: error: {line}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    else:
        hello = {"host": socket.gethostname(), "config": config.model_dump(mode="json")}
        for rank in peer.others:
            peer.tell(rank, Tag.HELLO, hello)
        code = Checkup(config, peer, Probes(config, 0, launch)).run()
    for rank in peer.others:
        peer.tell(rank, Tag.STOP, {"code": code})
    return code
