"""Run a study's missing and failed cells, several at a time, each in processes of its own.

Every cell is a process (or mpirun's ranks) with one thread each, in a session of its own, so that
Ctrl-C reaches this process, which ends them. A cell whose lock another process holds, a
second `study run` or the orphan of a killed one, is waited for. A cell that was cut short or has
failed resumes from its checkpoint where it has one; it starts again where it has none, has diverged
or failed twice without a newer one. Nothing of a finished cell is touched, and what is not an
unfinished result of the cell itself is moved aside. GPUs are dealt to cells that run at a time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedgmr_hpc.config.files import render_config
from fedgmr_hpc.config.overrides import as_override
from fedgmr_hpc.storage.checkpoint import EXIT_CHECKPOINTED
from fedgmr_hpc.storage.run_files import config_path, error_path, output_path
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.locks import CellLock, acquire_lock
from fedgmr_hpc.study.notices import warn
from fedgmr_hpc.study.running.devices import dealt, visible_devices
from fedgmr_hpc.study.states import (
    ENDED,
    CellState,
    can_resume,
    make_room,
    read_state,
    result_path,
    saved_version,
    write_error,
)
from fedgmr_hpc.transport.launchers import mpirun_command
from fedgmr_hpc.transport.termination import handling, interrupt

POLL_S = 0.1
GRACE_S = 10.0  # what a job gets to close its file after SIGTERM
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Launcher = Callable[[int, list[str]], list[str]]  # ranks, launch's words -> command


@dataclass(frozen=True)
class Job:
    """A cell's run: its processes, its files and its lock.

    Attributes:
        slot: Its place among those that run at a time.
        resumed_version: Of the checkpoint from which a failed cell goes on; None for others.
    """

    cell: Cell
    process: subprocess.Popen[bytes]
    path: Path
    lock: CellLock
    slot: int
    resumed_version: int | None

    @property
    def output(self) -> Path:
        """The file of what it prints."""
        return output_path(self.path)


def start_here(num_ranks: int, words: list[str]) -> list[str]:
    """Return the command for `python -m fedgmr_hpc.launch WORDS` on ranks of this machine."""
    python = [sys.executable, "-m", "fedgmr_hpc.launch", *words]
    if num_ranks == 1:
        return python
    return [*mpirun_command(num_ranks), *python]


@dataclass
class Queue:
    """Cells that wait, run, are done and have failed; `on_change` is called at every turn, and
    `more` for further cells when one has ended and none waits. `say` takes a line on what was found
    and moved.
    """

    folder: Path
    num_ranks: int
    max_parallel: int
    on_change: Callable[[Queue], None] = lambda queue: None
    launcher: Launcher = start_here
    more: Callable[[], Sequence[Cell]] = tuple
    waiting: list[Cell] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    done: list[Cell] = field(default_factory=list)
    failed: list[Cell] = field(default_factory=list)
    is_stopping: bool = False
    is_terminating: bool = False
    say: Callable[[str], None] = warn

    def run(self, cells: Sequence[Cell]) -> bool:
        """Run `cells` to their end; return whether all are done.

        Raises:
            KeyboardInterrupt: After SIGINT or SIGTERM, once every job has ended.
        """
        with handling(signal.SIGTERM, interrupt):
            return self.drain(cells)

    def drain(self, cells: Sequence[Cell]) -> bool:
        """Do what `run` does, but leave SIGTERM to the caller."""
        self.waiting += _one_each(cells)
        try:
            while self.waiting or self.jobs:
                if self._collect() and not self.waiting:
                    self.waiting += _one_each(self.more())
                if self.is_stopping:
                    self.waiting.clear()
                self._start_jobs()
                self.on_change(self)
                time.sleep(POLL_S)
        finally:
            self._end_jobs()
        return not self.failed

    def stop(self) -> None:
        """Start no more, and send USR1 to the process started for each job, but not to its
        children.
        """
        self.is_stopping = True
        for job in self.jobs:
            with suppress(ProcessLookupError):
                os.kill(job.process.pid, signal.SIGUSR1)

    def _start_jobs(self) -> None:
        """Start cells while there is room; those that another process runs keep waiting."""
        for cell in list(self.waiting):
            if self.is_stopping or len(self.jobs) >= self.max_parallel:
                return
            lock = acquire_lock(self.folder, cell)
            if lock is None:
                continue
            self.waiting.remove(cell)
            state = read_state(self.folder, cell, lock_held=True)
            if state.status in ENDED:
                output_path(state.path).unlink(missing_ok=True)  # an orphan's
                lock.release()
                self.done.append(cell)
            elif can_resume(state) or self._make_room(state):
                self.jobs.append(self._start(cell, state, lock))
                if self.is_stopping:  # a signal came before there was a job to send it to
                    self.stop()
            else:
                lock.release()
                self.failed.append(cell)

    def _make_room(self, state: CellState) -> bool:
        """Clear the way for a new start; return whether that was possible, else save the error."""
        try:
            kept = make_room(state.path, is_leftover=state.result is not None)
        except OSError as error:
            reason = f"{state.path} cannot be moved aside: {error.strerror}"
            error_path(state.path).write_text(f"{reason}\n\n{state.error}\n")
            return False
        if kept is not None:
            self.say(f"{state.error}; moved to {kept.name}, the cell runs again")
        return True

    def _start(self, cell: Cell, state: CellState, lock: CellLock) -> Job:
        path = result_path(self.folder, cell)
        resumed_version = saved_version(path) if state.status == "failed" else None
        error_path(path).unlink(missing_ok=True)
        config = config_path(path)
        config.write_text(render_config(cell.config))
        words = ["--config", str(config), "--resume", as_override("results.path", str(path))]
        taken = {job.slot for job in self.jobs}
        slot = next(each for each in range(self.max_parallel) if each not in taken)
        gpus = dealt(visible_devices(os.environ), self.num_ranks, slot)
        with output_path(path).open("wb") as output:
            process = subprocess.Popen(
                self.launcher(self.num_ranks, [*words, "progress=quiet"]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **dict.fromkeys(THREADS, "1"), **gpus},
                start_new_session=True,
                pass_fds=(lock.fd,),
            )
        return Job(cell, process, path, lock, slot, resumed_version)

    def _collect(self) -> bool:
        """Conclude jobs that have ended; return whether there were any."""
        ended = [job for job in self.jobs if job.process.poll() is not None]
        for job in ended:
            self.jobs.remove(job)
            (self.done if self._conclude(job) else self.failed).append(job.cell)
        return bool(ended)

    def _conclude(self, job: Job) -> bool:
        """Save the error of a job that failed by itself; return whether its cell has ended."""
        code = job.process.returncode
        is_done = code == 0 and read_state(self.folder, job.cell, lock_held=True).status == "done"
        stopped = (EXIT_CHECKPOINTED, -signal.SIGTERM, *[-signal.SIGUSR1] * self.is_stopping)
        if not (is_done or self.is_terminating or code in stopped):
            output = job.output.read_text(errors="replace")
            write_error(job.path, output, code, job.resumed_version)
            is_done = read_state(self.folder, job.cell, lock_held=True).status in ENDED
        job.output.unlink()
        job.lock.release()
        return is_done

    def _end_jobs(self) -> None:
        """End what still runs; the next run resumes or repeats it."""
        for job in self.jobs:
            _signal(job.process, signal.SIGTERM)
        for job in self.jobs:
            try:
                job.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                _signal(job.process, signal.SIGKILL)
                job.process.wait()
            job.output.unlink(missing_ok=True)
            job.lock.release()
        self.jobs.clear()


def run_cell(
    folder: Path, cell: Cell, num_ranks: int, launcher: Launcher = start_here
) -> CellState:
    """Run one cell to its end, unless it is done.

    At USR1 or TERM it sends USR1 on: the cell ends `interrupted`, with a checkpoint to resume from.
    One that has not been started by then, since another process runs it, say, never is.

    Args:
        folder: Of the cells.
        launcher: Makes the command that starts the ranks.

    Returns:
        The cell's state afterwards.

    Raises:
        KeyboardInterrupt: After TERM.
    """

    def on_signal(number: int, frame: object) -> None:
        queue.is_terminating |= number == signal.SIGTERM
        queue.stop()

    queue = Queue(folder, num_ranks, max_parallel=1, launcher=launcher)
    with handling(signal.SIGUSR1, on_signal), handling(signal.SIGTERM, on_signal):
        queue.drain([cell])
    if queue.is_terminating:
        raise KeyboardInterrupt("terminated")
    state = read_state(folder, cell, lock_held=True)
    if queue.done or queue.failed or state.status in ENDED:
        return state
    return replace(state, error=state.error or "told to stop before it began")


def _one_each(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells without those that mean the same run."""
    return list({cell.digest: cell for cell in cells}.values())


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
