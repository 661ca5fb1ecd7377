"""`python many.py FOLDER METHOD... [key=value ...]`: one run after the other in one job.

Under mpirun all runs share the ranks; alone, server and clients share the process.
"""

from __future__ import annotations

import os
import sys

import torch

from fedgmr_hpc.cli import launch
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.transport.contract import Transport
from fedgmr_hpc.transport.ranks import detect_launch


def make_configs(folder: str, words: list[str]) -> list[Config]:
    overrides = [word for word in words if "=" in word]
    return [
        load_config(None, [f"method={word}", f"results.path={folder}/{word}.h5", *overrides])
        for word in words
        if "=" not in word
    ]


def run_part(transport: Transport, configs: list[Config]) -> int:
    for config in configs:
        code = launch.follow(transport) if transport.rank else launch.lead(config, None, transport)
        if code:
            return code
    return 0


def main(folder: str, *words: str) -> int:
    torch.set_num_threads(1)
    configs = make_configs(folder, list(words))
    transport = launch.make_transport("auto", detect_launch(os.environ))
    if transport is not None:
        return launch.guard(transport, lambda: run_part(transport, configs))
    for config in configs:
        launch.run(config)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
