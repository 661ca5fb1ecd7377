"""Server and clients in one process: what a round costs beyond its steps."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from contextlib import contextmanager

import pytest

import fedgmr_hpc
from fedgmr_hpc.runtime.worker import Worker
from fedgmr_hpc.storage.reader import differing_columns, read_result
from fedgmr_hpc.training.local_training import LocalTraining
from fedgmr_hpc.training.sgd import Trained
from fedgmr_hpc.transport.contract import InprocTransport, Tag

MODEL_PAGES = 6_603_710 * 4 // 4096  # of Conv2: what one copy in fresh memory would fault in

ROUNDS = """
import json, resource, sys
import fedgmr_hpc

class Faults(fedgmr_hpc.Callback):
    counts = []

    def on_round(self, run, end):
        self.counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

config = fedgmr_hpc.load_config("femnist", sys.argv[1:])
fedgmr_hpc.run(config, callbacks=[Faults()])
print(json.dumps(Faults.counts))
"""


@pytest.mark.parametrize("method", ["fedgmr", "heterofl"])
def test_frames_that_are_handed_over_give_what_their_bytes_give(method, tmp_path, monkeypatch):
    handed = []
    hand = InprocTransport.hand

    def noting(self, dest, tag, content, num_bytes):
        handed.append(tag)
        hand(self, dest, tag, content, num_bytes)

    monkeypatch.setattr(InprocTransport, "hand", noting)
    results = []
    for is_verified in (False, True):
        num_before = len(handed)
        words = ["run.max_rounds=4", "run.interval_rounds=2", "progress=quiet", f"method={method}"]
        words += [f"results.path={tmp_path}/{is_verified}.h5", f"wire.verify={is_verified}".lower()]
        path = fedgmr_hpc.run(fedgmr_hpc.load_config("digits", words)).path
        results.append(read_result(path))
        assert set(handed[num_before:]) == (set() if is_verified else {Tag.FRAME, Tag.UPDATE})
    assert not differing_columns(*results)
    moved = [result.ranks["sent_bytes"].astype(int) for result in results]
    assert (
        abs(moved[0] - moved[1]).max() < 100
    )  # what ranks say of their times has more digits or less


@pytest.mark.parametrize(
    "words",
    [["method=fedgmr"], ["method=heterofl"], ["method=scaffold"], ["wire.dtype=int8"]],
)
def test_clients_side_by_side_give_what_clients_in_turn_give(words, tmp_path, monkeypatch):
    most_begun = []
    finish = Worker._end_training

    def noting(self, begun):
        most_begun.append(len(self.begun) + 1)
        return finish(self, begun)

    monkeypatch.setattr(Worker, "_end_training", noting)
    results = []
    for number in (1, 3):
        most_begun.clear()
        more = ["run.max_rounds=4", "run.interval_rounds=2", "progress=quiet", *words]
        more += [f"results.path={tmp_path}/{number}.h5", f"train.parallel_clients={number}"]
        results.append(read_result(fedgmr_hpc.run(fedgmr_hpc.load_config("digits", more)).path))
        assert max(most_begun) == number
    assert not differing_columns(*results)


def test_losses_are_read_in_the_stream_that_computes_them(tmp_path, monkeypatch):
    """Which a CPU does not show: another stream of a GPU reads what is not there yet."""
    inside, read_inside = [], []
    in_stream, mean_loss = LocalTraining.in_stream, Trained.mean_loss.fget

    @contextmanager
    def noting(self):
        with in_stream(self):
            inside.append(self)
            yield
            inside.pop()

    def reading(self):
        read_inside.append(bool(inside))
        return mean_loss(self)

    monkeypatch.setattr(LocalTraining, "in_stream", noting)
    monkeypatch.setattr(Trained, "mean_loss", property(reading))
    words = ["run.max_rounds=1", "progress=quiet", f"results.path={tmp_path}/run.h5"]
    fedgmr_hpc.run(fedgmr_hpc.load_config("digits", words))
    assert read_inside and all(read_inside)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set")
def test_a_round_reuses_the_memory_of_the_one_before(tmp_path):
    words = [
        "method=fedavg",
        "data.name=synthetic_femnist",
        "data.max_train=100",
        "data.max_test=10",
        "clients.count=3",
        "train.steps=1",
        "train.batch=2",
        "run.max_rounds=9",
        "run.interval_rounds=100",
        "progress=quiet",
        f"results.path={tmp_path}/a.h5",
    ]
    command = [sys.executable, "-c", ROUNDS, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    counts = json.loads(done.stdout.splitlines()[-1])
    warm = counts[-2] - counts[3]  # without the last round, which evaluates
    assert warm / (len(counts) - 5) < MODEL_PAGES / 10
