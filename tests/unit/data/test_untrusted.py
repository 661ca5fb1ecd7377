"""Files read in a child process: what comes back, every way to fail, what TFF files may hold."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from fedgmr_hpc.data import untrusted
from fedgmr_hpc.data.formats.tff_clients import read_clients
from fedgmr_hpc.data.untrusted import BadFile, read_in_child, reading
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.storage.schema import REQUIRED

CHILD = """
import os, sys, time
from fedgmr_hpc.data import untrusted
untrusted.CPU_S = 1

def work(path, kind):
    yield [path, kind, "PMI_RANK" in os.environ]
    if kind == "busy":
        sum(iter(int, 1))
    if kind == "hungry":
        bytearray(8 << 30)
    if kind == "crash":
        os.kill(os.getpid(), 11)
    if kind == "deep":
        raise RecursionError("too\\ndeep")
    if kind == "unknown":
        raise ValueError("not a thing")
    if kind == "silent":
        time.sleep(600)

parent, path, kind = sys.argv[1:]
untrusted.serve_parent(int(parent), lambda: work(path, kind))
"""


@pytest.fixture
def ask(tmp_path, monkeypatch):
    (tmp_path / "child_of_test.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PMI_RANK", "0")
    return lambda kind: read_in_child("child_of_test", Path("/f.h5"), [kind], "a thing")


def test_values_come_back_and_the_child_is_no_rank(ask):
    assert list(ask("well")) == [["/f.h5", "well", False]]


@pytest.mark.parametrize(
    "kind, found",
    [
        ("unknown", "not a thing"),
        ("busy", "its reader was busy for 10 s and got nowhere: damaged or hostile"),
        ("hungry", "it takes more than 2 GiB of memory to read"),
        ("crash", "its reader ended by SIGSEGV"),
        ("deep", "cannot be read (too deep)"),
        ("silent", "its reader had to wait for more than 1.5 s"),
    ],
)
def test_every_end_of_a_child_is_one_line_with_the_name_of_the_file(ask, monkeypatch, kind, found):
    values = ask(kind)
    assert next(values)[1] == kind
    if kind == "silent":
        monkeypatch.setattr(untrusted, "SILENCE_S", 1.5)
    with pytest.raises(BadFile) as error:
        next(values)
    assert str(error.value) == f"/f.h5: {found}, expected a thing"


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_dies_with_its_parent(ask, tmp_path, number):
    program = (
        "from pathlib import Path; from fedgmr_hpc.data.untrusted import read_in_child\n"
        "for value in read_in_child('child_of_test', Path('/f'), ['silent'], ''):\n"
        "    print(value, flush=True)\n"
    )
    paths = os.pathsep.join([str(tmp_path), os.getcwd()])
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert parent.stdout is not None and parent.stdout.readline()
    (child,) = children_of(parent.pid)
    parent.send_signal(number)
    assert parent.wait(60) == -number
    deadline_s = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()


# TFF files


def make_tokens(file, kind):
    words = np.array([b"a b", b"c"], "S9")
    if kind == "soft link":
        file["other"], file["examples/u/tokens"] = words, h5py.SoftLink("/other")
    elif kind == "external link":
        file["examples/u"] = h5py.ExternalLink("other.h5", "/u")
    elif kind == "linked root":
        file["real/u/tokens"], file["examples"] = words, h5py.SoftLink("/real")
    elif kind == "external storage":
        file.create_dataset("examples/u/tokens", (2,), "S9", external=[("/etc/passwd", 0, 18)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout((2,), "S9")
        layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
        file.create_virtual_dataset("examples/u/tokens", layout)
    elif kind == "bomb":
        many = 1 << 26
        file.create_dataset("examples/u/tokens", (many,), "S9", chunks=(many,), compression="gzip")
    elif kind == "references":
        file.create_dataset("examples/u/tokens", (2,), h5py.ref_dtype)
    else:
        file.create_dataset("examples/u/tokens", data=words, chunks=(2,), compression="gzip")


@pytest.mark.parametrize(
    "kind, found",
    [
        ("soft link", r"/examples/u/tokens is a link to another place \(SoftLink\)"),
        ("external link", r"/examples/u is a link to another place \(ExternalLink\)"),
        ("linked root", r"/examples is a link to another place \(SoftLink\)"),
        ("external storage", "/examples/u/tokens keeps its values in other files"),
        ("virtual", "/examples/u/tokens keeps its values in other files"),
        ("bomb", "client 'u' has tokens in chunks of 603979776 bytes"),
        ("references", "client 'u' has no list tokens"),
    ],
)
def test_a_file_may_not_lead_elsewhere_nor_swell(tmp_path, kind, found):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        make_tokens(file, kind)
    with pytest.raises(ValueError, match=found):
        list(read_clients(str(tmp_path / "t.h5"), 9, 9, 9))


@pytest.mark.parametrize("kind", ["external link", "external storage", "virtual"])
def test_no_part_of_a_result_may_lie_elsewhere(tmp_path, kind):
    with h5py.File(tmp_path / "r.h5", "w", libver="latest") as file:
        for name in (*REQUIRED, "checksums"):
            file.create_group(name)
        make_tokens(file, kind)
    with pytest.raises(ValueError, match=r"r\.h5: /examples/u.* (is a link|keeps its values in)"):
        read_result(tmp_path / "r.h5")


def test_an_old_format_of_hdf5_is_no_result_and_not_opened(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w", libver="earliest", userblock_size=512) as file:
        file["status"] = b"finished"
    with pytest.raises(
        ValueError, match=r"r\.h5: cannot be read \(HDF5 of an old format, which no"
    ):
        read_result(tmp_path / "r.h5")


def test_packed_sentences_are_read_to_their_last_allowed_word(tmp_path):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        make_tokens(file, "packed")
        file["examples/v/tokens"] = ["  größe 你好\t😀 four ", ""]
    assert list(read_clients(str(tmp_path / "t.h5"), 9, 9, 3)) == [
        ("u", ["a b", "c"]),
        ("v", ["größe 你好 😀", ""]),
    ]


@pytest.mark.parametrize("error", [RecursionError("x"), MemoryError(), OverflowError("y" * 999)])
def test_whatever_a_reader_raises_is_one_line_with_the_name_of_the_file(error):
    with pytest.raises(BadFile) as refused, reading("a.json", "a shard"):
        raise error
    line = str(refused.value)
    assert line.startswith("a.json: cannot be read (") and line.endswith("), expected a shard")
    assert len(line) < 400
