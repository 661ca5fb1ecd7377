"""Foreign files that a C library reads are read in a child process, which may be killed.

A damaged or hostile HDF5 file can keep the library busy for ever, or crash it, where no Python
handler is heard. So a child of our own interpreter reads it and says what it found, a JSON value a
line. Between two lines it has `CPU_S` of processor time, which the kernel holds it to, so a slow
disk costs nothing, and the parent waits `SILENCE_S` at most. It has `MEMORY_BYTES` of memory, knows
nothing of MPI, and dies with its parent. Numbers and words come back, nothing that is ever run.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from fedgmr_hpc.data.foreign import brief, refuse

CPU_S = 10  # a line is a user's sentences: some milliseconds
SILENCE_S = 300.0  # a file may first have to come from a tape
MEMORY_BYTES = 2 << 30
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = re.compile(r"(PMI|PMIX|OMPI|OPAL|PRTE|MPI|MPICH|MPIR|MV2|HYDRA|HYDI|I_MPI|PALS)_")
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def read_in_child(module: str, path: Path, words: Iterable[str], expected: str) -> Iterator[Any]:
    """What `python -m module PARENT path words...` says of a file that should be `expected`.

    Raises:
        BadFile: the child refuses the file, is too slow over it, or crashes.
    """
    command = [sys.executable, "-m", module, str(os.getpid()), str(path.absolute()), *words]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_own_environment(),
            cwd=PACKAGE_ROOT,
        ) as child,
    ):
        try:
            for kind, value in _messages(child):
                if kind == "done":
                    return
                if kind == "refused":
                    refuse(path, value, expected)
                yield value
            refuse(path, _describe_end(child.wait(), errors), expected)
        finally:
            child.kill()


def _own_environment() -> dict[str, str]:
    """This one without what launchers tell their ranks, and with this package first."""
    kept = {key: value for key, value in os.environ.items() if not LAUNCHER.match(key)}
    paths = filter(None, (str(PACKAGE_ROOT), kept.get("PYTHONPATH")))
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}


def _messages(child: subprocess.Popen[bytes]) -> Iterator[tuple[str, Any]]:
    """The lines of a child until it has no more; one that is silent for too long is ended."""
    assert child.stdout is not None
    pipe, poll, left = child.stdout.fileno(), select.poll(), b""
    poll.register(pipe, select.POLLIN)
    while True:
        if not poll.poll(1e3 * SILENCE_S):
            child.send_signal(signal.SIGALRM)
        if not (block := os.read(pipe, 1 << 20)):
            return
        *lines, left = (left + block).split(b"\n")
        yield from map(json.loads, lines)


def _describe_end(code: int, errors: IO[bytes]) -> str:
    """Why a child has ended before it was done."""
    if code == -signal.SIGXCPU:
        return f"its reader was busy for {CPU_S} s and got nowhere: damaged or hostile"
    if code == -signal.SIGALRM:
        return f"its reader had to wait for more than {SILENCE_S:g} s"
    errors.seek(0)
    last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"its reader ended by {how}{last and f' ({last})'}"


def serve_parent(parent: int, read: Callable[[], Iterable[Any]]) -> None:
    """The child's side: says what `read` yields, within the limits.

    `read` refuses a file by a ValueError without the file's name; what else it raises becomes one.
    """
    _die_with(parent)
    _limit(resource.RLIMIT_DATA, MEMORY_BYTES)
    _allow_time()
    try:
        for value in read():
            _say("value", value)
            _allow_time()
        _say("done", None)
    except ValueError as error:
        _say("refused", brief(error))
    except MemoryError:
        _say("refused", f"it takes more than {MEMORY_BYTES >> 30} GiB of memory to read")
    except Exception as error:
        _say("refused", f"cannot be read ({brief(error)})")


def _say(kind: str, value: Any) -> None:
    sys.stdout.write(json.dumps((kind, value)) + "\n")
    sys.stdout.flush()


def _die_with(parent: int) -> None:
    """Ends this process when its parent ends, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it was faster
            sys.exit(1)


def _allow_time() -> None:
    """From now on `CPU_S`, after which the kernel ends this process."""
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + CPU_S)


def _limit(what: int, amount: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(what, (most, hard))
