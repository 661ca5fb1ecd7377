"""When a checkpoint is written.

A timed checkpoint is written just before a merge, when most of the work is in. USR1, USR2, TERM,
Ctrl-C and callbacks ask for one between any two events; then all ranks exit with code 75. A resumed
run that a scheduler asks to stop before it has made a version fails instead, so that a time limit
that is too short cannot requeue a job for ever. A timed checkpoint that cannot be written is a
warning, and is tried again later. One that was asked for is tried again for `GIVE_UP_S`, then the
run fails. The result file is another matter: whatever cannot be written there ends the run
(storage/writer.py).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.runtime.checkpoints.state import restore_server, server_state
from fedgmr_hpc.runtime.server import Server
from fedgmr_hpc.storage.checkpoint import Tree, write_checkpoint
from fedgmr_hpc.storage.rows import CheckpointRow
from fedgmr_hpc.storage.run_files import checkpoint_path
from fedgmr_hpc.transport.termination import StopRequest

log = logging.getLogger("fedgmr_hpc")
RETRY_S, GIVE_UP_S = 2.0, 10.0  # where a checkpoint that a signal asked for cannot be written


class CheckpointManager:
    """Writes a run's checkpoints, and says when the run has to stop.

    Args:
        results: the result file.
        stop: whether a signal or a callback has asked the run to end.
        may_write: raises a RunError where another process has the run (storage/ownership.py).
    """

    def __init__(
        self,
        results: Path,
        config: Config,
        stop: StopRequest,
        may_write: Callable[[], None] = lambda: None,
        kernels: str = "",
    ) -> None:
        self.may_write, self.kernels = may_write, kernels
        self.path, self.config, self.stop = checkpoint_path(results), config, stop
        self.resumed_version: int | None = None
        self.version = -1  # of the last checkpoint
        self.tried_s, self.retry_s = time.perf_counter(), 0.0
        self.give_up_s = math.inf  # once a signal's checkpoint could not be written
        self.fault = ""  # of the last try

    def restore(self, server: Server, saved: Tree) -> None:
        """Take a new server to the state that `adopt_checkpoint` read, which leaves `saved`."""
        began_s = time.perf_counter()
        state = saved.pop("server")
        self.version = self.resumed_version = state["coordinator"]["version"]
        restore_server(server, state)
        seconds = time.perf_counter() - began_s
        self._note_row(server, True, self.path.stat().st_size, 0.0, seconds)
        server.progress.note(f"resumed from {self.path} at version {self.version}")

    def should_stop(self, server: Server) -> bool:
        """Write a checkpoint where one is due; to be asked between events.

        Returns:
            Whether the run was asked to stop, and its checkpoint is on the disk.

        Raises:
            RunError: a scheduler asks the run to stop, but it has made no version since it was
                resumed, or no checkpoint can be written.
            OSError: the result file cannot be written.
        """
        cause = self.stop.cause
        if cause is None:
            if self._is_due(server):
                self._write(server)
            return False
        if time.perf_counter() < self.retry_s:
            return False
        if not self._write(server):
            self._give_up_in_time(cause)
            return False
        if self.version == self.resumed_version and self.stop.is_by_scheduler:
            raise RunError(
                f"stopped by {cause} before any version was made since the run was resumed: "
                "give the job more time",
                version=self.version,
            )
        return True

    def _give_up_in_time(self, cause: str) -> None:
        """Fail where a checkpoint that was asked for could not be written for too long."""
        self.give_up_s = min(self.give_up_s, self.tried_s + GIVE_UP_S)
        if self.tried_s >= self.give_up_s:
            last = (
                f"the last is of version {self.version}" if self.version >= 0 else "there is none"
            )
            raise RunError(
                f"stopped by {cause}, but no checkpoint can be written: {self.fault}; {last}"
            )

    def describe_stop(self) -> str:
        """Return the status of a run that has stopped here."""
        return f"checkpointed: version {self.version}, at {self.stop.cause}"

    def _is_due(self, server: Server) -> bool:
        """Return whether the time for a timed checkpoint has come.

        A checkpoint waits for evaluations under way. On the wall clock that would stop time, so it
        is put off until none is; not for ever, as looks may follow closely on one another.
        """
        every_s, coordinator = self.config.checkpoint.every_s, server.coordinator
        since_s = time.perf_counter() - self.tried_s
        if every_s is None or since_s < every_s:
            return False
        is_late = since_s > 2 * every_s + RETRY_S
        is_calm = self.config.clock == "virtual" or not server.evaluator.is_waiting or is_late
        return is_calm and coordinator.admission.is_closing and coordinator.version > self.version

    def _write(self, server: Server) -> bool:
        """Write a checkpoint; return whether that was possible."""
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
            "kernels": self.kernels,
            "version": server.coordinator.version,
            "resumed_version": self.resumed_version,
            "server": server_state(server),
            "num_rows": server.writer.sync(),
        }

    def _note_row(
        self, server: Server, is_resume: bool, num_bytes: int, wait_s: float, write_s: float
    ) -> None:
        row = CheckpointRow(
            version=self.version,
            now_s=server.now_s,
            is_resume=int(is_resume),
            bytes=num_bytes,
            wall_wait_s=wait_s,
            wall_write_s=write_s,
            wall_s=server.wall_s(),
        )
        server.writer.append(row)
        if not is_resume:
            server.tell.checkpointed(row)
