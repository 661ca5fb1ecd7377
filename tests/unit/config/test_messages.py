"""The sentences that say what is wrong: their forms, how values look, and what was meant."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import fedgmr_hpc
from fedgmr_hpc.config import messages
from fedgmr_hpc.config.messages import (
    did_you_mean,
    listed,
    must,
    must_be,
    shown,
    unknown_choice,
    unknown_key,
    unknown_name,
)


def test_the_examples_of_the_module():
    assert doctest.testmod(messages).failed == 0


def test_a_sentence_names_condition_value_and_reason():
    line = must_be("a.b", "'none'", "x", when={"c.d": "full", "e": 1.0}, because="it cannot grow")
    assert line == "a.b must be 'none' when c.d is 'full' and e is 1 (got 'x'): it cannot grow"
    assert must("--out", "name a new folder", when="merging") == (
        "--out must name a new folder when merging"
    )


def test_null_is_a_value_and_nothing_is_not():
    assert must_be("seed", "given") == "seed must be given"
    assert must_be("seed", "at least 0", None) == "seed must be at least 0 (got null)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "null"),
        (1.0, "1"),
        (0.05, "0.05"),
        (2e7, "20000000"),
        ("010", "'010'"),
        ((1, 0.5, None), "[1, 0.5, null]"),
        ({"kind": "drop", "client": 3}, "{kind: 'drop', client: 3}"),
        ([[]], "[[]]"),
        ("x" * 500, f"'{'x' * 196}..."),
    ],
)
def test_values_look_as_one_types_them(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("words", "text"),
    [([], ""), (["a"], "'a'"), (["a", "b"], "'a' or 'b'"), (["a", "b", "c"], "'a', 'b' or 'c'")],
)
def test_words_are_listed(words, text):
    assert listed(words) == text


def test_choices_are_suggested_only_where_they_are_near():
    assert unknown_choice("device", "gpu", ["cpu", "cuda"]).endswith("did you mean 'cpu'?")
    assert unknown_choice("device", 7, ["cpu", "cuda"]) == "device must be 'cpu' or 'cuda' (got 7)"
    assert did_you_mean("CUDA", ["cpu", "cuda"]) == "; did you mean 'cuda'?"
    assert did_you_mean("tpu-v4-pod", ["cpu", "cuda"]) == ""


def test_names_are_suggested_or_else_listed():
    assert unknown_name("method", "fedgrm", ["fedavg", "fedgmr"]) == (
        "there is no method 'fedgrm'; did you mean 'fedgmr'?"
    )
    assert unknown_name("site", "x", []) == "there is no site 'x'"
    assert unknown_name("site", "x", [], or_else="a file") == "there is no site 'x' (give a file)"


def test_a_key_is_suggested_from_its_group_then_by_its_last_name():
    keys = ["run.max_rounds", "data.max_train"]
    assert unknown_key("run.max_round", ["max_rounds"], keys).endswith("'run.max_rounds'?")
    assert unknown_key("max_train", ["run", "data"], keys) == (
        "max_train is not a key; did you mean 'data.max_train'?"
    )
    assert unknown_key("run.foo", ["max_rounds", "pin_cores"], keys) == (
        "run.foo is not a key (keys of run: max_rounds, pin_cores)"
    )


def test_initials_and_words_of_a_key_are_understood():
    names = ["steps", "learning_rate", "decay_rate", "min_density"]
    keys = ["train.learning_rate", "run.max_rounds"]
    assert unknown_key("train.lr", names).endswith("did you mean 'train.learning_rate'?")
    assert unknown_key("train.density", names).endswith("did you mean 'train.min_density'?")
    assert "did you mean" not in unknown_key("train.rate", names)  # one of two
    assert unknown_key("lr", ["run"], keys).endswith("did you mean 'train.learning_rate'?")
    assert "did you mean" not in unknown_key("wire.lr", ["dtype"], keys)
    assert "did you mean" not in unknown_key("rate", ["run"], ["a.one_rate", "b.other_rate"])


def test_no_message_of_the_package_has_another_form():
    old = re.compile(r": got .*allowed|, allowed: [^s]|unknown key; ")
    package = Path(fedgmr_hpc.__file__).parent
    found = [p.name for p in package.rglob("*.py") if old.search(p.read_text(encoding="utf-8"))]
    assert found == []
