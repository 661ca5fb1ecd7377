"""Aggregation: how sub-models become the next version, by rules that own what they remember."""

from __future__ import annotations

from fedgmr_hpc.fl.aggregation import means, momentum, robust  # noqa: F401 (registers the rules)
from fedgmr_hpc.fl.aggregation.merging import merge
from fedgmr_hpc.fl.aggregation.rule import (
    AggregationRule,
    BufferEntry,
    MeanRule,
    Merge,
    Part,
    WholeRule,
)
from fedgmr_hpc.fl.aggregation.server_rule import ServerRule
from fedgmr_hpc.fl.aggregation.staleness import ages_of, staleness_weight, staleness_weights
from fedgmr_hpc.fl.aggregation.state import RuleState

__all__ = [
    "AggregationRule",
    "BufferEntry",
    "MeanRule",
    "Merge",
    "Part",
    "RuleState",
    "ServerRule",
    "WholeRule",
    "ages_of",
    "merge",
    "staleness_weight",
    "staleness_weights",
]
