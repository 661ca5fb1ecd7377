"""What the light layers know of rules, without importing torch, is what the rules say."""

from __future__ import annotations

import pytest

from fedgmr_hpc.config.axes import AggregationConfig
from fedgmr_hpc.config.choices.registry import AGGREGATIONS, registering
from fedgmr_hpc.config.rules import RULES_OF_CHANGES, USED_WITH
from fedgmr_hpc.fl.aggregation import AggregationRule, ServerRule


def test_built_in_rules_of_changes_are_known_by_name():
    wanting = [name for name in AGGREGATIONS.names if AGGREGATIONS[name].wants == "changes"]
    assert tuple(wanting) == RULES_OF_CHANGES


def test_a_rule_of_neither_kind_is_refused():
    class Neither(AggregationRule):
        """Neither steps nor combines."""

    with registering("test"):
        AGGREGATIONS.add("mine", Neither)
    try:
        with pytest.raises(ValueError) as caught:
            ServerRule(AggregationConfig(rule="mine"), (1, 1), (1, 1))
    finally:
        AGGREGATIONS.forget("test")
    need = "aggregation.rule 'mine' must be a class derived from MeanRule or WholeRule"
    assert str(caught.value).startswith(need)


def test_options_of_rules_are_keys_used_with_them():
    for name in AGGREGATIONS.names:
        for option in AGGREGATIONS[name].model_fields:
            assert option in AggregationConfig.model_fields
            key, choices, _ = USED_WITH[f"aggregation.{option}"]
            assert key == "aggregation.rule" and name in choices


def test_defaults_are_those_of_the_configuration():
    keys = AggregationConfig.model_fields
    for name in AGGREGATIONS.names:
        for option, field in AGGREGATIONS[name].model_fields.items():
            assert field.default == keys[option].default, (name, option)
