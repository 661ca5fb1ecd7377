"""What each signal does, by the table of transport/termination.py."""

from __future__ import annotations

import signal
import subprocess

import pytest

from fedgmr_hpc.transport.termination import (
    ALL_SIGNALS,
    StopRequest,
    TerminationRequested,
    held_back,
    raising_on_signals,
    wait_for_exit,
)


@pytest.fixture(autouse=True)
def _handlers_come_back():  # type: ignore[no-untyped-def]
    before = {number: signal.getsignal(number) for number in ALL_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_ends_the_launcher_and_further_ones_are_not_heard() -> None:
    with raising_on_signals():
        process = subprocess.Popen(["sh", "-c", "sleep 0.3; kill -USR1 $PPID; exec sleep 60"])
        with pytest.raises(TerminationRequested, match="SIGUSR1"):
            wait_for_exit(process)
        signal.raise_signal(signal.SIGUSR2)
    assert process.poll() == -signal.SIGTERM


def test_while_ranks_gather_a_signal_ends_them_at_once() -> None:
    """In C, where no handler of Python's runs, only what the system does by itself is heard."""
    (stop := StopRequest()).install()
    handler = signal.getsignal(signal.SIGTERM)
    with stop.suspended():
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == 0
        assert signal.getsignal(signal.SIGUSR2) == handler  # a checkpoint can wait
    assert signal.getsignal(signal.SIGTERM) == handler


def test_the_first_signal_is_noted_and_installing_forgets_it() -> None:
    (stop := StopRequest()).install()
    assert not stop.should_stop
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGTERM)
    assert stop.should_stop and stop.cause == "SIGUSR2"
    stop.install()
    assert not stop.should_stop


def test_before_a_run_begins_ctrl_c_interrupts_and_at_the_end_nothing_does() -> None:
    (stop := StopRequest()).install()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    stop.ignore()
    for number in ALL_SIGNALS:
        signal.raise_signal(number)
    assert not stop.should_stop


def test_signals_held_back_come_when_all_is_done() -> None:
    (stop := StopRequest()).install()
    with held_back():
        signal.raise_signal(signal.SIGTERM)
        assert not stop.should_stop
    assert stop.should_stop
