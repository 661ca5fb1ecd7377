"""A multi-process benchmark suite for FedGMR and the federated methods it is compared with.

A run from Python has its server and clients in this process; `python -m fedgmr_hpc` starts runs of
many ranks.

Example:
    >>> import fedgmr_hpc
    >>> config = fedgmr_hpc.load_config("digits", ["method=heterofl", "run.max_rounds=100"])
    >>> result = fedgmr_hpc.run(config)
    >>> result.evaluations["test_accuracy"]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgmr_hpc.config.choices.registry import (
        register_admission,
        register_aggregation,
        register_objective,
        register_restoration,
        register_score,
        register_transport,
    )
    from fedgmr_hpc.config.files import load_config, make_config
    from fedgmr_hpc.config.schema import Config
    from fedgmr_hpc.runtime.roles import run
    from fedgmr_hpc.storage.reader import read_result

__version__ = "0.1.0"
__all__ = [
    "Config",
    "load_config",
    "make_config",
    "read_result",
    "register_admission",
    "register_aggregation",
    "register_objective",
    "register_restoration",
    "register_score",
    "register_transport",
    "run",
]


_HOMES = {
    "Config": "fedgmr_hpc.config.schema",
    "load_config": "fedgmr_hpc.config.files",
    "make_config": "fedgmr_hpc.config.files",
    "read_result": "fedgmr_hpc.storage.reader",
    "run": "fedgmr_hpc.runtime.roles",
    **dict.fromkeys(
        (name for name in __all__ if name.startswith("register_")),
        "fedgmr_hpc.config.choices.registry",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a name only when it is used, so that `import fedgmr_hpc` is light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedgmr_hpc' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
