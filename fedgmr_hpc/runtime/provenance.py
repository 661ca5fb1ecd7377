"""Where a result comes from: the checkout, versions, machine, job and environment that ran it."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from fedgmr_hpc.storage.process import num_cores
from fedgmr_hpc.transport.contract import Transport
from fedgmr_hpc.transport.ranks import name_library

ENVIRONMENT = re.compile(
    r"(MPI|OMPI|MPICH|MV2|PMI|PMIX|PALS|FLUX|SLURM|OMP|MKL|NCCL|UCX|CUDA|CUBLAS|CUDNN|NVIDIA|HDF5)_"
)
SECRETS = re.compile(r"JWT|TOKEN|SECRET|PASSWORD|KEY")  # SLURM_JWT lets its reader submit jobs


def collect_provenance(root: str | os.PathLike[str]) -> dict[str, str]:
    """Return what ran where: state of the checkout `root`, versions, machine, job, environment
    (JSON).
    """
    environment = {
        key: value
        for key, value in sorted(os.environ.items())
        if ENVIRONMENT.match(key) and not SECRETS.search(key)
    }
    return {
        **_git_state(Path(root)),
        **{f"version_{name}": _version(name) for name in ("torch", "numpy", "h5py", "mpi4py")},
        "version_python": platform.python_version(),
        "hostname": platform.node(),
        "platform": platform.platform(),
        "cpu_model": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_cores": str(num_cores()),
        "start_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "loaded_modules": os.environ.get("LOADEDMODULES", ""),
        "gpu_driver": _gpu_driver(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID", ""),
        "environment": json.dumps(environment),
    }


def rank_software(transport: Transport, device: str = "cpu", kernels: str = "") -> dict[str, str]:
    """Return what this rank runs on, as the texts of its row in the result: the transport, the MPI
    library, loaded modules, GPU and driver (both "" on the CPU), versions of the packages, and the
    kernels of compact layers ("" where none can be)."""
    library = getattr(transport, "library", "")
    is_cuda = device.startswith("cuda")
    packages = ("torch", "numpy", "h5py", "mpi4py")
    return {
        "transport": transport.name,
        "mpi_library": name_library(library) if library else "",
        "modules": os.environ.get("LOADEDMODULES", ""),
        "gpu": torch.cuda.get_device_name(device) if is_cuda else "",
        "gpu_driver": _gpu_driver() if is_cuda else "",
        "kernels": kernels,
        "versions": f"python {platform.python_version()} "
        + " ".join(f"{name} {_version(name)}" for name in packages),
    }


def _gpu_driver(path: str = "/proc/driver/nvidia/version") -> str:
    """`535.104.05`; "" where no driver says so."""
    with suppress(OSError):
        if found := re.search(r"Module.*?\s(\d+\.\d[.\d]*)", Path(path).read_text()):
            return found.group(1)
    return ""


def _git_state(root: Path) -> dict[str, str]:
    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return ran.stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": "unknown", "git_dirty": "unknown"}
    return {"git_commit": commit, "git_dirty": str(bool(changes)).lower()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    with suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()
