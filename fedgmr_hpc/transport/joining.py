"""How this process joins the other ranks: the transport, and what may be wrong with the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from fedgmr_hpc.config.choices.registry import TRANSPORTS
from fedgmr_hpc.config.messages import must, unknown_choice
from fedgmr_hpc.transport.contract import Transport
from fedgmr_hpc.transport.ranks import Launch

GPUS = "proc/driver/nvidia/gpus"  # a folder a GPU, also of those that a job may not use
SHARED_BYTES = 5300 << 10  # of a rank in /dev/shm (MPICH 5: 5,270 KiB of each of 2, 4 and 8 ranks)


def make_transport(kind: str, launch: Launch, device: str = "auto") -> Transport | None:
    """Return the transport of this process; None for server and clients in one process.

    Raises:
        ValueError: the launcher and the transport do not fit, the device, the MPI library or the
            network's name is not there.
        TransportError: the ranks do not find one another.
    """
    if launch.size == 1:
        if kind not in ("auto", "inproc"):
            raise ValueError(unknown_choice("transport", kind, ("auto", "inproc"), "one rank runs"))
        return None
    if kind == "auto":
        kind = "gloo" if launch.launcher == "torchrun" else "mpi"
    if kind == "inproc":
        choices = [name for name in TRANSPORTS if name != "inproc"]
        when = f"{launch.size} ranks run"
        raise ValueError(unknown_choice("transport", kind, choices, when))
    if kind in ("gloo", "nccl") and launch.launcher != "torchrun":
        when = f"{launch.launcher} starts the ranks"
        raise ValueError(unknown_choice("transport", kind, ("auto", "mpi"), when))
    if kind == "mpi":
        check_shared_memory(launch)
    joined: Transport = _joining(kind)(launch, device)
    return joined


def _joining(kind: str) -> Callable[[Launch, str], Transport]:
    """Return what joins the ranks by a transport: registered by its module, or by a plug-in."""
    try:
        return cast("Callable[[Launch, str], Transport]", TRANSPORTS[kind])
    except (ImportError, RuntimeError) as error:
        if kind != "mpi":
            raise
        found = str(error).splitlines()[-1]
        raise ValueError(
            f"transport must not be 'mpi' when mpi4py finds no MPI ({found}): load the site's "
            "module for it, or start the ranks with torchrun, which uses gloo"
        ) from None


def check_shared_memory(launch: Launch, folder: str = "/dev/shm") -> None:
    """Refuse a /dev/shm in which MPICH has no room for what the ranks of a host share: it would
    die of a signal without a word of it.

    By size, not by what is free: ranks that were faster have taken their part already.

    Raises:
        ValueError: so it is.
    """
    is_mpich = launch.launcher == "mpi" and launch.sources[:1] == ("PMI_RANK",)
    if not is_mpich or launch.local_size is None or not os.path.isdir(folder):
        return
    stat = os.statvfs(folder)
    size_bytes, need_bytes = stat.f_blocks * stat.f_frsize, launch.local_size * SHARED_BYTES
    if size_bytes < need_bytes:
        need = f"have {need_bytes / 1e6:.0f} MB for {launch.local_size} ranks of MPICH"
        line = must(str(folder), need, found=f"{size_bytes / 1e6:.0f} MB")
        raise ValueError(f"{line}: enlarge it by docker run --shm-size or mount -o remount,size=")


def hidden_devices_note(num_visible: int, requested: str, root: str = "/") -> str:
    """Say that this host has GPUs of which this process sees none; "" where that is wanted."""
    if num_visible or requested == "cpu" or not any(Path(root, GPUS).glob("*")):
        return ""
    return (
        "GPUs are here and none is visible: ask for them (gpus_per_node of the site, sbatch "
        "--gpus-per-node), look at CUDA_VISIBLE_DEVICES and at torch's build, or say device=cpu"
    )
