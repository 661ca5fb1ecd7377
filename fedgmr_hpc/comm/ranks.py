"""Who am I: what the launcher's environment says, checked against what MPI says, on one line.

Pure functions of their arguments; no MPI, no torch, no scheduler is asked. The order of the table
below is the order of belief: MPI launchers, then torchrun, then SLURM inside a step of `srun`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

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

    def __str__(self) -> str:
        return (
            f"rank {self.rank} of {self.size}: host {self.host}, pid {self.pid}, "
            f"local rank {self.local_rank}, device {self.device}, threads {self.threads}, "
            f"launcher {self.launcher}, transport {self.transport}"
        )


def detect_launch(env: Mapping[str, str]) -> Launch:
    """Rank and size from the launcher's variables in `env`; rank 0 of 1 where there are none.

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
    """The name in an MPI library's long description, e.g. "Open MPI v5.0.11"."""
    return " ".join(library.splitlines()[0].split(",")[0].split())


def make_identity(
    launch: Launch, *, rank: int, size: int, transport: str, num_visible: int, threads: int
) -> Identity:
    """This process among the ranks of `transport`.

    Args:
        launch: what the environment says.
        rank: rank in the transport.
        size: number of ranks in the transport.
        transport: name of the transport.
        num_visible: CUDA devices this process sees, 0 for a CPU run.
        threads: torch threads of this rank.
    """
    return Identity(
        rank=rank,
        size=size,
        local_rank=launch.local_rank,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=choose_device(launch.local_rank, num_visible),
        launcher=launch.launcher,
        transport=transport,
        threads=threads,
    )


def choose_device(local_rank: int, num_visible: int) -> str:
    """A device for each rank of a host in turn; the one there is where the site isolates them."""
    return f"cuda:{local_rank % num_visible}" if num_visible else "cpu"


def _is_slurm_step(env: Mapping[str, str]) -> bool:
    """Whether `srun` started this process: an sbatch or salloc shell also has SLURM_PROCID=0."""
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
        raise ValueError(f"{name}: got {env[name]!r}, allowed a whole number") from None


def _check_below(rank_name: str, size_name: str, env: Mapping[str, str]) -> None:
    if not 0 <= _read_int(rank_name, env) < _read_int(size_name, env):
        pair = f"{rank_name}={env[rank_name]}, {size_name}={env[size_name]}"
        raise ValueError(f"{pair}: a rank lies in 0..size - 1")


def _launcher_family(launch: Launch) -> str:
    """Which MPI's launcher set the variables, as far as they tell."""
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
