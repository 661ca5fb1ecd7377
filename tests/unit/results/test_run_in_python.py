"""Runs from a Python program: what `run` takes, refuses and says, and Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import fedgmr_hpc
from fedgmr_hpc.storage.reader import differing_columns

TINY = {
    "clients.count": 2,
    "run.interval_rounds": 2,
    "train": {"batch": 4, "steps": 1},
    "data": {"max_train": 200, "max_test": 40},
    "progress": "quiet",
}
INTERRUPTED = """
import signal, sys
import fedgmr_hpc
from tests_of_runs import TINY

class Tell(fedgmr_hpc.Callback):
    def on_round(self, run, end):
        print(end.round, flush=True)

before = signal.getsignal(signal.SIGINT)
keys = {"run.max_rounds": 100_000, "results.path": sys.argv[1]}
try:
    fedgmr_hpc.run("digits", TINY, callbacks=[Tell()], **keys)
except KeyboardInterrupt as error:
    print(signal.getsignal(signal.SIGINT) is before, error)
"""


def test_ctrl_c_checkpoints_says_how_to_go_on_and_is_given_back(tmp_path: Path) -> None:
    path, code = tmp_path / "run.h5", INTERRUPTED.replace("tests_of_runs", Path(__file__).stem)
    words = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "1\n"
        p.send_signal(signal.SIGINT)
        *_, said = p.stdout.read().splitlines()
        assert p.wait(60) == 0
    found = re.fullmatch(
        r"True checkpointed: version (\d+), at SIGINT; the same run with "
        rf"results.path={re.escape(str(path))} and resume=True goes on",
        said,
    )
    assert found is not None, said
    keys = {"run.max_rounds": int(found[1]) + 2}
    resumed = fedgmr_hpc.run("digits", TINY, resume=True, **keys, **{"results.path": path})
    whole = fedgmr_hpc.run("digits", TINY, **keys, **{"results.path": tmp_path / "whole.h5"})
    assert differing_columns(resumed, whole) == []


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    keys = {"run.max_rounds": 1, "results.path": str(tmp_path / "run.h5")}
    statuses: list[str] = []

    def train() -> None:
        statuses.append(fedgmr_hpc.run("digits", TINY, **keys).status)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert statuses == ["finished"]


def test_a_run_takes_what_load_config_takes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: fedavg\nrun: {max_rounds: 1}\n")
    nested = {"method": "fedavg", "run.max_rounds": 1, "seed": 0}
    config = fedgmr_hpc.load_config(nested, TINY, **{"results.path": tmp_path / "config.h5"})
    results = [
        fedgmr_hpc.run(config),
        fedgmr_hpc.run(nested, TINY, results={"path": tmp_path / "mapping.h5"}),
        fedgmr_hpc.run(file, TINY, results={"path": tmp_path / "path.h5"}),
        fedgmr_hpc.run([str(file)], TINY, results={"path": tmp_path / "list.h5"}),
    ]
    assert {result.path.stem for result in results} == {"config", "mapping", "path", "list"}
    assert [differing_columns(results[0], each) for each in results[1:]] == [[], [], []]


def test_a_finished_run_is_read_and_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"run.max_rounds": 1, "results.path": str(tmp_path / "run.h5")}
    first = fedgmr_hpc.run("digits", TINY, resume=True, **keys)
    changed = first.path.stat().st_mtime_ns
    again = fedgmr_hpc.run("digits", TINY, resume=True, **keys)
    assert differing_columns(first, again) == [] and first.path.stat().st_mtime_ns == changed
    assert f"{first.path} is finished: nothing to resume" in capsys.readouterr().out
    with pytest.raises(ValueError, match="exists and is never overwritten"):
        fedgmr_hpc.run("digits", TINY, **keys)


def test_runs_of_one_second_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    results = [fedgmr_hpc.run("digits", TINY, **{"run.max_rounds": 1}) for _ in range(3)]
    names = {result.path.name for result in results}
    assert len(names) == 3
    pattern = r"digits-fedgmr-high-s0-20260101-000000-[0-9a-f]{8}\.h5"
    assert all(re.fullmatch(pattern, name) for name in names)


@pytest.mark.parametrize(
    ("arguments", "keys", "line"),
    [
        ((3,), {}, "a configuration must be a name, a path, a mapping, or a list of these (got 3)"),
        (
            ("digits", "seed=1"),
            {},
            "overrides must be a list of key=value words or a mapping (got 'seed=1')",
        ),
        (
            ("digits", {"run.max_rounds": 2.5}),
            {},
            "run.max_rounds must be a whole number (got 2.5)",
        ),
        (
            ("digits",),
            {"resume": True},
            "results.path must be the result file when resuming (got null)",
        ),
        (("digits",), {"resume": 1}, "resume must be true or false (got 1)"),
        (
            ("digits",),
            {"callbacks": [fedgmr_hpc.Callback]},
            "callbacks must be objects of classes of Callback (got the class Callback)",
        ),
        (
            ("digits",),
            {"callbacks": fedgmr_hpc.Callback()},
            "callbacks must be a list of callbacks (got 'Callback')",
        ),
        (
            (fedgmr_hpc.make_config({}), ["seed=1"]),
            {},
            "overrides must be absent when a Config is given: a Config is complete: "
            "give them to load_config",
        ),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    arguments: tuple[Any, ...], keys: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError) as error:
        fedgmr_hpc.run(*arguments, **keys)
    assert str(error.value) == line


def test_all_that_there_is_is_listed() -> None:
    code = "import fedgmr_hpc, sys; print(*dir(fedgmr_hpc)); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, has_torch = ran.stdout.splitlines()
    assert {"run", "load_config", "read_result", "Callback", "CsvLines"} <= set(names.split())
    assert set(fedgmr_hpc.__all__) <= set(names.split()) and has_torch == "False"
    assert all(getattr(fedgmr_hpc, name) is not None for name in fedgmr_hpc.__all__)
