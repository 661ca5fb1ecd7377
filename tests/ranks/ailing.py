"""`python ailing.py AILMENT RANK [doctor arguments]`: `doctor` with one rank that is not well."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import fedgmr_hpc.doctor.checkup as checkup
import fedgmr_hpc.doctor.probes as probes
import fedgmr_hpc.doctor.rank as doctor
from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.transport.ping import Peer

DELAY_S = 0.05
WORK_LIMIT_S = 20.0


def stop(*args: Any) -> None:
    """This process stays, and does nothing any more."""
    os.kill(os.getpid(), signal.SIGSTOP)


def delayed(function: Callable[..., Any], delay_s: float = DELAY_S) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        time.sleep(delay_s)
        return function(*args, **kwargs)

    return wrapped


def ail(ailment: str) -> None:
    """Gives this process an ailment."""
    if ailment == "absent":
        doctor.make_transport = delayed(stop, 0.5)
    elif ailment == "silent":
        Peer.ping_all = stop  # type: ignore[assignment, method-assign]
    elif ailment == "slow":
        Peer._take_ping = delayed(Peer._take_ping)  # type: ignore[method-assign]
        LocalTraining.train = delayed(LocalTraining.train)  # type: ignore[method-assign]
    elif ailment == "never done":
        probes.digest = delayed(str, 1000.0)
    elif ailment == "other data":
        probes.digest = lambda data: "0123456789abcdef"


if __name__ == "__main__":
    if sys.argv[1] == "never done":
        checkup.WORK_LIMIT_S = WORK_LIMIT_S
    if os.environ["PMI_RANK"] == sys.argv[2]:
        ail(sys.argv[1])
    sys.exit(main(["doctor", *sys.argv[3:]]))
