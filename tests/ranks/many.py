"""`python many.py FOLDER METHOD... [key=value ...]`: one run after the other in one job.

Under mpirun all runs share the ranks; alone, server and clients share the process.
"""

from __future__ import annotations

import os
import sys

import torch

import fedgmr_hpc
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.runtime.preparation import Experiment
from fedgmr_hpc.runtime.roles import follow, guard, lead
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.transport.contract import Transport
from fedgmr_hpc.transport.joining import make_transport
from fedgmr_hpc.transport.ranks import detect_launch


def make_configs(folder: str, words: list[str]) -> list[Config]:
    overrides = [word for word in words if "=" in word]
    return [
        load_config(None, [f"method={word}", f"results.path={folder}/{word}.h5", *overrides])
        for word in words
        if "=" not in word
    ]


def ended(experiment: Experiment, result: Result) -> int:
    """The exit code of a run."""
    return int(result.status != "finished")


def run_part(transport: Transport, configs: list[Config]) -> int:
    for config in configs:
        code = follow(transport) if transport.rank else lead(config, None, transport, ended)
        if code:
            return code
    return 0


def main(folder: str, *words: str) -> int:
    torch.set_num_threads(1)
    configs = make_configs(folder, list(words))
    transport = make_transport("auto", detect_launch(os.environ))
    if transport is not None:
        return guard(transport, lambda: run_part(transport, configs))
    for config in configs:
        fedgmr_hpc.run(config)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
