"""Overrides as Python programs give them: mappings and keywords beside words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.overrides import as_override, override

WANTED = load_config("digits", ["run.max_rounds=3", "seed=1", "clients.level=low"])


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ({"run.max_rounds": 3, "seed": 1, "clients.level": "low"}, {}),
        ({"run": {"max_rounds": 3}, "seed": 1, "clients": {"level": "low"}}, {}),
        ({"run": {"max_rounds": 3}}, {"seed": 1, "clients.level": "low"}),
        (["seed=1"], {"run": {"max_rounds": 3}, "clients": {"level": "low"}}),
        (["seed=9"], {"run.max_rounds": np.int64(3), "clients.level": "low", "seed": 1}),
    ],
)
def test_words_mappings_and_keywords_say_the_same(overrides: Any, keys: dict[str, Any]) -> None:
    assert load_config("digits", overrides, **keys) == WANTED


def test_a_mapping_may_be_the_configuration_itself_with_dotted_keys() -> None:
    assert load_config(["digits", {"run.max_rounds": 3, "clients": {"level": "low"}}], seed=1) == (
        WANTED
    )


def test_values_are_taken_as_they_are_and_paths_as_text() -> None:
    keys = {"results.path": Path("a/null"), "data": {"root": Path("/data")}, "links.trace": None}
    config = load_config("digits", keys, **{"clients.count": 2, "clients.shares": (1, 0.5)})
    assert config.results.path == "a/null" and config.data.root == "/data"
    assert config.links.trace is None and config.clients.shares == (1.0, 0.5)


@pytest.mark.parametrize(
    ("arguments", "keys", "line"),
    [
        ((5,), {}, "a configuration must be a name, a path, a mapping, or a list of these (got 5)"),
        (
            (["digits", 5],),
            {},
            "a configuration must be a name, a path, a mapping, or a list of these "
            "(got ['digits', 5])",
        ),
        (
            ("digits", "a=b"),
            {},
            "overrides must be a list of key=value words or a mapping (got 'a=b')",
        ),
        (("digits", 7), {}, "overrides must be a list of key=value words or a mapping (got 7)"),
        (("digits", [7]), {}, "an override must be dotted.key=value (got 7)"),
        (("digits", {7: 1}), {}, "a key must be dotted words (got 7)"),
        (("digits", {"run.": 1}), {}, "a key must be dotted words (got 'run.')"),
        (("digits",), {"seed": "1"}, "seed must be a whole number (got '1')"),
        (("digits",), {"sed": 1}, "sed is not a key; did you mean 'seed'?"),
        (
            ("digits", {"run.max_rounds": 3, "run": {"max_rounds": 4}}),
            {},
            "run.max_rounds must be set only once (got run.max_rounds=3 and run={max_rounds: 4})",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    arguments: tuple[Any, ...], keys: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError) as error:
        load_config(*arguments, **keys)
    assert str(error.value) == line


KEYS = st.sampled_from(["run.max_rounds", "seed", "train.steps", "links.server_mb"])
VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 2.0])


@given(st.dictionaries(KEYS, VALUES))
def test_a_mapping_is_as_its_words(mapping: dict[str, Any]) -> None:
    by_words: dict[str, Any] = {}
    by_mapping: dict[str, Any] = {}
    override(by_words, [as_override(key, value) for key, value in mapping.items()])
    override(by_mapping, mapping)
    assert by_words == by_mapping


def test_overrides_may_be_generators_and_values_arrays() -> None:
    words = (f"{key}={value}" for key, value in {"seed": 4}.items())
    assert load_config("digits", words, map(str, ["method=fedavg"])).seed == 4
    assert load_config("digits", map(str, ["method=fedavg"])).method == "fedavg"
    shares = np.array([0.5] * 10)
    assert load_config("digits", {"clients.shares": shares}).clients.shares == (0.5,) * 10
