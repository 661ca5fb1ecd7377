"""A multi-process benchmark suite for FedGMR and the federated methods it is compared with.

A run from Python has its server and clients in this process; `python -m fedgmr_hpc` starts runs of
many ranks.

Example:
    >>> import fedgmr_hpc
    >>> config = fedgmr_hpc.load_config("digits", {"run.max_rounds": 100}, method="heterofl")
    >>> result = fedgmr_hpc.run(config)
    >>> result.evaluations["test_accuracy"]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgmr_hpc.config.choices.own_data import Arrays, register_dataset
    from fedgmr_hpc.config.choices.registry import (
        register_admission,
        register_aggregation,
        register_objective,
        register_restoration,
        register_score,
        register_selection,
        register_transport,
    )
    from fedgmr_hpc.config.choices.section import Section
    from fedgmr_hpc.config.files import load_config, make_config
    from fedgmr_hpc.config.schema import Config
    from fedgmr_hpc.fl.admission import AdmissionRule
    from fedgmr_hpc.fl.aggregation import MeanRule, WholeRule
    from fedgmr_hpc.fl.restoration import Schedule
    from fedgmr_hpc.fl.scores import Score
    from fedgmr_hpc.fl.selection import SelectionRule
    from fedgmr_hpc.models.registry import register_model
    from fedgmr_hpc.results.run_result import RunResult, read_result
    from fedgmr_hpc.results.runs import run
    from fedgmr_hpc.runtime.callbacks.contract import Callback, RoundEnd, RunHandle
    from fedgmr_hpc.runtime.callbacks.csv_lines import CsvLines
    from fedgmr_hpc.runtime.callbacks.tensorboard import TensorBoard
    from fedgmr_hpc.runtime.callbacks.weights_and_biases import WeightsAndBiases
    from fedgmr_hpc.training.objectives.contract import LocalSteps, Objective

__version__ = "0.1.0"
__all__ = [
    "AdmissionRule",
    "Arrays",
    "Callback",
    "Config",
    "CsvLines",
    "LocalSteps",
    "MeanRule",
    "Objective",
    "RoundEnd",
    "RunHandle",
    "RunResult",
    "Schedule",
    "Score",
    "Section",
    "SelectionRule",
    "TensorBoard",
    "WeightsAndBiases",
    "WholeRule",
    "load_config",
    "make_config",
    "read_result",
    "register_admission",
    "register_aggregation",
    "register_dataset",
    "register_model",
    "register_objective",
    "register_restoration",
    "register_score",
    "register_selection",
    "register_transport",
    "run",
]


_HOMES = {
    "AdmissionRule": "fedgmr_hpc.fl.admission",
    "Callback": "fedgmr_hpc.runtime.callbacks.contract",
    "Config": "fedgmr_hpc.config.schema",
    "CsvLines": "fedgmr_hpc.runtime.callbacks.csv_lines",
    "LocalSteps": "fedgmr_hpc.training.objectives.contract",
    "MeanRule": "fedgmr_hpc.fl.aggregation",
    "Objective": "fedgmr_hpc.training.objectives.contract",
    "RoundEnd": "fedgmr_hpc.runtime.callbacks.contract",
    "RunHandle": "fedgmr_hpc.runtime.callbacks.contract",
    "RunResult": "fedgmr_hpc.results.run_result",
    "Schedule": "fedgmr_hpc.fl.restoration",
    "Score": "fedgmr_hpc.fl.scores",
    "Section": "fedgmr_hpc.config.choices.section",
    "SelectionRule": "fedgmr_hpc.fl.selection",
    "TensorBoard": "fedgmr_hpc.runtime.callbacks.tensorboard",
    "WeightsAndBiases": "fedgmr_hpc.runtime.callbacks.weights_and_biases",
    "WholeRule": "fedgmr_hpc.fl.aggregation",
    "load_config": "fedgmr_hpc.config.files",
    "make_config": "fedgmr_hpc.config.files",
    "read_result": "fedgmr_hpc.results.run_result",
    "run": "fedgmr_hpc.results.runs",
    **dict.fromkeys(
        (name for name in __all__ if name.startswith("register_")),
        "fedgmr_hpc.config.choices.registry",
    ),
    **dict.fromkeys(("Arrays", "register_dataset"), "fedgmr_hpc.config.choices.own_data"),
    "register_model": "fedgmr_hpc.models.registry",
}


def __getattr__(name: str) -> Any:
    """Import a name only when it is used, so that `import fedgmr_hpc` is light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedgmr_hpc' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the names that are there, those that are not imported yet, too."""
    return sorted({*globals(), *__all__})
