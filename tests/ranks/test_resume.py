"""Runs that are killed or told to end, and go on: the same bytes, exit codes, one clear error."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
from launchers import LIMIT_S, MPIRUN, ROOT, TINY, last_of_each, run_job

import fedgmr_hpc
import fedgmr_hpc.results.runs as runs
import fedgmr_hpc.runtime.checkpoints.manager as manager
import fedgmr_hpc.runtime.experiment as experiment
import fedgmr_hpc.storage.checkpoint as checkpoint
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.results.verify import verify
from fedgmr_hpc.storage.reader import Result, differing_columns, read_result
from fedgmr_hpc.transport.termination import STOP_REQUEST

SMALL = (
    *TINY,
    "clients.count=5",
    "run.max_rounds=8",
    "checkpoint.every_s=0",
    "eval.every_s=2",
    "eval.submodels=true",
)
ROWS = {
    "fedgmr": (),
    "int8": ("wire.dtype=int8", "links.client_sigma=1.0"),
    "scaffold": (
        "method=wo_asyn",
        "submodel.gate_biases=false",
        "train.objective=scaffold",
        "links.client_sigma=1.0",
    ),
    "sampled": ("submodel.score=g", "transmission=whole", "clients.sampled=3"),
}
RUN = (  # told to end before it begins
    "import sys, fedgmr_hpc.launch as launch\n"
    "from fedgmr_hpc.transport.termination import STOP_REQUEST\n"
    "STOP_REQUEST.install = lambda: setattr(STOP_REQUEST, 'cause', 'SIGUSR1'); "
    "sys.exit(launch.main(sys.argv[1:]))"
)
needs_mpirun = pytest.mark.skipif(
    not MPIRUN.exists(), reason="no mpirun beside this python: install the mpich wheel"
)


def words_of(path: Path, name: str = "fedgmr") -> tuple[str, ...]:
    return tuple(last_of_each(*SMALL, *ROWS[name], f"results.path={path}", "progress=plain"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Every row without a break and without a checkpoint."""
    folder = tmp_path_factory.mktemp("unbroken")
    for name in ROWS:
        words = (*words_of(folder / f"{name}.h5", name), "checkpoint.every_s=null")
        assert killing.wait(killing.start(folder, 1, *words)) == [0]
    return {name: read_result(folder / f"{name}.h5") for name in ROWS}


def kill_and_resume(
    folder: Path, name: str, num_ranks: int, num_kills: int, longest_s: float, seed: int
) -> Result:
    """Kills a rank at random moments, starts all again; a run that ends in between begins anew."""
    rng, path, done = random.Random(seed), folder / "run.h5", 0
    words = (*words_of(path, name), "--resume")
    while done < num_kills:
        pids = killing.start(folder, num_ranks, *words)
        time.sleep(rng.uniform(0.05, longest_s))
        if killing.kill(pids, rng.randrange(num_ranks)):
            done += 1
        else:
            path.unlink()
            longest_s *= 0.8  # this machine is faster
    codes = killing.wait(killing.start(folder, num_ranks, *words))
    assert codes == [0] * num_ranks, (folder / "ranks.log").read_text()[-3000:]
    return read_result(path)


