"""The real launch on a slow file system: it takes until a signal comes to begin or go on."""

from __future__ import annotations

import sys
import time
from typing import Any

import fedgmr_hpc.launch as launch
import fedgmr_hpc.runtime.preparation as preparation
from fedgmr_hpc.transport.termination import STOP_REQUEST

SLOW_S = 120.0
prepare = preparation.prepare_experiment


def prepare_slowly(*arguments: Any) -> Any:
    until_s = time.monotonic() + SLOW_S
    while not STOP_REQUEST.should_stop and time.monotonic() < until_s:
        time.sleep(0.1)
    return prepare(*arguments)


preparation.prepare_experiment = prepare_slowly
sys.exit(launch.main(sys.argv[1:]))
