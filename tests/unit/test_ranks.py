"""Who am I: recorded environments of each launcher, contradictions, and the world check."""

from __future__ import annotations

import pytest

from fedgmr_hpc.comm.ranks import (
    Identity,
    Launch,
    check_world,
    choose_device,
    detect_launch,
    make_identity,
    name_library,
)

HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "9",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
}


def describe(env: dict[str, str]) -> tuple[object, ...]:
    launch = detect_launch(env)
    return launch.launcher, launch.rank, launch.size, launch.local_rank, launch.local_size


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ("none", 0, 1, 0, 1)),
        (HYDRA, ("mpi", 1, 4, 1, 2)),
        (OPEN_MPI, ("mpi", 3, 8, 1, 2)),
        (
            {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2"},
            ("mpi", 0, 2, 0, None),
        ),
        (
            {"PALS_RANKID": "6", "PALS_LOCAL_RANKID": "2", "PMI_RANK": "6", "PMI_SIZE": "8"},
            ("mpi", 6, 8, 2, None),
        ),
        (
            {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2", "FLUX_TASK_LOCAL_ID": "0"},
            ("mpi", 1, 2, 0, None),
        ),
        ({"PMIX_RANK": "5", **SRUN}, ("mpi", 5, 8, 1, None)),
        (TORCHRUN, ("torchrun", 2, 4, 0, 2)),
        (SRUN, ("slurm", 5, 8, 1, None)),
        ({**SRUN, **TORCHRUN}, ("torchrun", 2, 4, 0, 2)),
        ({**SRUN, **TORCHRUN, **HYDRA}, ("mpi", 1, 4, 1, 2)),
    ],
)
def test_order_of_belief(env, expected):
    assert describe(env) == expected


@pytest.mark.parametrize(
    "step", [None, "", "batch", "interactive", "4294967290", "4294967291", "4294967292"]
)
def test_a_stray_process_in_a_slurm_shell_is_alone(step):
    env = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
    if step is not None:
        env["SLURM_STEP_ID"] = step
    assert detect_launch(env) == Launch("none", 0, 1, 0, 1, ())


def test_sources_name_the_variables_read():
    assert detect_launch(TORCHRUN).sources == (
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"PMI_RANK": "4", "PMI_SIZE": "4"}, "PMI_RANK=4, PMI_SIZE=4: a rank lies in 0..size - 1"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "RANK=-1, WORLD_SIZE=4"),
        ({"RANK": "0"}, "RANK=0 without a size: set WORLD_SIZE"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "without a size: set OMPI_COMM_WORLD_SIZE"),
        ({"RANK": "zero", "WORLD_SIZE": "2"}, "RANK: got 'zero', allowed a whole number"),
        ({**HYDRA, "MPI_LOCALRANKID": "2"}, "MPI_LOCALRANKID=2, MPI_LOCALNRANKS=2"),
        ({**SRUN, "SLURM_LOCALID": "8"}, "SLURM_LOCALID=8, SLURM_STEP_NUM_TASKS=8"),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},
            "without a size: set SLURM_STEP_NUM_TASKS or SLURM_NTASKS",
        ),
    ],
)
def test_contradictions_are_named(env, message):
    with pytest.raises(ValueError, match=message):
        detect_launch(env)


def test_world_of_the_declared_size_passes():
    check_world(detect_launch(HYDRA), 4, "MPICH Version: 5.0.2\nmore")
    check_world(detect_launch({}), 4, "whatever the launcher, it set no variables")


@pytest.mark.parametrize(
    ("env", "library", "family"),
    [
        (HYDRA, "Open MPI v5.0.11, package", "MPICH or a relative"),
        (OPEN_MPI, "MPICH Version: 5.0.2", "Open MPI"),
        (SRUN, "MPICH Version: 5.0.2", r"the scheduler \(SLURM_PROCID\)"),
        (TORCHRUN, "MPICH Version: 5.0.2", r"no MPI \(torchrun\)"),
    ],
)
def test_other_world_names_both_libraries(env, library, family):
    size = detect_launch(env).size
    pattern = rf"declares {size} ranks, COMM_WORLD has 1.* is of {family}.*runs on {library[:8]}"
    with pytest.raises(ValueError, match=pattern):
        check_world(detect_launch(env), 1, library)


@pytest.mark.parametrize(
    ("local_rank", "num_visible", "device"),
    [(3, 0, "cpu"), (3, 4, "cuda:3"), (5, 4, "cuda:1"), (5, 1, "cuda:0")],
)
def test_device_of_a_local_rank(local_rank, num_visible, device):
    assert choose_device(local_rank, num_visible) == device


def test_library_names():
    assert (
        name_library("MPICH Version:      5.0.2\nMPICH Release date: ...") == "MPICH Version: 5.0.2"
    )
    assert name_library("Open MPI v5.0.11, package: Open MPI user@host") == "Open MPI v5.0.11"


def test_identity_is_one_line():
    identity = Identity(2, 4, 0, "n1", 99, "cuda:0", "slurm", "mpi", 1)
    assert str(identity) == (
        "rank 2 of 4: host n1, pid 99, local rank 0, device cuda:0, threads 1, "
        "launcher slurm, transport mpi"
    )


def test_make_identity_takes_the_rank_from_the_transport():
    launch = detect_launch({})
    identity = make_identity(launch, rank=0, size=1, transport="inproc", num_visible=0, threads=2)
    assert (identity.rank, identity.size, identity.device) == (0, 1, "cpu")
    assert identity.host and identity.pid > 0 and "\n" not in str(identity)
