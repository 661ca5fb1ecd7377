"""Runs that go on: what a checkpoint holds, when one is written, and how a run is taken up again.

A checkpoint (RUN.ckpt, format in checkpoint.py) holds the configuration, the fingerprint of the
data, how many rows each table of the result file had, and the server's state: model, buffer,
densities and triggers, admission, clients (`coordinator`, fl/snapshot.py); transfers under way,
their numbers and the time (`clock`); byte counts and who knows which positions (`ledger`); the
event log's hash; delivered updates whose rows wait for their merge. Random streams are keyed and
need no state (records.make_rng), and so do the ranks, but for the error feedback of int8, which is
collected from them.

Virtual clock: training runs ahead of time, so a checkpoint first lets the ranks finish what they
were given, evaluations too, and then holds the updates of all clients in flight. A run that was
killed at any moment and resumed, on any number of ranks, gives the same bytes as an unbroken one;
rows that were written after the checkpoint are cut off. Wall clock: time goes on from where it was,
and clients in flight are sent the current version again (`Resumed` in the event log, so replays
follow it); error feedback begins anew. Such a run is not bit for bit what it would have been.

Timed checkpoints are written just before a merge, when most of the work is in. USR1, USR2, TERM
and Ctrl-C ask for one between any two events; then all ranks end with exit code 75. A resumed run
that is told to end before it has made a version fails instead, so that too short a time limit loops
at most once. A timed checkpoint that cannot be written is a warning; the run goes on and tries
again later. One that a signal asked for is tried again for `GIVE_UP_S`, then the run fails. The
result file is another matter: whatever cannot be written there ends the run (store.py).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.records import fields_of
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.fl.events import Resumed
from fedgmr_hpc.fl.snapshot import coordinator_state, restore_coordinator
from fedgmr_hpc.fl.updates import Assignment, Update
from fedgmr_hpc.network.links import VirtualClock
from fedgmr_hpc.runtime.server import Server
from fedgmr_hpc.runtime.wall.pool import LivePool
from fedgmr_hpc.storage.checkpoint import Tree, write_checkpoint
from fedgmr_hpc.storage.rows import CheckpointRow, UpdateRow
from fedgmr_hpc.storage.run_files import checkpoint_path
from fedgmr_hpc.transport.termination import StopRequest

log = logging.getLogger("fedgmr_hpc")
RETRY_S, GIVE_UP_S = 2.0, 10.0  # where a checkpoint that a signal asked for cannot be written


def server_state(server: Server) -> Tree:
    """All that changes while a server runs; only between events, when the ranks are idle."""
    pool, clock = server.pool, server.clock
    assert isinstance(clock, VirtualClock | LivePool)
    is_wall = isinstance(clock, LivePool)
    updates = {} if is_wall else pool.updates
    return {
        "coordinator": coordinator_state(server.coordinator),
        "clock": clock.state(),
        "ledger": server.ledger.state(),
        "log": server.log.state(),
        "now_s": server.now_s,
        "evaluator": server.evaluator.state(),
        "wall_s": server.wall_s(),
        "moved_bytes": server.moved_bytes,
        "unmerged": [fields_of(row) for row in server.unmerged],
        "in_flight": [] if is_wall else [task.as_json() for task in server.in_flight.values()],
        "updates": [{"rank": rank, **fields_of(update)} for update, rank in updates.values()],
        "remainders": pool.collect_remainders() if pool.is_placed and not is_wall else [],
    }


def restore_server(server: Server, state: Tree) -> None:
    """Takes a new server to a saved state, whose arrays become its own."""
    pool, clock = server.pool, server.clock
    assert isinstance(clock, VirtualClock | LivePool)
    restore_coordinator(server.coordinator, state["coordinator"])
    clock.restore(state["clock"])
    server.ledger.restore(state["ledger"])
    server.log.restore(state["log"])
    server.now_s, server.base_bytes = state["now_s"], state["moved_bytes"]
    if "evaluator" in state:  # which older checkpoints lack
        server.evaluator.restore(state["evaluator"])
    server.began_s = time.perf_counter() - state["wall_s"]
    server.unmerged = [UpdateRow(**row) for row in state["unmerged"]]
    server.in_flight = {task["client"]: Assignment(**task) for task in state["in_flight"]}
    for fields in state["updates"]:
        rank = fields.pop("rank")
        pool.updates[fields["client"]] = (Update(**fields), rank)
    server.first_event = None
    if isinstance(clock, LivePool):
        server.first_event = Resumed(clock.clock.now_s())
    elif pool.is_placed:
        pool.give_remainders(state["remainders"])


class Keeper:
    """Writes a run's checkpoints.

    Args:
        results: the result file.
        stop: whether a signal has asked the run to end.
        may_write: raises a RunError where another process has the run (ownership.py).
    """

    def __init__(
        self,
        results: Path,
        config: Config,
        stop: StopRequest,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        self.may_write = may_write
        self.path, self.config, self.stop = checkpoint_path(results), config, stop
        self.resumed_version: int | None = None
        self.version = -1  # of the last checkpoint
        self.tried_s, self.retry_s = time.perf_counter(), 0.0
        self.give_up_s = math.inf  # once a signal's checkpoint could not be written
        self.fault = ""  # of the last try

    def restore(self, server: Server, saved: Tree) -> None:
        """Takes a new server to what `take_checkpoint` read, which lacks its state afterwards."""
        began_s = time.perf_counter()
        state = saved.pop("server")
        self.version = self.resumed_version = state["coordinator"]["version"]
        restore_server(server, state)
        seconds = time.perf_counter() - began_s
        self._note_row(server, True, self.path.stat().st_size, 0.0, seconds)
        server.progress.note(f"resumed from {self.path} at version {self.version}")

    def ends_here(self, server: Server) -> bool:
        """To be asked between events: writes a checkpoint if it is time to; whether the run ends.

        Raises:
            RunError: it is to end, and has made no version since it was resumed, or no checkpoint
                can be written.
            OSError: the result file cannot be written.
        """
        name = self.stop.signal_name
        if name is None:
            if self._is_due(server):
                self._write(server)
            return False
        if time.perf_counter() < self.retry_s:
            return False
        if not self._write(server):
            self._give_up_in_time(name)
            return False
        if self.version == self.resumed_version:
            raise RunError(
                f"told to end by {name} before any version was made since the run was resumed: "
                "give the job more time",
                version=self.version,
            )
        return True

    def _give_up_in_time(self, name: str) -> None:
        """After a checkpoint that a signal asked for could not be written."""
        self.give_up_s = min(self.give_up_s, self.tried_s + GIVE_UP_S)
        if self.tried_s >= self.give_up_s:
            last = (
                f"the last is of version {self.version}" if self.version >= 0 else "there is none"
            )
            raise RunError(
                f"told to end by {name}, but no checkpoint can be written: {self.fault}; {last}"
            )

    def describe_end(self) -> str:
        """The status of a run that has ended here."""
        return f"checkpointed: version {self.version}, at {self.stop.signal_name}"

    def _is_due(self, server: Server) -> bool:
        """On the wall clock not while an evaluation is under way, which would be waited for, unless
        there never seems to be none: looks may follow closely on one another.
        """
        every_s, coordinator = self.config.checkpoint.every_s, server.coordinator
        since_s = time.perf_counter() - self.tried_s
        if every_s is None or since_s < every_s:
            return False
        is_late = since_s > 2 * every_s + RETRY_S
        is_calm = self.config.clock == "virtual" or not server.evaluator.is_waiting or is_late
        return is_calm and coordinator.admission.is_closing and coordinator.version > self.version

    def _write(self, server: Server) -> bool:
        """Whether it could be written."""
        began_s = time.perf_counter()
        server.settle()
        settled_s = time.perf_counter()
        tree = self._tree(server)
        try:
            num_bytes = write_checkpoint(self.path, tree, self.may_write)
        except OSError as error:
            self.fault = f"{self.path}: {error}"
            log.warning("no checkpoint: %s; the run goes on", self.fault)
            self.tried_s = time.perf_counter()
            self.retry_s = self.tried_s + RETRY_S
            return False
        self.tried_s, self.version = time.perf_counter(), server.coordinator.version
        wait_s, write_s = settled_s - began_s, self.tried_s - settled_s
        self._note_row(server, False, num_bytes, wait_s, write_s)
        server.progress.note(
            f"checkpoint | version {self.version} | {num_bytes / 1e6:.2f} MB | "
            f"waited {wait_s:.2f} s, written in {write_s:.2f} s"
        )
        return True

    def _tree(self, server: Server) -> Tree:
        return {
            "config": self.config.model_dump(mode="json"),
            "data_xxh3": server.data.fingerprint,
            "version": server.coordinator.version,
            "resumed_version": self.resumed_version,
            "server": server_state(server),
            "num_rows": server.writer.sync(),
        }

    def _note_row(
        self, server: Server, is_resume: bool, num_bytes: int, wait_s: float, write_s: float
    ) -> None:
        server.writer.append(
            CheckpointRow(
                version=self.version,
                now_s=server.now_s,
                is_resume=int(is_resume),
                bytes=num_bytes,
                wall_wait_s=wait_s,
                wall_write_s=write_s,
                wall_s=server.wall_s(),
            )
        )
