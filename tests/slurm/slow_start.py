"""The real launch on a slow file system: it takes until a signal comes to begin or go on."""

from __future__ import annotations

import sys
import time
from typing import Any

import fedgmr_hpc.launch as launch
import fedgmr_hpc.runtime.roles as roles
from fedgmr_hpc.transport.termination import STOP_REQUEST

SLOW_S = 120.0
prepare = roles.prepare_experiment


def prepare_slowly(*arguments: Any) -> Any:
    until_s = time.monotonic() + SLOW_S
    while not STOP_REQUEST.should_stop and time.monotonic() < until_s:
        time.sleep(0.1)
    return prepare(*arguments)


roles.prepare_experiment = prepare_slowly
sys.exit(launch.main(sys.argv[1:]))
