"""How each contender is started, and a started one: a round at a time, with its CPU time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from fedgmr_hpc.bench.peers.work import Arrays, load_tensors
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.transport.launchers import mpirun_command

WARM_UP = 2  # rounds
TIMEOUT_S = 300.0
PATIENCE_S = 20.0  # of one that is asked to end
# One thread a process on the CPU, nothing told to anybody.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Contender:
    """What trains the work.

    Attributes:
        name: in the table.
        processes: that train or serve.
        commands: each is started once, with FOLDER ADDRESS ROUNDS OUT added, and has a gate.
        env: of each command, beside ENVIRONMENT.
    """

    name: str
    processes: int
    commands: tuple[tuple[str, ...], ...]
    env: tuple[Mapping[str, str], ...] = ({},)


STEPS = Contender("steps alone", 1, ((sys.executable, "-m", f"{__package__}.steps_alone"),))
_OURS = (sys.executable, "-m", f"{__package__}.ours")
ONE_PROCESS = Contender("one process", 1, (_OURS,))
THREE_RANKS = Contender("1 server + 2 ranks", 3, ((*mpirun_command(3), *_OURS),))
PFL_ONE, PFL_TWO, FLOWER = "pfl-research, one process", "pfl-research, two", "Flower, two CPUs"


def peers(python: Path) -> list[Contender]:
    """Return the peers, which run in an interpreter of their own."""
    pfl = (str(python), "-m", f"{__package__}.pfl_research")
    flower = (str(python), "-m", f"{__package__}.flower")
    addresses = ",".join(f"localhost:{free_port()}" for _ in range(2))
    pair = tuple(
        {"PFL_WORKER_RANK": str(rank), "PFL_WORKER_ADDRESSES": addresses} for rank in range(2)
    )
    return [
        Contender(PFL_ONE, 1, (pfl,)),
        Contender(PFL_TWO, 2, (pfl, pfl), pair),
        Contender(FLOWER, 3, (flower,)),
    ]


def free_port() -> int:
    """Return a port of this host that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@dataclass
class Spent:
    """Times of the rounds of one contender, in seconds.

    Attributes:
        wall_s: of each round.
        cpu_s: of each round, of all its processes, user and system.
        idle_cpu_s: of all its processes while it waited for each round.
        idle_s: how long it waited for each.
    """

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    idle_cpu_s: list[float] = field(default_factory=list)
    idle_s: list[float] = field(default_factory=list)

    @property
    def idle_cores(self) -> float:
        """The cores that it used while it waited, once it was warm; 0 before."""
        waited_s = sum(self.idle_s[WARM_UP:])
        return sum(self.idle_cpu_s[WARM_UP:]) / waited_s if waited_s else 0.0


class Started:
    """A contender whose processes wait at their gates; leaving the context ends them.

    Args:
        folder: of the work, where the weights after the last round and what is printed go, too.

    Attributes:
        spent: times of the rounds so far.

    Raises:
        RunError: a process has ended before it was ready.
    """

    def __init__(self, contender: Contender, folder: Path, rounds: int) -> None:
        name = f"{contender.name.replace(' ', '_')}_{rounds}"
        self.contender, self.spent, self.rounds = contender, Spent(), rounds
        self._out, self._log = folder / f"{name}.npz", folder / f"{name}.log"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / f"{name}.s"))
        listener.listen()
        words = [str(folder), str(folder / f"{name}.s"), str(rounds), str(self._out)]
        with self._log.open("wb") as log:
            self._processes = [
                subprocess.Popen(
                    [*command, *words],
                    env={**os.environ, **ENVIRONMENT, **env},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
                for command, env in zip(contender.commands, contender.env, strict=True)
            ]
        try:
            self._gates = [self._accept(listener) for _ in contender.commands]
            self._await()
        except BaseException:
            self._end()
            raise
        finally:
            listener.close()
        self._stopped = _now_s(), self._cpu_s()

    def _accept(self, listener: socket.socket) -> socket.socket:
        """Return the next process's gate."""
        listener.settimeout(1.0)
        ends_s = time.perf_counter() + TIMEOUT_S
        while time.perf_counter() < ends_s:
            try:
                gate, _ = listener.accept()
            except TimeoutError:
                if any(process.poll() is not None for process in self._processes):
                    break
                continue
            gate.settimeout(TIMEOUT_S)
            return gate
        raise self._failed()

    def step(self) -> None:
        """Let it train one round."""
        (stopped_s, stopped_cpu_s), cpu_s, began_s = self._stopped, self._cpu_s(), _now_s()
        self.spent.idle_s.append(began_s - stopped_s)
        self.spent.idle_cpu_s.append(cpu_s - stopped_cpu_s)
        self._go()
        self._await()
        self.spent.wall_s.append(_now_s() - began_s)
        self._stopped = _now_s(), self._cpu_s()
        self.spent.cpu_s.append(self._stopped[1] - cpu_s)

    def finish(self) -> tuple[Arrays, int]:
        """Let it end; return its weights and the samples it says it has trained on, all rounds."""
        self._go()
        samples = self._await()
        if any(process.wait(TIMEOUT_S) for process in self._processes):
            raise self._failed()
        return load_tensors(self._out), samples[0]

    def _go(self) -> None:
        for gate in self._gates:
            gate.sendall(b"\n")

    def _await(self) -> list[int]:
        """Return what all of its processes tell at the end of a round."""
        try:
            lines = [gate.makefile("rb").readline() for gate in self._gates]
        except OSError:
            lines = [b""]
        if not all(lines):
            raise self._failed()
        return [json.loads(line) for line in lines]

    def _cpu_s(self) -> float:
        return cpu_s_of({process.pid for process in self._processes})

    def _failed(self) -> RunError:
        text = self._log.read_text(errors="replace").strip()
        return RunError(f"{self.contender.name} has failed; it said last: {text[-2000:]}")

    def __enter__(self) -> Started:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _now_s() -> float:
    return time.perf_counter()


def cpu_s_of(roots: set[int], proc: Path = Path("/proc")) -> float:
    """Return the CPU seconds that processes and all their descendants have used so far."""
    stats = {}
    for path in proc.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        stats[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    family, grows = set(roots), True
    while grows:
        found = {pid for pid, (parent, _) in stats.items() if parent in family} - family
        family |= found
        grows = bool(found)
    ticks = sum(stats[pid][1] for pid in family & stats.keys())
    return ticks / os.sysconf("SC_CLK_TCK")
