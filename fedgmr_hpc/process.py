"""What the operating system says about this process."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def resident_bytes() -> int:
    """Resident memory now; its peak where the system does not tell (outside Linux)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def private_bytes() -> int:
    """Resident memory that is neither files nor shared: what the program itself holds."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return resident_bytes()
    _, resident, shared = statm.read_text().split()[:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
