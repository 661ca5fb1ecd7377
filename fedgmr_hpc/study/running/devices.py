"""Deal the GPUs of a machine to cells that run at a time.

A run's client ranks take the devices that they see in turn, from the first one on. So each cell
sees all of them, in an order that begins where the cell before it ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices(env: Mapping[str, str], dev: Path = Path("/dev")) -> list[str]:
    """Return the names of the GPUs that a process sees, as CUDA_VISIBLE_DEVICES has them.

    Args:
        env: Its environment.
        dev: The folder of device files; those that it may not open do not count.
    """
    if VISIBLE in env:
        names = [name.strip() for name in env[VISIBLE].split(",")]
        return [] if {"", "-1"} & {*names} else names
    files = [path for path in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    usable = [path for path in files if os.access(path, os.R_OK | os.W_OK)]
    return [str(index) for index in range(len(usable))]


def dealt(devices: list[str], num_ranks: int, slot: int) -> dict[str, str]:
    """Return the variables for the cell in a slot; none where there is nothing to deal.

    Args:
        num_ranks: Of each cell; the server of several takes no GPU.
        slot: The cell's place among those that run at a time, from 0.
    """
    if len(devices) < 2:
        return {}
    first = slot * max(1, num_ranks - 1) % len(devices)
    return {VISIBLE: ",".join([*devices[first:], *devices[:first]])} if first else {}