@pytest.mark.parametrize(
    ("name", "num_ranks", "num_kills", "longest_s"),
    [("fedgmr", 1, 10, 1.5), ("sampled", 1, 4, 2.0), ("int8", 3, 6, 3.0), ("scaffold", 4, 3, 3.0)],
)
def test_a_run_killed_at_random_moments_gives_the_same_bytes(
    name: str,
    num_ranks: int,
    num_kills: int,
    longest_s: float,
    unbroken: dict[str, Result],
    tmp_path: Path,
) -> None:
    """SIGKILL of the server's or a client rank's process, 20 times in all."""
    result = kill_and_resume(tmp_path, name, num_ranks, num_kills, longest_s, seed=num_kills)
    assert differing_columns(result, unbroken[name]) == []
    assert result.status == "finished" and len(result.merges["version"]) == 8
    assert not (tmp_path / "run.ckpt").exists() and not (tmp_path / "run.ckpt.old").exists()


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run on two ranks that USR2 has ended early, twice, with an exit code that says so."""
    path = tmp_path / "run.h5"
    words = (*words_of(path), "checkpoint.every_s=null")
    pids = killing.start(tmp_path, 2, *words, pause_at="evaluation | round 0")
    for pid in pids:
        os.kill(pid, signal.SIGUSR2)
        os.kill(pid, signal.SIGTERM)  # changes nothing
    os.kill(pids[0], signal.SIGCONT)
    assert killing.wait(pids) == [75, 75], (tmp_path / "ranks.log").read_text()
    return path


def test_a_signal_checkpoints_and_a_resume_on_other_ranks_goes_on(
    stopped: Path, unbroken: dict[str, Result]
) -> None:
    before = read_result(stopped)
    assert re.fullmatch(r"checkpointed: version \d+, at SIG(USR2|TERM)", before.status)
    assert len(before.merges["version"]) < 8 and before.checkpoints["version"].size == 1
    words = (*words_of(stopped), "--resume")
    assert killing.wait(killing.start(stopped.parent, 1, *words)) == [0]
    after = read_result(stopped)
    assert differing_columns(after, unbroken["fedgmr"]) == []
    assert after.checkpoints["is_resume"].tolist()[:2] == [0, 1]
    assert '"version"' in after.provenance["resume_1"]
    assert after.ranks["overhead_bytes"][0] > 0
    assert killing.wait(killing.start(stopped.parent, 1, *words)) == [0]
    assert "is finished: nothing to resume" in (stopped.parent / "ranks.log").read_text()


def test_ctrl_c_checkpoints_too(tmp_path: Path, unbroken: dict[str, Result]) -> None:
    path = tmp_path / "run.h5"
    words = (*words_of(path), "checkpoint.every_s=null")
    pids = killing.start(tmp_path, 2, *words, pause_at="evaluation | round 0")
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    os.kill(pids[0], signal.SIGCONT)
    assert killing.wait(pids) == [75, 75], (tmp_path / "ranks.log").read_text()
    assert read_result(path).status.endswith("at SIGINT")
    assert killing.wait(killing.start(tmp_path, 1, *words_of(path), "--resume")) == [0]
    assert differing_columns(read_result(path), unbroken["fedgmr"]) == []


def test_a_second_ctrl_c_ends_at_once() -> None:
    code = (
        "import os, signal, time; from fedgmr_hpc.transport.termination import StopRequest\n"
        "stop = StopRequest(); stop.install_ctrl_c(); tell = os.kill\n"
        "tell(os.getpid(), signal.SIGINT); tell(os.getpid(), signal.SIGINT)\n"  # one, passed on
        "print(stop.cause, flush=True); time.sleep(1.1); tell(os.getpid(), signal.SIGINT)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "SIGINT\n" and "KeyboardInterrupt" in ended.stderr


def test_the_old_start_of_a_requeued_job_stops_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node was given up, and comes back."""
    path, words = tmp_path / "run.h5", (*words_of(tmp_path / "run.h5"), "--resume")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    endless = (*words, "run.max_rounds=100000")
    (old,) = killing.start(tmp_path, 1, *endless, pause_at="checkpoint | version 2 ")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert killing.wait(killing.start(tmp_path, 1, *words, "run.max_rounds=20")) == [0]
    whole = path.read_bytes()
    os.kill(old, signal.SIGCONT)
    assert killing.wait([old]) == [1]
    assert "no longer the owner of its files: " in (tmp_path / "ranks.log").read_text()
    assert path.read_bytes() == whole and verify(path) == []
    assert not list(tmp_path.glob("run.ckpt*")) and not list(tmp_path.glob("run.owner*"))


