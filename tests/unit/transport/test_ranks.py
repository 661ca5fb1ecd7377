"""Who am I: recorded environments of each launcher, contradictions, and the world check."""

from __future__ import annotations

import pytest

from fedgmr_hpc.transport.gloo import check_network
from fedgmr_hpc.transport.joining import check_shared_memory, hidden_devices_note
from fedgmr_hpc.transport.ranks import (
    Identity,
    Launch,
    check_world,
    choose_device,
    detect_launch,
    make_identity,
    name_library,
    sharing_note,
    take_slice,
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
        ({"RANK": "zero", "WORLD_SIZE": "2"}, "RANK must be a whole number .got 'zero'"),
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


def place(rank: int, size: int, local_rank: int, local_size: int | None = None) -> Launch:
    return Launch("mpi", rank, size, local_rank, local_size, ())


@pytest.mark.parametrize(
    ("rank", "local_rank", "num_visible", "device"),
    [
        (0, 0, 4, "cpu"),  # the server takes none,
        (1, 1, 4, "cuda:0"),  # so the first client beside it has the first
        (4, 4, 4, "cuda:3"),
        (5, 5, 4, "cuda:0"),  # more clients than devices: from the start again
        (6, 0, 4, "cuda:0"),  # the next host has clients only
        (9, 3, 4, "cuda:3"),
        (10, 4, 4, "cuda:0"),
        (3, 3, 1, "cuda:0"),  # each sees only its own, whatever its number
        (9, 3, 1, "cuda:0"),
        (3, 3, 0, "cpu"),
    ],
)
def test_device_of_a_rank_of_twelve_on_two_hosts(rank, local_rank, num_visible, device):
    assert choose_device(place(rank, 12, local_rank), num_visible) == device


def test_ranks_dealt_out_in_turn_have_different_devices():
    """Two hosts, even ranks on the server's: as many clients as devices, each its own."""
    for first, ranks in ((0, (2, 4, 6)), (1, (1, 3, 5))):
        devices = {choose_device(place(r, 7, (r - first) // 2), 3) for r in ranks}
        assert devices == {"cuda:0", "cuda:1", "cuda:2"}


def test_local_rank_of_a_slurm_task_decides():
    assert choose_device(detect_launch(SRUN), 4) == "cuda:1"
    assert choose_device(detect_launch({**SRUN, "SLURM_LOCALID": "3"}), 4) == "cuda:3"


def test_one_process_for_server_and_clients_takes_a_device():
    assert choose_device(detect_launch({}), 2) == "cuda:0"


@pytest.mark.parametrize(
    ("requested", "num_visible", "device"),
    [("auto", 2, "cuda:0"), ("cuda", 2, "cuda:0"), ("cpu", 2, "cpu"), ("auto", 0, "cpu")],
)
def test_requested_device(requested, num_visible, device):
    assert choose_device(place(1, 2, 1), num_visible, requested) == device


def test_refused_devices():
    with pytest.raises(ValueError, match="'auto' or 'cpu' when rank 1 sees no CUDA device"):
        choose_device(place(1, 2, 1), 0, "cuda")
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or 'cuda' .got 'tpu'"):
        choose_device(place(1, 2, 1), 1, "tpu")
    assert choose_device(place(0, 2, 0), 0, "cuda") == "cpu"  # the server needs none


@pytest.mark.parametrize(
    ("launch", "num_visible", "note"),
    [
        (place(1, 9, 1, 9), 4, "8 client ranks of this host share 4 CUDA devices"),
        (place(6, 12, 0, 6), 4, "6 client ranks of this host share 4 CUDA devices"),
        (place(1, 5, 1, 5), 4, ""),
        (place(1, 9, 1, 9), 1, ""),
        (place(1, 9, 1, None), 4, ""),
        (place(1, 9, 1, 9), 0, ""),
    ],
)
def test_sharing_is_noted(launch, num_visible, note):
    assert sharing_note(launch, num_visible) == note


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


def test_identity_says_that_devices_are_shared():
    identity = make_identity(
        place(6, 9, 6, 9), rank=6, size=9, transport="mpi", num_visible=4, threads=1
    )
    assert "device cuda:1," in str(identity)
    assert str(identity).endswith(
        "transport mpi (8 client ranks of this host share 4 CUDA devices)"
    )


@pytest.mark.parametrize(
    ("rank", "local_rank", "slice_"),
    [(0, 0, "MIG-a"), (1, 1, "MIG-a"), (2, 2, "MIG-b"), (7, 0, "MIG-a")],
)
def test_each_client_rank_takes_its_own_mig_slice(rank, local_rank, slice_):
    env = {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}
    take_slice(place(rank, 9, local_rank), env)
    assert env == {"CUDA_VISIBLE_DEVICES": slice_}


@pytest.mark.parametrize("visible", ["0,1,2", "MIG-a", "GPU-a,GPU-b", "", None])
def test_whole_devices_and_a_single_slice_are_left_alone(visible):
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    before = dict(env)
    take_slice(place(2, 9, 2), env)
    assert env == before


def test_isolated_ranks_have_each_its_device_zero():
    """What --gpus-per-task makes of 8 client ranks: each sees one device, another one."""
    assert {choose_device(place(r, 9, r % 3), 1) for r in range(1, 9)} == {"cuda:0"}


def test_gpus_that_nobody_sees_are_told(tmp_path):
    assert hidden_devices_note(0, "auto", str(tmp_path)) == ""
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert "none is visible" in hidden_devices_note(0, "auto", str(tmp_path))
    assert hidden_devices_note(0, "cpu", str(tmp_path)) == ""
    assert hidden_devices_note(1, "auto", str(tmp_path)) == ""


def test_a_tiny_shared_memory_is_refused_before_mpich_dies_of_it(tmp_path, monkeypatch):
    size = type("Size", (), {"f_blocks": 4096, "f_frsize": 4096})  # 16 MiB
    monkeypatch.setattr("os.statvfs", lambda folder: size)
    with pytest.raises(ValueError, match=r"must have 22 MB for 4 ranks of MPICH \(got 17 MB\)"):
        check_shared_memory(detect_launch({**HYDRA, "MPI_LOCALNRANKS": "4"}), str(tmp_path))
    check_shared_memory(detect_launch(HYDRA), str(tmp_path))
    check_shared_memory(detect_launch(TORCHRUN), str(tmp_path))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"GLOO_SOCKET_IFNAME": "lo,ibNONE"}, "GLOO_SOCKET_IFNAME on .* must be .* .got 'ibNONE'"),
        ({"MASTER_ADDR": "no.such.invalid"}, "MASTER_ADDR must be .* .got 'no.such.invalid'"),
    ],
)
def test_a_network_that_is_not_there_is_named(env, said):
    with pytest.raises(ValueError, match=said):
        check_network(env)
    check_network({"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})
