"""What a rule keeps from merge to merge, moved along with the weights.

Vectors stand in the packed order of the current masks, as the weights do, so that a merge needs no
positions. They mean the same entries whatever the masks are.

Shapes: P prunable entries, D dense entries.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fedgmr_hpc.config.choices.failures import check_state
from fedgmr_hpc.config.choices.section import check_names
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.config.records import Floats
from fedgmr_hpc.fl.aggregation.rule import AggregationRule, Vectors
from fedgmr_hpc.fl.submodels import MaskSet


class RuleState:
    """The vectors and numbers of one run's rule.

    Attributes:
        packed: [P] of each vector, by name.
        dense: [D] of each vector, by name.
    """

    def __init__(self, rule: AggregationRule, num_packed: int, num_dense: int) -> None:
        self.packed = _zeros(rule.vectors, num_packed)
        self.dense = _zeros(rule.vectors, num_dense)
        self.numbers: dict[str, Any] = copy.deepcopy(rule.numbers)

    def packed_part(self, span: slice) -> Vectors:
        """Return the vectors' places for these packed entries, which share their memory."""
        return Vectors({name: torch.from_numpy(each)[span] for name, each in self.packed.items()})

    def dense_part(self, span: slice = slice(None)) -> Vectors:
        """Return the vectors' places for these dense entries, which share their memory."""
        return Vectors({name: torch.from_numpy(each)[span] for name, each in self.dense.items()})

    def natural(self, name: str, masks: MaskSet) -> Floats:
        """Return [P + D] a vector in the natural order."""
        return np.concatenate([masks.unpack(self.packed[name]), self.dense[name]])

    def repack(self, old: MaskSet, new: MaskSet) -> None:
        """Move the vectors from the order of the last masks to that of new ones."""
        for name in self.packed:
            self.packed[name] = new.pack(old.unpack(self.packed[name]))

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes back."""
        return {"packed": self.packed, "dense": self.dense, "numbers": self.numbers}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state, whose arrays become its own."""
        self.packed, self.dense = dict(state["packed"]), dict(state["dense"])
        self.numbers = copy.deepcopy(state["numbers"])


def check_memory(name: str, rule: type[AggregationRule]) -> None:
    """Refuse a plug-in's rule that does not say by name what it keeps.

    Raises:
        ValueError: `vectors` is no tuple of names, or `numbers` no dict that JSON can hold.
    """
    who = f"aggregation.rule {name!r}"
    check_names(f"{who}: vectors", rule.vectors)
    if not isinstance(rule.numbers, dict):
        need = "a dict of names and first values"
        raise ValueError(must_be(f"{who}: numbers", need, rule.numbers))
    try:
        check_state(f"{who}: numbers", rule.numbers)
    except RunError as error:
        raise ValueError(error.message) from None


def _zeros(names: Iterable[str], size: int) -> dict[str, Floats]:
    return {name: np.zeros(size, np.float32) for name in names}