def test_a_resumed_run_that_makes_no_version_fails(stopped: Path) -> None:
    """Too short a time limit must not requeue for ever."""
    ended = subprocess.run(
        [sys.executable, "-c", RUN, *words_of(stopped), "--resume"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert ended.returncode == 1
    assert "before any version was made since the run was resumed" in ended.stderr


@needs_mpirun
def test_another_configuration_ends_every_rank_with_2_naming_keys(stopped: Path) -> None:
    ended = run_job(3, *words_of(stopped), "--resume", "seed=5", "train.steps=4")
    assert ended.code == 2
    assert [line.split("error: ")[1].split()[0] for line in ended.errors] == ["seed", "train.steps"]
    assert ended.errors[0].endswith("(got 5)") and " when continuing " in ended.errors[0]


def terminate(path: Path, after: str, *own: str) -> None:
    """Tell the ranks of a run to end once it has printed a text; it ends with 75."""
    words = last_of_each(*TINY, *own, f"results.path={path}")
    command = [str(MPIRUN), "-n", "3", sys.executable, "-m", "fedgmr_hpc.launch", *words]
    output = path.with_name("output.txt")
    with (
        output.open("w") as file,
        subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        killing.await_text(output, after)
        for pid in re.findall(r"pid (\d+)", output.read_text()):
            os.kill(int(pid), signal.SIGTERM)
        try:
            assert process.wait(LIMIT_S) == 75, output.read_text()
        finally:
            process.kill()


@needs_mpirun
def test_mpirun_ends_with_75_when_its_ranks_are_told_to(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    terminate(path, "evaluation | round 3 ", "run.max_rounds=100000")
    assert read_result(path).status.endswith("at SIGTERM")


@needs_mpirun
def test_a_stop_is_noticed_while_all_clients_of_the_wall_clock_train(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    terminate(path, "round 0/", "clock=wall", "method=fedavg", "links.compute_s=600")
    assert read_result(path).status == "checkpointed: version 0, at SIGTERM"


def test_resume_needs_to_be_told_what(tmp_path: Path) -> None:
    ended = run_job(1, *TINY, "--resume", launcher="none")
    assert ended.code == 2
    assert ended.errors == [
        "fedgmr_hpc: error: results.path must be the result file when resuming (got null)"
    ]


# --- checkpoints that fail


def run_here(path: Path, *words: str) -> Result:
    return fedgmr_hpc.run(fedgmr_hpc.load_config(None, words_of(path), ["progress=quiet", *words]))


def test_a_run_goes_on_without_a_checkpoint_that_cannot_be_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    unbroken: dict[str, Result],
) -> None:
    real: Callable[..., int] = manager.write_checkpoint
    calls = iter(range(100))

    def fails_at_first(*words: Any) -> int:
        if next(calls) < 2:
            raise OSError(28, "No space left on device")
        return real(*words)

    monkeypatch.setattr(manager, "write_checkpoint", fails_at_first)
    result = run_here(tmp_path / "run.h5")
    assert differing_columns(result, unbroken["fedgmr"]) == []
    assert capfd.readouterr().err.count("No space left on device; the run goes on") == 2
    assert result.checkpoints["version"].tolist() == [2, 3, 4, 5, 6, 7]
    assert np.all(result.checkpoints["bytes"] > 100_000)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_that_is_told_to_end_and_cannot_checkpoint_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_too_late(*words: object) -> int:
        STOP_REQUEST.cause = "SIGTERM"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manager, "write_checkpoint", told_too_late)
    monkeypatch.setattr(manager, "RETRY_S", 0.0)
    monkeypatch.setattr(manager, "GIVE_UP_S", 0.1)
    monkeypatch.setattr(STOP_REQUEST, "cause", None)
    monkeypatch.setattr(runs, "StopRequest", lambda: STOP_REQUEST)  # as the command line has it
    with pytest.raises(RunError, match=r"stopped by SIGTERM, but no checkpoint .*No space"):
        run_here(tmp_path / "run.h5", "run.max_rounds=100000")
    assert read_result(tmp_path / "run.h5").status.startswith("failed: RunError: stopped by")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the results and one checkpoint, not for two."""
    with mounted(tmp_path / "disk", "size=3500k") as folder:
        yield folder


@needs_mpirun
def test_a_read_only_results_folder_ends_every_rank_with_2(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,ro") as folder:
        job = run_job(3, *TINY, f"results.path={folder}/run.h5")
        (line,) = job.errors
        assert job.code == 2 and f"results.path: cannot write in {folder}" in line


def test_a_full_disk_leaves_the_generation_that_is_there(
    small_disk: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    real = experiment.remove_checkpoints

    def look(path: Path) -> None:
        if path.exists():
            kept.append(checkpoint.read_checkpoint(path)["version"])
        real(path)

    monkeypatch.setattr(experiment, "remove_checkpoints", look)
    result = run_here(small_disk / "run.h5")
    assert "No space left on device; the run goes on" in capfd.readouterr().err
    assert result.status == "finished" and len(result.checkpoints["version"]) < 8
    assert kept == [result.checkpoints["version"][-1]]
