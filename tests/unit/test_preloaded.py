"""Stand-ins are what they stand for: words, environment, folder, files, and how they end."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from preloaded import Server, preloaded_python, receive

TELL = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ["TOLD"], os.getcwd(), __name__, "torch" in sys.modules]))
print("aside", file=sys.stderr)
sys.exit(3)
"""


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


def test_words_environment_folder_output_and_exit_code_are_the_stand_ins(tmp_path: Path) -> None:
    done = subprocess.run(
        [*preloaded_python(), script(tmp_path, TELL), "a", "b=c"],
        cwd=tmp_path,
        env={"TOLD": "this"},
        capture_output=True,
        text=True,
    )
    said = f'[["a", "b=c"], "this", "{tmp_path}", "__main__", true]\n'
    assert (done.stdout, done.stderr, done.returncode) == (said, "aside\n", 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_signal_that_ends_a_fork_ends_its_stand_in(
    number: signal.Signals, tmp_path: Path
) -> None:
    text = f"import os; os.kill(os.getpid(), {int(number)})"
    assert subprocess.run([*preloaded_python(), script(tmp_path, text)]).returncode == -number


def test_a_fork_ends_with_its_stand_in_even_when_stopped(tmp_path: Path) -> None:
    text = "import os, signal; print(os.getpid(), flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    command = [*preloaded_python(), script(tmp_path, text)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    deadline_s = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s, "the fork lives on"
        time.sleep(0.01)


def test_an_error_is_told_as_python_tells_it(tmp_path: Path) -> None:
    command = [*preloaded_python(), script(tmp_path, "raise ValueError('so')")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("ValueError: so\n")


@pytest.mark.parametrize("sent", [b"", (9).to_bytes(8, "big") + b"[]"])
def test_a_stand_in_that_is_ended_early_is_noticed(sent: bytes) -> None:
    near, far = socket.socketpair()
    if sent:
        socket.send_fds(far, [sent], [0])
    far.close()
    with near, pytest.raises(ConnectionError):
        receive(near)


def test_a_stand_in_that_is_ended_with_its_fork_ends_nothing_else() -> None:
    server = Server.__new__(Server)  # without its signals
    near, far = socket.socketpair()
    pid = os.posix_spawn("/bin/true", ["true"], {})
    server.forks, server.ready = {pid: near}, selectors.DefaultSelector()
    server.ready.register(near, selectors.EVENT_READ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    far.close()
    ((key, _),) = server.ready.select()  # both are known at once
    server.bury()
    server.end_fork(key.fileobj)
    assert not server.forks and not server.ready.get_map()
