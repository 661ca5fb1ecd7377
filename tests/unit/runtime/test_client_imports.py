"""What a client rank imports: what it does not need costs files and memory a thousand times."""

from __future__ import annotations

import json
import subprocess
import sys

FORBIDDEN = (
    "h5py", "jinja2", "matplotlib", "pandas", "rich", "scipy", "sklearn", "submitit",
    "fedgmr_hpc.fl.coordinator", "fedgmr_hpc.runtime.server", "fedgmr_hpc.storage.writer",
    "torch._dynamo", "torch._inductor", "sympy",
)  # fmt: skip
CLIENT_RANK = """
import json, sys
from fedgmr_hpc.cli.launch import launch
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.runtime.rank_process import launch_rank
from fedgmr_hpc.runtime.roles import follow
from fedgmr_hpc.transport.contract import Tag, make_inproc

config = load_config("digits", ["data.max_train=100", "data.max_test=50"])
hello = {
    "config": config.model_dump(mode="json"), "run_id": 1, "is_replay": False,
    "data_xxh3": FederatedData(config).fingerprint, "kernels": "",
}
server, client = make_inproc(2)
server.send(1, Tag.HELLO, json.dumps(hello).encode())
server.send(1, Tag.STOP, json.dumps({"code": 0}).encode())
assert follow(client) == 0
goodbye = server.recv(1.0)
assert goodbye.tag == Tag.STOP, bytes(goodbye.payload)
print(json.dumps(sorted(sys.modules)))
"""


def test_a_client_rank_imports_nothing_of_the_servers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT_RANK], check=True, capture_output=True, text=True
    )
    modules = json.loads(done.stdout.splitlines()[-1])
    assert "fedgmr_hpc.runtime.worker" in modules
    assert sorted(set(FORBIDDEN) & set(modules)) == []
