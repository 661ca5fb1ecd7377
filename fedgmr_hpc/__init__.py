"""fedgmr_hpc: a multi-process benchmark suite for FedGMR and the methods it is compared with.

From Python, with server and clients in this process:

    import fedgmr_hpc
    result = fedgmr_hpc.run(fedgmr_hpc.load_config("digits", ["run.max_rounds=100"]))
    result.evaluations["test_accuracy"]
"""

from __future__ import annotations

from typing import Any

from fedgmr_hpc.config.files import load_config, make_config
from fedgmr_hpc.config.schema import Config

__version__ = "0.1.0"
__all__ = ["Config", "load_config", "make_config", "read_result", "run"]


def __getattr__(name: str) -> Any:
    """`run` and `read_result` load torch and h5py only when used."""
    if name == "run":
        from fedgmr_hpc.runtime.roles import run

        return run
    if name == "read_result":
        from fedgmr_hpc.storage.reader import read_result

        return read_result
    raise AttributeError(f"module 'fedgmr_hpc' has no attribute {name!r}")
