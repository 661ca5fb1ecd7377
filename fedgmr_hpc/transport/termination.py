"""Every signal that ends or checkpoints something, and what handles it.

    process                         signal               what happens
    a rank                          USR1 USR2 TERM       noted: the run is checkpointed between two
                                                         events, and all ranks exit with code 75
    ... once its run has begun      Ctrl-C               noted likewise; before, it interrupts
    ... Ctrl-C over 1 s after one   Ctrl-C               interrupts (exit code 1)
    a run from Python               Ctrl-C               noted likewise, until the run has ended
    ... while the ranks gather      TERM Ctrl-C          the system ends it at once
    ... about to exit               all of them          nothing
    a rank of a replay              TERM                 interrupts, as Ctrl-C does: no checkpoints
    a scaling study                 all of them          `TerminationRequested`: its launcher is
                                                         terminated; later signals are ignored
    a study, its local jobs         TERM                 interrupts, as Ctrl-C does
    ... while jobs are submitted    TERM Ctrl-C          held back until all are
    a cell of a study               USR1 TERM            USR1 is passed on to the cell's launcher
    ... as a Slurm job              USR2                 nothing: it is meant for the ranks

A handler of Python runs between two bytecodes, never inside a call to C. So the handlers here only
leave a note or raise, and where ranks wait for one another in C, the system's own take their place.
"""

from __future__ import annotations

import math
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHECKPOINT_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
ALL_SIGNALS = (signal.SIGINT, *CHECKPOINT_SIGNALS)
REPEAT_S = 1.0  # between one Ctrl-C and another that a person has meant
GRACE_S = 30.0  # what a launcher gets to end its ranks


class TerminationRequested(BaseException):
    """A signal, by its name, asks this process to end."""


class StopRequest:
    """Whether a signal, or a callback, has asked this process to checkpoint and stop.

    A launcher may pass on a Ctrl-C that the terminal has sent to its ranks, too, so only one that
    comes more than `REPEAT_S` after the first interrupts at once.

    Attributes:
        cause: the name of the first signal that asked, or on whose behalf; None before.
    """

    def __init__(self) -> None:
        self.cause: str | None = None
        self._interrupted_s = math.inf

    @property
    def should_stop(self) -> bool:
        """Whether anything has asked."""
        return self.cause is not None

    @property
    def is_by_scheduler(self) -> bool:
        """Whether it was a signal as schedulers send it, whose jobs may begin again by
        themselves.
        """
        return self.cause in {each.name for each in CHECKPOINT_SIGNALS}

    @property
    def is_by_person(self) -> bool:
        """Whether it was Ctrl-C."""
        return self.cause == signal.SIGINT.name

    def ask(self, cause: str) -> None:
        """Ask to checkpoint and stop, unless something has asked before."""
        self.cause = self.cause or cause

    def install(self) -> None:
        """Forget what was asked, and note USR1, USR2 and TERM from now on."""
        self.cause, self._interrupted_s = None, math.inf
        for number in CHECKPOINT_SIGNALS:
            signal.signal(number, self._note)

    def install_ctrl_c(self) -> None:
        """Note Ctrl-C from now on, too: before a run begins there is nothing to checkpoint."""
        signal.signal(signal.SIGINT, self._note)

    @contextmanager
    def noting_ctrl_c(self) -> Iterator[None]:
        """Note Ctrl-C meanwhile, in the main thread, which alone can handle it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with handling(signal.SIGINT, self._note):
            yield

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave TERM and Ctrl-C to the system meanwhile, for a wait in C with nothing to save."""
        with handling(signal.SIGTERM, signal.SIG_DFL), handling(signal.SIGINT, signal.SIG_DFL):
            yield

    def ignore(self) -> None:
        """Ignore every signal from now on: Python's shutdown would let one kill a process that is
        done.
        """
        for number in ALL_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: object) -> None:
        self.ask(signal.Signals(number).name)
        if number == signal.SIGINT:
            if time.monotonic() - self._interrupted_s > REPEAT_S:
                raise KeyboardInterrupt
            self._interrupted_s = min(self._interrupted_s, time.monotonic())


STOP_REQUEST = StopRequest()  # of this process


def interrupt(number: int, frame: object) -> None:
    """Handle a signal as Ctrl-C is handled."""
    raise KeyboardInterrupt("terminated")


def interrupt_on_term() -> None:
    """Handle TERM, which schedulers send before they kill, as Ctrl-C from now on."""
    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def handling(number: int, handler: Any) -> Iterator[None]:
    """Give a signal another handler for a while."""
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


@contextmanager
def held_back() -> Iterator[None]:
    """Let TERM and Ctrl-C wait, also for processes started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def raising_on_signals() -> Iterator[None]:
    """Raise `TerminationRequested` at the first signal meanwhile, and ignore later ones."""

    def request(number: int, frame: object) -> None:
        for each in ALL_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise TerminationRequested(signal.Signals(number).name)

    before = {each: signal.signal(each, request) for each in ALL_SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def wait_for_exit(process: subprocess.Popen[bytes]) -> int:
    """Wait for a launcher; terminate it where this process is asked to end meanwhile.

    Returns:
        Its exit code.

    Raises:
        TerminationRequested: this process was asked to end; the launcher has ended.
    """
    try:
        return process.wait()
    except TerminationRequested:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
