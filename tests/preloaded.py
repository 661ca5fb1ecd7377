"""Processes that begin with everything imported, for launchers that start many of them.

Importing torch takes a rank more time than its share of a small run. So one process imports once
(`serve`), and launchers start this file as a stand-in (`stand_in`), which hands over its words,
environment, folder and open files, the launcher's own connection among them; a fork of the first
process does the work. The stand-in ends as the fork does, and the fork when the stand-in is ended.

    python preloaded.py SOCKET -m MODULE WORDS...        or SCRIPT instead of -m MODULE
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from typing import Any

MODULES = (
    "fedgmr_hpc.cli.launch",
    "fedgmr_hpc.data.datasets",
    "fedgmr_hpc.launch",
    "fedgmr_hpc.results.summary",
    "fedgmr_hpc.runtime.experiment",
    "fedgmr_hpc.runtime.rank_process",
    "fedgmr_hpc.runtime.wall.pool",
    "torch.distributed.run",
)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LENGTH, _MAX_BYTES, _MOST_FILES = 8, 1 << 20, 8
_HIGH = 100  # above the numbers of files that launchers hand to their processes


def preloaded_python() -> list[str]:
    """Return what stands for `python` in a command."""
    return [sys.executable, "-S", "-E", __file__, _start_server()[1]]


@functools.cache
def _start_server() -> tuple[Any, str]:
    """Return the process that is forked, which ends with this one, and its socket."""
    path = os.path.join(tempfile.mkdtemp(prefix="preloaded"), "socket")
    process = subprocess.Popen(
        [sys.executable, __file__, "serve", path],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process, path


def stand_in(path: str, *words: str) -> int:
    """Let a fork do what this process is to do; return its exit code."""
    files = [0, 1, 2, *(int(os.environ[name]) for name in ["PMI_FD"] if name in os.environ)]
    job = {"words": words, "env": dict(os.environ), "folder": os.getcwd(), "files": files}
    content = json.dumps(job).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [len(content).to_bytes(_LENGTH, "big")], files)
        server.sendall(content)
        status = int(server.recv(_LENGTH) or str(int(signal.SIGKILL)))
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return os.waitstatus_to_exitcode(status)


class Server:
    """Forks a process for each stand-in, until stdin ends."""

    def __init__(self, path: str) -> None:
        self.forks: dict[int, socket.socket] = {}  # their stand-ins by process id
        self.path = path
        self.woken, self.wake = socket.socketpair()
        self.wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.wake.fileno())
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.ready = selectors.DefaultSelector()
        for each in (sys.stdin, self.woken, self.listener):
            self.ready.register(each, selectors.EVENT_READ)

    def serve(self) -> list[str]:
        """Return the words of a fork in that fork, and none at the end."""
        while True:
            for key, _ in self.ready.select():
                if key.fileobj is sys.stdin:
                    self.end()
                    return []
                if key.fileobj is self.listener:
                    if words := self.fork():
                        return words
                elif key.fileobj is self.woken:
                    self.woken.recv(4096)
                    self.bury()
                else:
                    self.end_fork(key.fileobj)

    def fork(self) -> list[str]:
        """Return a stand-in's words in the fork that is to follow them."""
        stand_in, _ = self.listener.accept()
        try:
            job, files = receive(stand_in)
        except ConnectionError:
            stand_in.close()
            return []
        if pid := os.fork():
            for file in files:
                os.close(file)
            self.forks[pid] = stand_in
            self.ready.register(stand_in, selectors.EVENT_READ)
            return []
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.ready.close()
        for each in (*self.forks.values(), stand_in, self.listener, self.woken, self.wake):
            each.close()
        become(job, files)
        return job["words"]

    def end(self) -> None:
        """Leave nothing behind."""
        for pid in self.forks:
            os.kill(pid, signal.SIGKILL)
        os.unlink(self.path)
        os.rmdir(os.path.dirname(self.path))

    def end_fork(self, stand_in: Any) -> None:
        """End the fork of a stand-in that was ended, if it has not just been buried."""
        for pid, each in self.forks.items():
            if each is stand_in:
                self.ready.unregister(stand_in)
                os.kill(pid, signal.SIGKILL)

    def bury(self) -> None:
        """Tell stand-ins how their forks have ended."""
        for pid, stand_in in list(self.forks.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                if (
                    stand_in.fileno() in self.ready.get_map()
                ):  # it was not ended itself, as far as known
                    self.ready.unregister(stand_in)
                    with contextlib.suppress(ConnectionError):
                        stand_in.send(str(status).encode())
                self.forks.pop(pid).close()


def receive(stand_in: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return what a stand-in hands over, and its files under numbers of this process.

    Raises:
        ConnectionError: it was ended before it had.
    """
    length, files, _, _ = socket.recv_fds(stand_in, _LENGTH, _MOST_FILES)
    content = b""
    while not length or len(content) < int.from_bytes(length, "big"):
        piece = stand_in.recv(_MAX_BYTES)
        if not piece:
            for file in files:
                os.close(file)
            raise ConnectionError
        content += piece
    return json.loads(content), files


def become(job: dict[str, Any], files: list[int]) -> None:
    """Give this process a stand-in's files at their numbers, its environment and its folder."""
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, _HIGH) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(high, job["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["folder"])


def run(words: list[str]) -> None:
    """Run a module or a script as Python does."""
    if words[0] == "-m":
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = words
        sys.path[0] = os.path.dirname(words[0])
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] != "serve":
        sys.exit(stand_in(*sys.argv[1:]))
    for name in MODULES:
        __import__(name)
    sys.modules.pop("fedgmr_hpc.launch")  # is run, not imported
    gc.freeze()  # a fork that looks through all of this at its end copies every page
    server = Server(sys.argv[2])
    print("ready", flush=True)
    if words := server.serve():
        run(words)
