"""What a benchmark has run on, as part of its JSON line."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from fedgmr_hpc.results.gate.perf_log import system_of
from fedgmr_hpc.runtime.provenance import collect_provenance
from fedgmr_hpc.transport.launchers import mpirun_command


def describe_system() -> dict[str, str]:
    """Return host, processor, cores, versions and commit, and when it was."""
    return system_of(collect_provenance(Path(__file__).resolve().parents[2]), _mpi())


def _mpi() -> str:
    """Return the MPI of mpirun, `MPICH 5.0.2`; "unknown" where it does not say."""
    try:
        said = subprocess.run(
            [mpirun_command(1)[0], "--version"], capture_output=True, text=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    found = re.search(r"(HYDRA|Open MPI|Intel).*?(\d+\.\d[.\d]*)", said, re.DOTALL)
    return f"{found[1].replace('HYDRA', 'MPICH')} {found[2]}" if found else "unknown"
