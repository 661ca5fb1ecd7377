"""Read files that others made: every failure becomes one line that names the file.

A damaged file makes a parser raise nearly anything: RecursionError for JSON a thousand brackets
deep, MemoryError for a length field of garbage, OverflowError, errors of zlib or struct. `reading`
turns all of them into `BadFile`.

Files that a C library reads (HDF5) are read in a child process. A damaged or hostile file can keep
the library busy for ever or crash it, beyond the reach of any Python handler. The child writes what
it finds as one JSON value a line. Between two lines it may use `CPU_S` of processor time, enforced
by the kernel, so that waiting for a slow disk is free; the parent waits at most `SILENCE_S`. The
child has `MEMORY_BYTES` of memory, knows nothing of MPI, and ends with its parent. Only numbers and
strings come back, nothing that is ever executed.
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
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

MESSAGE_CHARS = 300
CPU_S = 10  # a line holds one user's sentences, which take milliseconds
SILENCE_S = 300.0  # a file may first have to be staged from tape
MEMORY_BYTES = 2 << 30
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = re.compile(r"(PMI|PMIX|OMPI|OPAL|PRTE|MPI|MPICH|MPIR|MV2|HYDRA|HYDI|I_MPI|PALS)_")
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class BadFile(ValueError):
    """A file is refused; the message is one line that begins with the file's path."""


def refuse(path: Path | str, found: str, expected: str) -> NoReturn:
    """Refuse a file, saying what was found in it and what was expected."""
    raise BadFile(f"{path}: {found}, expected {expected}")


@contextmanager
def reading(path: Path | str, expected: str) -> Iterator[None]:
    """Guard the code that reads one file.

    Args:
        path: the file.
        expected: what the file should have been.

    Raises:
        BadFile: anything went wrong, including a file that cannot be opened.

    Example:
        with reading(path, "a LEAF shard"):
            shard = json.loads(path.read_text())
    """
    try:
        yield
    except BadFile:
        raise
    except Exception as error:
        raise BadFile(f"{path}: cannot be read ({brief(error)}), expected {expected}") from None


def brief(error: BaseException) -> str:
    """Return an exception's message as one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MESSAGE_CHARS else f"{text[:MESSAGE_CHARS]}..."


def read_in_child(module: str, path: Path, words: Iterable[str], expected: str) -> Iterator[Any]:
    """Yield what `python -m MODULE PARENT PATH WORDS...` reports about a file.

    Args:
        module: the reader, whose main block calls `serve_parent`.
        path: the file.
        words: further arguments of the reader.
        expected: what the file should be.

    Raises:
        BadFile: the child refuses the file, takes too long, or crashes.
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
    """Return the environment without variables of MPI launchers, and with this package first.

    A child that saw the launcher's variables would take itself for a rank.
    """
    kept = {key: value for key, value in os.environ.items() if not LAUNCHER.match(key)}
    paths = filter(None, (str(PACKAGE_ROOT), kept.get("PYTHONPATH")))
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}


def _messages(child: subprocess.Popen[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield the lines of a child until its end; end a child that is silent for too long."""
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
    """Say why a child ended before it was done."""
    if code == -signal.SIGXCPU:
        return f"its reader was busy for {CPU_S} s and got nowhere: damaged or hostile"
    if code == -signal.SIGALRM:
        return f"its reader had to wait for more than {SILENCE_S:g} s"
    errors.seek(0)
    last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"its reader ended by {how}{last and f' ({last})'}"


def serve_parent(parent: int, read: Callable[[], Iterable[Any]]) -> None:
    """Report what `read` yields to the parent, within the limits; the child's side.

    Args:
        parent: process id of the parent.
        read: the reader; it refuses a file by a ValueError without the file's name, and anything
            else that it raises is reported as a file that cannot be read.
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
    """End this process when its parent ends, however that happens (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # the parent had ended before the call
            sys.exit(1)


def _allow_time() -> None:
    """Allow `CPU_S` from now on, after which the kernel ends this process."""
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + CPU_S)


def _limit(what: int, amount: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(what, (most, hard))
