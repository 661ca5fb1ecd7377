"""One contract, every binding: threads of one process, MPI under mpirun, gloo and devices under
torchrun.

`device` is NCCL's protocol with gloo groups in NCCL's place, `device-small` the same with every
payload on the channels and in many pieces. NCCL itself needs two CUDA devices.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from contract import ABORT_CODE, CHECKS, FOLDER, run_checks
from launchers import MPIRUN, ROOT, SOON_S, run_job

from fedgmr_hpc.transport.contract import Transport, make_inproc
from fedgmr_hpc.transport.relay import NODE_SIZE

HERE = Path(__file__).parent
DEADLINE_S = 300.0
HUGE_MEMORY_BYTES = 8 << 30

needs_mpirun = pytest.mark.skipif(
    not MPIRUN.exists(), reason="no mpirun beside this python: install the mpich wheel"
)
needs_two_devices = pytest.mark.gpu(2)  # one for each of two ranks


def launch(
    binding: str, num_ranks: int, *names: str, folder: Path = HERE, node_size: int = 0
) -> tuple[int, str]:
    """Run contract.py on real ranks: exit code and output. Past the deadline all are killed.

    Args:
        node_size: successive ranks that count as a node; 0 for the real nodes.
    """
    more = {NODE_SIZE: str(node_size)} if node_size else {}
    ended = run_job(
        num_ranks,
        binding,
        *names,
        launcher="mpirun" if binding.startswith("mpi") else "torchrun",
        module=(str(HERE / "contract.py"),),
        timeout_s=DEADLINE_S,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", FOLDER: str(folder), **more},
    )
    return ended.code, ended.output


def run_threads(num_ranks: int, name: str) -> list[BaseException]:
    """One check on threads of this process; the first failure ends the others."""
    failures: list[BaseException] = []

    def run_rank(transport: Transport) -> None:
        try:
            run_checks(transport, [name])
            transport.close()
        except BaseException as error:
            failures.append(error)
            transport.abort(1)

    ends = make_inproc(num_ranks)
    threads = [threading.Thread(target=run_rank, args=(end,), daemon=True) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "a rank did not end"
    return failures


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("name", CHECKS)
def test_threads(num_ranks, name, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    failures = run_threads(num_ranks, name)
    if failures:
        raise failures[0]


@pytest.mark.parametrize(
    ("binding", "num_ranks", "node_size"),
    [
        pytest.param("mpi", 1, 0, marks=needs_mpirun),
        pytest.param("mpi", 2, 0, marks=needs_mpirun),
        pytest.param("mpi", 4, 0, marks=needs_mpirun),
        pytest.param("mpi", 5, 2, marks=needs_mpirun),
        pytest.param("mpi-chunked", 4, 2, marks=needs_mpirun),
        ("gloo", 4, 0),
        ("device", 3, 0),
        ("device-small", 3, 0),
        pytest.param("nccl", 2, 0, marks=needs_two_devices),
        pytest.param("nccl", 3, 0, marks=needs_two_devices),
    ],
)
def test_real_ranks(binding, num_ranks, node_size, tmp_path):
    code, output = launch(binding, num_ranks, folder=tmp_path, node_size=node_size)
    passed = [line.removeprefix("ok ") for line in output.splitlines() if line.startswith("ok ")]
    assert (code, passed) == (0, list(CHECKS)), output
    assert output.count("closed") == num_ranks, output


@pytest.mark.parametrize("binding", [pytest.param("mpi", marks=needs_mpirun), "gloo"])
def test_rates_of_a_frame_are_measured(binding):
    """As `make gpu-check` does."""
    launcher = "mpirun" if binding == "mpi" else "torchrun"
    ended = run_job(2, binding, launcher=launcher, module=(str(ROOT / "tests/transfer_rates.py"),))
    assert ended.code == 0, ended.output
    rates = json.loads(ended.output.strip().splitlines()[-1])
    assert rates["down_gb_per_s"] > 0 and rates["up_gb_per_s"] > 0


@pytest.mark.parametrize("binding", [pytest.param("mpi", marks=needs_mpirun), "gloo", "device"])
def test_abort_ends_all_ranks(binding):
    start_s = time.monotonic()
    code, output = launch(binding, 4, "abort")
    assert code != 0, output
    assert binding != "mpi" or code in (ABORT_CODE, 9), output  # 9: of those that MPICH killed
    assert "closed" not in output
    assert time.monotonic() - start_s < SOON_S, output


@pytest.mark.parametrize("binding", [pytest.param("mpi", marks=needs_mpirun), "gloo"])
def test_a_stopped_rank_keeps_nothing_from_others(binding):
    code, output = launch(binding, 3, "stopped")
    assert (code, output.count("ok stopped"), output.count("closed")) == (0, 1, 3), output


@needs_mpirun
def test_more_than_2_gib():
    available_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available_bytes < HUGE_MEMORY_BYTES:
        pytest.skip(f"{available_bytes >> 20} MiB of free memory, needs {HUGE_MEMORY_BYTES >> 20}")
    code, output = launch("mpi", 2, "huge")
    assert (code, output.count("ok huge")) == (0, 1), output
