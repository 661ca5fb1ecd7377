"""Who am I: what the launcher's environment says, checked against what MPI says, on one line.

Pure functions of their arguments; no MPI, no torch, no scheduler is asked. The order of the table
below is the order of belief: MPI launchers, then torchrun, then SLURM inside a step of `srun`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fedgmr_hpc.config.messages import must_be, unknown_choice

Launcher = Literal["none", "mpi", "torchrun", "slurm"]

# SLURM numbers the steps that `srun` did not start (batch, extern, interactive, pending) from here
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0


class _Family(NamedTuple):
    """The variables one launcher sets; of several names the first present counts."""

    launcher: Launcher
    rank: str
    sizes: tuple[str, ...]
    local_ranks: tuple[str, ...]
    local_sizes: tuple[str, ...] = ()


_SLURM_SIZES = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
_SLURM = _Family("slurm", "SLURM_PROCID", _SLURM_SIZES, ("SLURM_LOCALID",))
_FAMILIES = (
    _Family(
        "mpi",
        "MV2_COMM_WORLD_RANK",
        ("MV2_COMM_WORLD_SIZE",),
        ("MV2_COMM_WORLD_LOCAL_RANK",),
        ("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Family(
        "mpi",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Family(
        "mpi",
        "PALS_RANKID",
        ("PMI_SIZE",),
        ("PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
        ("PMI_LOCAL_SIZE",),
    ),
    _Family("mpi", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",), ("FLUX_TASK_LOCAL_ID",)),
    _Family(
        "mpi",
        "PMI_RANK",
        ("PMI_SIZE",),
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ),
    _Family("mpi", "PMIX_RANK", _SLURM_SIZES, ("SLURM_LOCALID",)),
    _Family("torchrun", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",)),
    _SLURM,
)


@dataclass(frozen=True, slots=True)
class Launch:
    """What the environment says about this process."""

    launcher: Launcher
    rank: int
    size: int
    local_rank: int  # among the ranks of this host
    local_size: int | None  # None: the launcher does not say
    sources: tuple[str, ...]  # the variables it was read from


@dataclass(frozen=True, slots=True)
class Identity:
    """One rank's answer to "who am I"; every rank prints it when it starts."""

    rank: int
    size: int
    local_rank: int
    host: str
    pid: int
    device: str  # "cpu" or "cuda:<index>"
    launcher: Launcher
    transport: str
    threads: int  # torch threads
    note: str = ""  # what is special about the device

    def __str__(self) -> str:
        text = (
            f"rank {self.rank} of {self.size}: host {self.host}, pid {self.pid}, "
            f"local rank {self.local_rank}, device {self.device}, threads {self.threads}, "
            f"launcher {self.launcher}, transport {self.transport}"
        )
        return f"{text} ({self.note})" if self.note else text


def detect_launch(env: Mapping[str, str]) -> Launch:
    """Return rank and size from the launcher's variables in `env`; rank 0 of 1 where there are
    none.

    Raises:
        ValueError: variables that contradict one another, named with their values.
    """
    for family in _FAMILIES:
        if family.rank in env and (family is not _SLURM or _is_slurm_step(env)):
            return _read_family(family, env)
    return Launch("none", 0, 1, 0, 1, ())


def check_world(launch: Launch, comm_size: int, library: str) -> None:
    """Refuse a COMM_WORLD that is not the world the launcher declared.

    Args:
        launch: what the environment says; "none" declares nothing.
        comm_size: size of COMM_WORLD.
        library: description of the MPI library in use (`MPI.Get_library_version()`).

    Raises:
        ValueError: the sizes differ; names the MPI of the launcher and that of the process.
    """
    if launch.launcher == "none" or launch.size == comm_size:
        return
    raise ValueError(
        f"{launch.sources[1]} declares {launch.size} ranks, COMM_WORLD has {comm_size}: the "
        f"launcher is of {_launcher_family(launch)}, mpi4py runs on {name_library(library)}. "
        "Start with the mpirun of that MPI library (under srun: the --mpi plugin it needs), or "
        "point MPI4PY_LIBMPI to the launcher's library."
    )


def name_library(library: str) -> str:
    """Return the name in an MPI library's long description, e.g. "Open MPI v5.0.11"."""
    return " ".join(library.splitlines()[0].split(",")[0].split())


def make_identity(
    launch: Launch,
    *,
    rank: int,
    size: int,
    transport: str,
    num_visible: int,
    threads: int,
    requested: str = "auto",
) -> Identity:
    """Return this process among the ranks of `transport`.

    Args:
        launch: what the environment says.
        rank: rank in the transport.
        size: number of ranks in the transport.
        transport: name of the transport.
        num_visible: CUDA devices this process sees, 0 for a CPU run.
        threads: torch threads of this rank.
        requested: as for `choose_device`.

    Raises:
        ValueError: as `choose_device`.
    """
    device = choose_device(launch, num_visible, requested)
    return Identity(
        rank=rank,
        size=size,
        local_rank=launch.local_rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=device,
        launcher=launch.launcher,
        transport=transport,
        threads=threads,
        note=sharing_note(launch, num_visible) if device != "cpu" else "",
    )


