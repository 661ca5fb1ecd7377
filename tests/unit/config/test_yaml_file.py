"""YAML as the project reads and writes it: what scalars mean, and what is refused."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.sites import load_site
from fedgmr_hpc.config.yaml_file import YamlError, dump, parse, parse_scalar, read_mapping
from fedgmr_hpc.study.study_file import load_study

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
# text that some version of YAML takes for something else
TRICKY = st.from_regex(r"[-+.0-9_:eExXonfyNtrul~<=#@&*!%'\"{}\[\], ]{1,8}", fullmatch=True)
VALUES = st.recursive(
    SCALARS | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | TRICKY, inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("1e3", 1000.0),
        ("1.5E-3", 0.0015),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        *(
            (word, word)
            for word in "010 0x10 0o7 0b1 1_000 1:30 12:00:00 1.2.3 00.5 nan inf".split()
        ),
        *((word, word) for word in "on off yes No y n 2024-05-01 << = 1e 1-2 e5 . - +".split()),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_scalars_are_decimal_numbers_or_text(text: str, value: object) -> None:
    for found in (parse_scalar(text), *([] if text in "-" else [parse(text)])):
        assert found == value and type(found) is type(value)


def test_quotes_make_text() -> None:
    assert parse("['1', \"true\", '~', !!str 5]") == ["1", "true", "~", "5"]


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_again(value: Any) -> None:
    for flow in (None, True, False):
        again = parse(dump(value, flow))
        assert again == value and repr(again) == repr(value)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), st.booleans() | st.text() | TRICKY))
def test_other_programs_read_the_same_text(value: dict[str, Any]) -> None:
    assert yaml.safe_load(dump(value)) == value


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text("[]{}:,-?&*!|>'\"%@` \n\tab1\\U#~", max_size=40))
def test_any_text_has_a_value_or_is_refused_in_a_line(text: str) -> None:
    try:
        parse(text)
    except YamlError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 1\n", "line 3: a must be set only once (first set in line 1)"),
        ("a: {b: 1, 'b': 2}\n", "line 1: b must be set only once (first set in line 1)"),
        ("[{x: 1,\n x: 2}]", "line 2: x must be set only once (first set in line 1)"),
        ("on: 1\n'on': 2\n", "line 2: on must be set only once"),
        ("[1]: 2", "line 1: a key must be a word (got a list or a mapping)"),
        (
            "a: !!python/name:os.system ''",
            "line 1: values must have no tags (got tag:yaml.org,2002:python/name",
        ),
        (
            "a: !!int 0x10",
            "line 1: values must have no tags (got tag:yaml.org,2002:int)",
        ),
        ("a: &x [*x]", "line 1: *x must not stand inside itself"),
        ("a: *x", "not YAML: found undefined alias"),
        ("a: 1\n--- {}", "not YAML: "),
        ('"\\U99999999"', "not YAML: "),
        ("a: \0", "not YAML: "),
    ],
)
def test_what_has_no_one_meaning_is_refused(text: str, said: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert str(caught.value).startswith(said)


def test_anchors_may_repeat_a_little() -> None:
    assert parse("a: &x {b: 1}\nc: *x\nd: [*x, *x]\n")["d"] == [{"b": 1}, {"b": 1}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "values must be nested at most 20 levels deep"),
        ("{a: " * 100_000, "values must be nested at most 20 levels deep"),
        ("- " * 100_000, "values must be nested at most 20 levels deep"),
        ("? " * 100_000, "values must be nested at most 20 levels deep"),
        (
            "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
            "aliases must repeat at most 10000 values",
        ),
    ],
)
def test_bombs_are_refused_at_once(text: str, said: str) -> None:
    began_s = time.process_time()  # other work on the cores does not count
    with pytest.raises(YamlError, match=said):
        parse(text)
    assert time.process_time() - began_s < 0.5


def test_files_name_themselves(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("title: x\nset: {}\ntitle: y\n")
    for load in (read_mapping, load_site, load_study):
        with pytest.raises(ValueError, match=f"^{path}: line 3: title must be set only once"):
            load(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(YamlError, match=r"odd\.yaml: cannot be read: "):
        read_mapping(path)
