"""What a study does with the files and locks of its cells: nothing that was computed is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fedgmr_hpc
from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.storage.checkpoint import has_checkpoint
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.storage.run_files import checkpoint_path, error_path
from fedgmr_hpc.study.cells import Cell, expand
from fedgmr_hpc.study.folder import eta_s
from fedgmr_hpc.study.locks import CellLock, acquire_lock, is_locked
from fedgmr_hpc.study.running.devices import dealt, visible_devices
from fedgmr_hpc.study.running.runner import Queue, run_cell
from fedgmr_hpc.study.states import can_resume, read_state, write_error
from fedgmr_hpc.study.study_file import load_study

STUDY: dict[str, Any] = {
    "title": "tiny",
    "base": "digits",
    "set": {
        "run.max_rounds": 4,
        "run.interval_rounds": 1,
        "train.steps": 1,
        "data.max_train": 300,
        "data.max_test": 50,
        "device": "cpu",
    },
    "matrix": {"method": ["fedavg"], "seed": [0]},
    "comparison_time_s": 50.0,
}
NOTHING = [sys.executable, "-c", "pass"]
# Let the system answer each flock as a file system without locks does (seccomp, x86_64).
WITHOUT_LOCKS = """
import ctypes, errno, struct, sys
answers = [(0x15, 0, 1, 73), (6, 0, 0, 0x50000 | errno.ENOSYS), (6, 0, 0, 0x7FFF0000)]
code = [struct.pack("HBBI", *each) for each in ((0x20, 0, 0, 0), *answers)]
program = ctypes.create_string_buffer(b"".join(code))
filtered = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filtered, 0, 0) == 0
from fedgmr_hpc.cli.command_line import main
sys.exit(main(sys.argv[1:]))
"""


def cells_of(**matrix: list[Any]) -> list[Cell]:
    return expand(*load_study({**STUDY, "matrix": {**STUDY["matrix"], **matrix}}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the only cell."""
    return _run(tmp_path_factory.mktemp("finished"), rounds=4)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, stopped after two rounds, with a checkpoint."""
    return _run(tmp_path_factory.mktemp("stopped"), rounds=2)


def _run(folder: Path, rounds: int) -> Path:
    (cell,) = cells_of()
    path = folder / f"{cell.name}.h5"
    results = cell.config.results.model_copy(update={"path": str(path)})
    config = cell.config.model_copy(update={"results": results, "progress": "quiet"})

    class Stop(fedgmr_hpc.Callback):
        def on_round(self, run: Any, end: Any) -> None:
            if end.round == rounds < config.run.max_rounds:
                run.stop()

    fedgmr_hpc.run(config, callbacks=[Stop()])
    return path


def put(source: Path, folder: Path) -> Path:
    """Copy a result with its checkpoint."""
    folder.mkdir(exist_ok=True)
    for each in (source, checkpoint_path(source)):
        if each.exists():
            shutil.copy(each, folder)
    return folder / source.name


def test_a_finished_result_that_cannot_be_read_is_kept(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice, and its second damage does not overwrite the first."""
    (cell,) = cells_of()
    path = put(finished, tmp_path)
    for number in (1, 2):
        damaged = bytearray(finished.read_bytes())
        damaged[len(damaged) // 2 :: 7] = bytes(len(damaged[len(damaged) // 2 :: 7]))
        path.write_bytes(damaged + bytes(number))
        state = read_state(tmp_path, cell)
        assert state.status == "failed" and "results " in state.error and state.result is None
        Queue(tmp_path, 1, 1, launcher=lambda ranks, words: NOTHING).run([cell])
        assert (tmp_path / f"{path.name}.kept-{number}").read_bytes() == damaged + bytes(number)
        assert f"moved to {path.name}.kept-{number}" in capsys.readouterr().err
        assert not path.exists()
        error_path(path).unlink()


def test_a_finished_result_of_another_configuration_is_kept(finished: Path, tmp_path: Path) -> None:
    other = cells_of(seed=[1])[0]
    path = tmp_path / f"{other.name}.h5"
    shutil.copy(finished, path)
    state = read_state(tmp_path, other)
    assert state.status == "failed" and state.error.endswith("of another configuration, in seed")
    assert run_cell(tmp_path, other, 1).status == "done"
    assert (tmp_path / f"{path.name}.kept-1").read_bytes() == finished.read_bytes()


def test_a_result_that_cannot_be_moved_stays_and_its_cell_has_failed(tmp_path: Path) -> None:
    """Its name is as long as names may be, so that no longer one can be given."""
    (cell,) = cells_of()
    path = tmp_path / f"{'x' * (250 - len(cell.digest) - 4)}-{cell.digest}.h5"
    path.write_text("damaged")
    queue = Queue(tmp_path, 1, 1, launcher=lambda ranks, words: NOTHING)
    assert not queue.run([cell]) and queue.failed == [cell]
    assert path.read_text() == "damaged"
    state = read_state(tmp_path, cell)
    assert state.status == "failed" and "cannot be moved aside: File name too long" in state.error
    assert not is_locked(tmp_path, cell)


def test_those_who_look_do_not_see_each_other_as_a_run(tmp_path: Path) -> None:
    """While many look, nobody ever runs it."""
    (cell,) = cells_of()
    lock = acquire_lock(tmp_path, cell)
    assert lock is not None and is_locked(tmp_path, cell)
    lock.release()
    seen: list[bool] = []
    code = (
        "import fcntl, sys, time\nfile = open(sys.argv[1])\nfcntl.flock(file, fcntl.LOCK_SH)\n"
        "print(flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".locks" / cell.digest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        seen.append(is_locked(tmp_path, cell))
        other.kill()
    assert seen == [False] and read_state(tmp_path, cell).status == "missing"


def test_a_folder_that_cannot_be_written_can_be_looked_at(tmp_path: Path) -> None:
    """As another user, since root may write everywhere."""
    (cell,) = cells_of()
    lock = acquire_lock(tmp_path, cell)
    assert lock is not None
    for each in (tmp_path, tmp_path / ".locks", tmp_path / ".locks" / cell.digest):
        each.chmod(0o555)  # whatever the umask
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom types import SimpleNamespace\n"
        "from fedgmr_hpc.study.locks import is_locked\nos.chdir(sys.argv[1])\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "print(is_locked(Path('.'), SimpleNamespace(digest=sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), cell.digest]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
    lock.release()


def test_what_has_ended_is_done_whoever_holds_its_lock(finished: Path, tmp_path: Path) -> None:
    (cell,) = cells_of()
    put(finished, tmp_path)
    lock = acquire_lock(tmp_path, cell)
    assert lock is not None and read_state(tmp_path, cell).status == "done"
    lock.release()


def test_what_a_finished_orphan_printed_is_removed_once_it_is_gone(
    finished: Path, tmp_path: Path
) -> None:
    (cell,) = cells_of()
    (tmp_path / "tiny.yaml").write_text(json.dumps(STUDY))
    left = put(finished, tmp_path / "cells").with_suffix(".out")
    left.touch()
    lock = acquire_lock(tmp_path / "cells", cell)
    assert lock is not None
    there: list[bool] = []

    def end() -> None:
        there.append(left.exists())
        lock.release()

    threading.Timer(1.0, end).start()
    assert main(["study", "run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path)]) == 0
    assert there == [True] and not left.exists()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a filter of x86_64's calls")
def test_without_locks_a_study_goes_on_with_one_warning(finished: Path, tmp_path: Path) -> None:
    """One cell is done; a second is not, so that both verbs ask for its lock."""
    path = tmp_path / "tiny.yaml"
    matrix = {"method": ["fedavg"], "seed": [0, 1]}
    path.write_text(json.dumps({**STUDY, "matrix": matrix}))  # JSON is YAML
    put(finished, tmp_path / "cells")
    for action, said in (("run", "2 done of 2 cells"), ("status", "2 done of 2 cells")):
        command = [sys.executable, "-c", WITHOUT_LOCKS, "study", action, str(path)]
        done = subprocess.run(
            [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0 and said in done.stdout, done.stderr
        assert done.stderr.count("no locks (Function not implemented)") == 1, done.stderr


def test_a_failed_cell_goes_on_from_its_checkpoint(stopped: Path, tmp_path: Path) -> None:
    (cell,) = cells_of()
    path = put(stopped, tmp_path)
    write_error(path, "Killed\n", -signal.SIGKILL)
    state = read_state(tmp_path, cell)
    assert (state.status, state.error) == ("failed", "Killed (exit code -9)")
    new = replace(state, path=tmp_path / "without-a-checkpoint.h5")
    left_s, all_s = (eta_s([(cell, each)], [(cell, state)], 1) for each in (state, new))
    assert left_s < (1 - state.progress_frac / 2) * all_s
    assert run_cell(tmp_path, cell, 1).status == "done"
    assert 1 in read_result(path).checkpoints["is_resume"]
    assert not error_path(path).exists()


def test_a_cell_that_fails_twice_at_a_checkpoint_starts_afresh(
    stopped: Path, tmp_path: Path
) -> None:
    (cell,) = cells_of()
    path = put(stopped, tmp_path)
    began_with: list[bool] = []

    def launcher(ranks: int, words: list[str]) -> list[str]:
        began_with.append(path.exists() and has_checkpoint(checkpoint_path(path)))
        return [sys.executable, "-c", "raise SystemExit('out of memory')"]

    for _ in range(3):
        assert run_cell(tmp_path, cell, 1, launcher).status == "failed"
    assert began_with == [True, True, False]
    assert run_cell(tmp_path, cell, 1).status == "done"


@pytest.mark.parametrize(
    ("output", "code", "resumes"),
    [
        ("fedgmr_hpc: error: the model has diverged: x\n", 1, False),
        ("fedgmr_hpc: error: checkpoint a.ckpt: damaged\n", 2, False),
        ("fedgmr_hpc: error: data.root must be the folder of x\n", 2, True),
    ],
)
def test_what_failed_says_whether_its_checkpoint_is_worth_another_try(
    output: str, code: int, resumes: bool, stopped: Path, tmp_path: Path
) -> None:
    (cell,) = cells_of()
    path = put(stopped, tmp_path)
    assert can_resume(read_state(tmp_path, cell))
    for version in (None, 2, 2):
        write_error(path, output, code, version)
    assert can_resume(read_state(tmp_path, cell)) == resumes


def test_a_signal_before_a_cell_begins_keeps_it_from_beginning(tmp_path: Path) -> None:
    """Somebody else runs it until after the signal."""
    (cell,) = cells_of()
    lock = acquire_lock(tmp_path, cell)
    assert lock is not None
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    release = threading.Timer(3.0, CellLock.release, (lock,))
    release.start()
    state = run_cell(tmp_path, cell, 1, lambda ranks, words: NOTHING)
    assert (state.status, state.error) == ("missing", "told to stop before it began")
    assert not list(tmp_path.glob("*.error")) and not list(tmp_path.glob("*.out"))
    release.join()


def test_a_signal_while_a_cell_is_started_reaches_it(tmp_path: Path) -> None:
    (cell,) = cells_of()
    ended = tmp_path / "ended"

    def launcher(ranks: int, words: list[str]) -> list[str]:
        os.kill(os.getpid(), signal.SIGUSR1)
        return [sys.executable, "-c", f"import time; time.sleep(20); open({str(ended)!r}, 'w')"]

    assert run_cell(tmp_path, cell, 1, launcher).status == "missing"
    assert not ended.exists() and not list(tmp_path.glob("*.error"))


def test_cells_that_run_at_a_time_begin_with_gpus_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third takes the place of the first, which ends before the second."""
    cells = cells_of(seed=[0, 1, 2])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    code = (
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "while len(list(pathlib.Path(sys.argv[1]).parent.glob('*.seen'))) < int(sys.argv[2]):\n"
        "    time.sleep(0.05)"
    )
    names = [cell.name for cell in cells]

    def launcher(ranks: int, words: list[str]) -> list[str]:
        name = Path(words[1]).stem
        others = "2" if name == names[0] else "3"
        return [sys.executable, "-c", code, str(tmp_path / f"{name}.seen"), others]

    Queue(tmp_path, 1, 2, launcher=launcher).run(cells)
    seen = [(tmp_path / f"{name}.seen").read_text() for name in names]
    assert seen == ["4,6,7", "6,7,4", "4,6,7"]


def test_gpus_are_dealt_by_ranks_that_use_them(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_devices({}, tmp_path) == ["0", "1"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "GPU-b, GPU-a"}) == ["GPU-b", "GPU-a"]
    for hidden in ("", "-1"):
        assert visible_devices({"CUDA_VISIBLE_DEVICES": hidden}, tmp_path) == []
    key, four = "CUDA_VISIBLE_DEVICES", ["0", "1", "2", "3"]
    assert [dealt(four, 3, slot) for slot in range(3)] == [{}, {key: "2,3,0,1"}, {}]
    assert dealt(four, 1, 5) == {key: "1,2,3,0"} and dealt(["0"], 1, 5) == {}
