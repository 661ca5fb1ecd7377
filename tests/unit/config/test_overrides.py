"""Words `key=value`: read by the type of their key, written so that they are read again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgmr_hpc.config.choices.section import Section, types_in
from fedgmr_hpc.config.files import load_config, make_config, render_config
from fedgmr_hpc.config.overrides import as_override, laid_over, parse_override, parse_values
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.yaml_file import parse
from fedgmr_hpc.study.cells import expand
from fedgmr_hpc.study.study_file import load_study


def keys_of(section: type[Section] = Config, prefix: str = "") -> dict[str, set[Any]]:
    """Every dotted key and the types of its values."""
    found: dict[str, set[Any]] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= keys_of(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = types_in(kind)
    return found


KEYS = keys_of()
NUMBERS = sorted(key for key, types in KEYS.items() if types <= {int, float, type(None)})
TRUTHS = sorted(key for key, types in KEYS.items() if types == {bool})
FREE = ["data.root", "data.cache", "results.path", "links.trace", "clients.availability"]
NO_NUMBERS = (
    "010 0x10 0o17 0b11 1_000 1:30 1:30:00 nan inf .nan .inf -.inf 1e999 on yes true True y 1,5 "
    "1;2 2024-05-01 '1' 1#2 [1] {} one ~1 --1 5s 0.5f"
).split() + ["1 # 2", '"1"', "1 2", " ", "@1", "!!int 3", "٣"]


def read(key: str, config: Config) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_is_decimal(key: str) -> None:
    for text in NO_NUMBERS:
        with pytest.raises(ValueError, match=rf"(?m)^{key} must "):
            load_config(None, [f"{key}={text}"])


@pytest.mark.parametrize("text", ["off", "no", "OFF", "false", "null", "~"])
def test_off_is_null_where_there_is_null_and_no_number(text: str) -> None:
    for key in NUMBERS:
        if type(None) in KEYS[key] and key != "admission.count":
            assert read(key, load_config(None, [f"{key}={text}"])) is None
        elif type(None) not in KEYS[key]:
            with pytest.raises(ValueError, match=rf"(?m)^{key} must "):
                load_config(None, [f"{key}={text}"])
    for key in ("clients.shares", "clients.max_densities"):
        assert read(key, load_config(None, [f"{key}={text}"])) is None


def test_files_follow_the_same_rules(tmp_path: Any) -> None:
    path = tmp_path / "run.yaml"
    for text, value in (("off", None), ("5", 5.0), ("1e1", 10.0)):
        path.write_text(f"checkpoint:\n  every_s: {text}\n")
        assert load_config(path).checkpoint.every_s == value
    for text in ("on", "true", "010", "1:30", "1_0", "'5'", "0x10"):
        path.write_text(f"checkpoint:\n  every_s: {text}\n")
        with pytest.raises(ValueError, match=r"^checkpoint\.every_s must "):
            load_config(path)
    path.write_text("results: {path: 2024-05-01}\ndata: {root: 010}\n")
    config = load_config(path)
    assert (config.results.path, config.data.root) == ("2024-05-01", "010")


@pytest.mark.parametrize("key", TRUTHS)
def test_truth_values(key: str) -> None:
    method, truth = "fedgmr", {"true": True, "on": True, "yes": True, "false": False, "off": False}
    if key in ("submodel.scaler", "train.distillation"):
        truth, method = {"false": False, "no": False}, "fedgmr"  # the others need another row
    for text, value in (truth | {"no": False}).items():
        assert read(key, load_config(None, [f"method={method}", f"{key}={text}"])) is value
    for text in ("2", "null", "maybe", "1:0"):
        with pytest.raises(ValueError, match=rf"^{key} must "):
            load_config(None, [f"{key}={text}"])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(FREE),
    st.text(min_size=1)
    | st.text("#:%~@!&*|>'\"[]{}, \n\t0123.eoxnf_-=", min_size=1, max_size=12)
    | st.sampled_from(
        ["out/run #3.h5", "a: b", "~", "%x", "@y", "Null", "010", "1e3", "off", " x "]
    ),
)
def test_text_is_taken_as_it_is_typed(key: str, text: str) -> None:
    config = load_config(None, [f"{key}={text}"])
    wanted = None if text == "null" and key != "data.cache" else text
    assert read(key, config) == wanted
    assert make_config(parse(render_config(config))) == config
    assert parse_override(as_override(key, text)) == (key, wanted)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NUMBERS), st.integers(1, 2**70) | st.floats(1e-300, 1e300))
def test_numbers_are_read_as_they_were_written(key: str, value: float) -> None:
    assert parse_override(as_override(key, value)) == (key, value)
    assert parse_override(f"{key}={value}") == (key, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,0.5,0.2", (1, 0.5, 0.2)),
        ("1, .5 ,2e-1", (1, 0.5, 0.2)),
        ("[1, 0.5, 0.2]", (1, 0.5, 0.2)),
    ],
)
def test_a_key_of_several_values_takes_commas(text: str, value: object) -> None:
    assert load_config(None, ["clients.count=3", f"clients.shares={text}"]).clients.shares == value
    one = load_config(None, ["clients.count=1", "clients.shares=0.5"])
    assert one.clients.shares == (0.5,)


@pytest.mark.parametrize(
    "text", ["1,,2", "1;2", "1 0.5", "1,true", "1,off", "1,0x1", "0", "[1", "{"]
)
def test_wrong_lists_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^clients\.shares(\.\d)? must "):
        load_config(None, ["clients.count=2", f"clients.shares={text}"])


def test_faults_may_come_without_brackets() -> None:
    words = ["clock=wall", "faults={kind: drop}, {kind: cut, client: 1}"]
    assert [fault.kind for fault in load_config(None, words).faults] == ["drop", "cut"]


def test_a_bomb_in_a_word_is_refused() -> None:
    for text in ("[" * 100_000, "{a: " * 50_000):
        with pytest.raises(ValueError, match=r"^faults must be valid YAML \(got .{0,210}\)"):
            load_config(None, [f"faults={text}"])


def test_values_that_a_key_has_in_turn() -> None:
    assert parse_values("seed", "1,2, 3") == parse_values("seed", "[1, 2, 3]") == [1, 2, 3]
    assert parse_values("clients.level", "[high, low]") == ["high", "low"]
    assert parse_values("data.root", "a,b") == ["a,b"]
    assert parse_values("method", "[fedgmr, fedavg]") == ["fedgmr", "fedavg"]
    with pytest.raises(ValueError, match=r"^seed must be given at least one value \(got '\[\]'\)$"):
        parse_values("seed", "[]")


def test_words_over_words_leave_each_key_once() -> None:
    words = laid_over(["run={max_rounds: 3, max_time_s: 2}", "seed=1"], ["run.max_rounds=4"])
    assert words == ["run.max_time_s=2", "seed=1", "run.max_rounds=4"]
    config = load_config(None, words)
    assert (config.run.max_rounds, config.run.max_time_s, config.seed) == (4, 2, 1)


STUDY = {
    "title": "words",
    "set": {"run": {"max_rounds": 8, "max_time_s": 20}, "data.root": "a: b #c"},
    "matrix": {"train.learning_rate": [0.1, 0.2], "checkpoint.every_s": ["off"], "seed": [0]},
    "comparison_time_s": 10.0,
}


def test_a_study_lays_words_over_settings_however_they_are_spelled() -> None:
    cells = expand(*load_study(STUDY, ["run.max_rounds=4"]))
    assert {cell.config.run.max_rounds for cell in cells} == {4}
    assert {cell.config.run.max_time_s for cell in cells} == {20}
    assert {cell.config.data.root for cell in cells} == {"a: b #c"}
    assert {cell.config.checkpoint.every_s for cell in cells} == {None}


@pytest.mark.parametrize(
    "words",
    [
        ["run.max_rounds=4", "run={max_rounds: 3}"],
        ["seed=1", "seed=2"],
        ["train={learning_rate: 0.5}"],
    ],
)
def test_a_study_refuses_a_key_that_is_said_again(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^(run\.max_rounds|seed|train\.learning_rate) must "):
        expand(*load_study(STUDY, words))