def choose_device(launch: Launch, num_visible: int, requested: str = "auto") -> str:
    """Return the device that this rank's clients compute on: "cpu" or "cuda:<index>".

    The client ranks of a host take its devices in turn, starting again after the last one. Where
    the site gives each process a device of its own, that one is cuda:0. The server, rank 0 of
    several, computes on the CPU and takes no device.

    Args:
        launch: what the environment says; from it the local rank.
        num_visible: CUDA devices this process sees.
        requested: "auto" (a CUDA device where there is one), "cpu" or "cuda".

    Raises:
        ValueError: another `requested`, or "cuda" for a rank that needs a device and sees none.
    """
    if requested not in ("auto", "cpu", "cuda"):
        raise ValueError(unknown_choice("device", requested, ("auto", "cpu", "cuda")))
    if requested == "cpu" or (launch.rank == 0 and launch.size > 1):
        return "cpu"
    if num_visible:
        return f"cuda:{_client_index(launch) % num_visible}"
    if requested == "cuda":
        when = f"rank {launch.rank} sees no CUDA device"
        raise ValueError(unknown_choice("device", requested, ("auto", "cpu"), when))
    return "cpu"


def take_slice(launch: Launch, env: MutableMapping[str, str]) -> None:
    """Leave this process one of several MIG slices: CUDA shows a process only the first it names.

    Client ranks of a host take them in turn, as they take whole devices. To be called before CUDA
    is asked for anything. `env`: its CUDA_VISIBLE_DEVICES names the slices, as Slurm's does.
    """
    slices = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if len(slices) > 1 and all(name.startswith("MIG-") for name in slices):
        env["CUDA_VISIBLE_DEVICES"] = slices[max(0, _client_index(launch)) % len(slices)]


def sharing_note(launch: Launch, num_visible: int) -> str:
    """Say that client ranks of this host share devices; "" where they do not, or where that is
    unknown.

    Ranks that see one device each may be isolated or share it: the launcher does not say which.
    """
    if launch.local_size is None or num_visible < 2:
        return ""
    num_clients = launch.local_size - _is_with_server(launch)
    if num_clients <= num_visible:
        return ""
    return f"{num_clients} client ranks of this host share {num_visible} CUDA devices"


def _client_index(launch: Launch) -> int:
    """Return this rank among the client ranks of its host."""
    return launch.local_rank - _is_with_server(launch)


def _is_with_server(launch: Launch) -> bool:
    """Return whether the server has a process of its own on this host, as far as the numbers tell.

    With ranks in blocks the first host's local ranks are its ranks. With ranks dealt out in turn
    a client of that host is taken for another's: it counts from one, which as well gives ranks
    that follow one another different devices.
    """
    return launch.size > 1 and launch.rank == launch.local_rank


def _is_slurm_step(env: Mapping[str, str]) -> bool:
    """Return whether `srun` started this process: an sbatch or salloc shell also has
    SLURM_PROCID=0.
    """
    step = env.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


def _read_family(family: _Family, env: Mapping[str, str]) -> Launch:
    size_name = _first_present(family.sizes, env)
    if size_name is None:
        raise ValueError(
            f"{family.rank}={env[family.rank]} without a size: set {' or '.join(family.sizes)}"
        )
    rank, size = _read_int(family.rank, env), _read_int(size_name, env)
    _check_below(family.rank, size_name, env)
    local_name = _first_present(family.local_ranks, env)
    local_size_name = _first_present(family.local_sizes, env)
    if local_name is not None:
        _check_below(local_name, local_size_name or size_name, env)
    names = (family.rank, size_name, local_name, local_size_name)
    return Launch(
        launcher=family.launcher,
        rank=rank,
        size=size,
        local_rank=_read_int(local_name, env) if local_name else 0,
        local_size=_read_int(local_size_name, env) if local_size_name else None,
        sources=tuple(name for name in names if name is not None),
    )


def _first_present(names: tuple[str, ...], env: Mapping[str, str]) -> str | None:
    return next((name for name in names if name in env), None)


def _read_int(name: str, env: Mapping[str, str]) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise ValueError(must_be(name, "a whole number", env[name])) from None


def _check_below(rank_name: str, size_name: str, env: Mapping[str, str]) -> None:
    if not 0 <= _read_int(rank_name, env) < _read_int(size_name, env):
        pair = f"{rank_name}={env[rank_name]}, {size_name}={env[size_name]}"
        raise ValueError(f"{pair}: a rank lies in 0..size - 1")


def _launcher_family(launch: Launch) -> str:
    """Return which MPI's launcher set the variables, as far as they tell."""
    name = launch.sources[0]
    if name.startswith("OMPI_"):
        return "Open MPI"
    if name.startswith("MV2_"):
        return "MVAPICH2"
    if name.startswith(("PMI_", "PALS_")):
        return "MPICH or a relative (Hydra, Intel MPI, Cray)"
    if launch.launcher == "torchrun":
        return "no MPI (torchrun)"
    return f"the scheduler ({name})"
