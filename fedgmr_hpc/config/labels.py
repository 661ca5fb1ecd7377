"""What a run's method is called: its row, and in brackets what was made different from it.

`heterofl[aggregation.rule=average]` is HeteroFL with another merge rule: another method, which a
table or a legend must not show as the row. Only the keys that make up a row count: its axes, and of
local training what rows choose. Keys without effect beside the other choices do not, nor do the
scales of a task, which run files set alike for all methods.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from fedgmr_hpc.config.axes import LocalConfig
from fedgmr_hpc.config.identity import Keys, flat
from fedgmr_hpc.config.methods import AXES, load_method
from fedgmr_hpc.config.schema import Config

MAX_NAME = 80
# What a run file sets for its task; part of a method only where the row itself says it.
OF_THE_TASK = frozenset({"restoration.patience", "restoration.total_time_s"})
_GROWS = ("plateau", "time", "both")
# Keys that only some values of another key give an effect.
USED_WITH: dict[str, tuple[str, tuple[Any, ...]]] = {
    "submodel.scaler": ("submodel.kind", ("width_prefix", "width_rolling", "ordered_dropout")),
    "submodel.width_rates": ("submodel.kind", ("ordered_dropout",)),
    "submodel.score": ("submodel.kind", ("importance",)),
    "submodel.floor_frac": ("submodel.kind", ("importance",)),
    "submodel.use_costs": ("submodel.kind", ("importance",)),
    "submodel.layer_mean": ("submodel.kind", ("importance",)),
    "train.distillation": ("submodel.kind", ("ordered_dropout",)),
    "submodel.gate_biases": ("submodel.kind", ("importance", "magnitude")),
    "submodel.surrogate": ("submodel.kind", ("magnitude",)),
    "restoration.step": ("restoration.trigger", _GROWS),
    "restoration.fixed_step": ("restoration.step", ("fixed",)),
    "restoration.factor": ("restoration.step", ("factor",)),
    "restoration.patience": ("restoration.trigger", ("plateau", "both")),
    "restoration.arm_after_first_plateau": ("restoration.trigger", ("plateau", "both")),
    "restoration.total_time_s": ("restoration.trigger", ("time", "both")),
    "restoration.balance_rate": ("restoration.balance", (True,)),
    "restoration.min_density": ("restoration.balance", (True,)),
    "aggregation.mix_share": ("aggregation.rule", ("mix",)),
    "aggregation.server_learning_rate": ("aggregation.rule", ("fedbuff",)),
    "aggregation.max_entries": ("aggregation.buffered", (True,)),
    "aggregation.exponent": ("aggregation.staleness", ("poly", "hinge")),
    "aggregation.hinge_delay": ("aggregation.staleness", ("hinge",)),
    "admission.slack_s": ("admission.kind", ("window",)),
    "admission.count": ("admission.kind", ("count",)),
}


def method_label(config: Config | Mapping[str, Any], but: Collection[str] = ()) -> str:
    """The method of a run, whose configuration may be nested values as YAML has them.

    Args:
        but: dotted keys that are shown elsewhere, such as those that a study varies.
    """
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    name = str(values.get("method", "-"))
    try:
        row, own = _row(name)
    except ValueError:  # a row of another checkout
        return name
    found = flat(values)
    other = [
        f"{key}={_text(found[key])}"
        for key, value in row.items()
        if found.get(key, value) != value
        and key not in but
        and (key in own or key not in OF_THE_TASK)
        and is_used(key, found)
    ]
    return f"{name}[{','.join(other)}]" if other else name


def method_slug(config: Config) -> str:
    """The label for a file's name: without signs that a shell takes for its own."""
    return re.sub(r"[^A-Za-z0-9.+_]+", "-", method_label(config)).strip("-")[:MAX_NAME]


def is_used(key: str, found: Keys) -> bool:
    """Whether a key has an effect beside the other values of a flat configuration."""
    if key not in USED_WITH:
        return True
    other, values = USED_WITH[key]
    return found.get(other) in values and is_used(other, found)


@lru_cache
def _row(name: str) -> tuple[Keys, frozenset[str]]:
    """The method keys of a row, defaults included, and those that it says itself.

    Raises:
        ValueError: there is no such row.
    """
    axes = load_method(name).axes
    whole = flat(Config.model_validate(axes).model_dump(mode="json"))
    row = {key: value for key, value in whole.items() if _is_of_a_row(key)}
    return row, frozenset(flat(axes))


def _is_of_a_row(key: str) -> bool:
    """Whether it makes up a method: of local training only what rows choose does."""
    axis, _, name = key.partition(".")
    return axis in AXES and (axis != "train" or name in LocalConfig.model_fields)


def _text(value: Any) -> str:
    """A value as it is typed in an override."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
