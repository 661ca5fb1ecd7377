"""The real launch on a slow file system: some seconds go by before the run begins or goes on."""

from __future__ import annotations

import sys
import time
from typing import Any

import fedgmr_hpc.launch as launch

SLOW_S = 5.0
prepare = launch.prepare_experiment


def prepare_slowly(*arguments: Any) -> Any:
    time.sleep(SLOW_S)
    return prepare(*arguments)


launch.prepare_experiment = prepare_slowly
sys.exit(launch.main(sys.argv[1:]))
