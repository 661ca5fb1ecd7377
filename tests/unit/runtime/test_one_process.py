"""Server and clients in one process: what a round costs beyond its steps."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

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
