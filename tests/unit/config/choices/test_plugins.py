"""Plug-ins: found, imported once, told in one line where they fail, and known by their content."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedgmr_hpc
from fedgmr_hpc.config.choices import plugins
from fedgmr_hpc.config.choices.registry import AGGREGATIONS, REGISTRIES
from fedgmr_hpc.config.files import describe_keys, load_config, make_config
from fedgmr_hpc.config.identity import RESUMED, differences, flat, identity, method_label
from fedgmr_hpc.config.methods import explain_method
from fedgmr_hpc.config.rules import is_used
from fedgmr_hpc.config.schema import Config

RULE = '''
from typing import Annotated
from pydantic import Field
from fedgmr_hpc import register_aggregation
from fedgmr_hpc.fl.aggregation.rule import WholeRule

@register_aggregation("trimmed")
class Trimmed(WholeRule):
    """A trimmed mean."""

    def combine(self, old, values, is_held, part):
        return old

    cut_frac: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the updates cut off at each end."""
'''


@pytest.fixture(autouse=True)
def _no_plugins() -> Iterator[None]:
    """Forget what a test has loaded."""
    yield
    for origin in {each.name for each in plugins._loaded.values()}:
        for registry in REGISTRIES:
            registry.forget(origin)
    plugins._loaded.clear()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(RULE)
    return path


def mistake(*words: str, source: object = "digits") -> str:
    with pytest.raises(ValueError) as error:
        load_config(source, words)  # type: ignore[arg-type]
    (line,) = str(error.value).splitlines()
    return line


def test_a_choice_of_a_file_has_its_options_under_its_axis(mine: Path) -> None:
    words = [f"plugins={mine}", "aggregation.rule=trimmed", "aggregation.cut_frac=0.2"]
    config = load_config("digits", words)
    assert config.aggregation.cut_frac == 0.2  # type: ignore[attr-defined]
    assert "aggregation.cut_frac = 0.1\n    Share of the updates" in describe_keys("cut_frac")
    assert load_config("digits", words[:2]).aggregation.cut_frac == 0.1  # type: ignore
    assert make_config(config.model_dump(mode="json")) == config
    assert identity(config)["aggregation.cut_frac"] == 0.2
    assert "aggregation.cut_frac" not in identity(load_config("digits", words[:2]))
    assert method_label(config) == "fedgmr[aggregation.rule=trimmed,aggregation.cut_frac=0.2]"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["aggregation.rule=trimed"], "did you mean 'trimmed'?"),
        (
            ["aggregation.rule=trimmed", "aggregation.cut_frac=0.5"],
            "aggregation.cut_frac must be less than 0.5 (got 0.5)",
        ),
        (
            ["aggregation.cut_frac=0.2"],
            "aggregation.cut_frac must be absent when aggregation.rule is 'mask_aware': "
            "it is an option of 'trimmed'",
        ),
        (["aggregation.cutfrac=0.2"], "did you mean 'aggregation.cut_frac'?"),
        (["plugin_digests.mine=0"], "plugins: mine.py must be the file that the run "),
    ],
)
def test_a_wrong_word_about_it_is_one_line(words: list[str], line: str, mine: Path) -> None:
    assert line in mistake(f"plugins={mine}", *words)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import numpy\n\nimport nosuchmodule\n", ":3: ModuleNotFoundError: No module named"),
        ("x = 1\ndef f(:\n", ":2: SyntaxError: invalid syntax"),
        (
            "from fedgmr_hpc import Section\n\n\nclass Mine(Section):\n    l1 = 0.01\n",
            ":4: l1 must have a type: write `l1: float = 0.01`",
        ),
        (
            "from fedgmr_hpc import Section\nclass Mine(Section):\n    a = object\n",
            ":2: a must have a type: write `a: TYPE = <class 'object'>`",
        ),
        ("def f():\n    return 1 / 0\n\n\nf()\n", ":2: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", ":1: SystemExit: 3"),
        (
            RULE.replace('"trimmed"', '"mean"').replace("cut_frac", "rule"),
            "a name of its own (got 'rule'): aggregation.rule is a key already",
        ),
        (RULE.replace('"trimmed"', '"average"'), "'average' must be a new name: the package has"),
        (
            RULE + '    vectors = "sum"\n',
            "vectors must be a tuple of names (got 'sum'): a tuple of one has",
        ),
        (RULE + '    vectors = ["sum"]\n', "vectors must be a tuple of names (got ['sum'])"),
        (
            RULE + '    numbers = ("n",)\n',
            "numbers must be a dict of names and first values (got ['n'])",
        ),
        (
            RULE + '    numbers = {"n": {1}}\n',
            "numbers['n'] must hold only what JSON can, and arrays of numbers (got a set)",
        ),
        (
            RULE + '    numbers: dict = {"n": 1}\n',
            "numbers must be without a type: a type makes an",
        ),
        (RULE.replace('"trimmed"', '"a b"'), "must be letters, digits and ._- (got 'a b')"),
    ],
)
@pytest.mark.filterwarnings("ignore:Field name")  # of the field that is refused
def test_a_plug_in_that_fails_is_told_with_its_line(source: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    told = mistake(f"plugins={path}")
    assert told.startswith(f"plug-in {path}:") and line in told
    assert "trimmed" not in AGGREGATIONS  # nothing of it stays


def test_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "none.py"
    assert mistake(f"plugins={missing}").startswith("plugins.0 must be a file that can be read")
    assert "plugins.0 must be a module that can be imported" in mistake("plugins=no_such.module")
    assert mistake("plugins=3") == "plugins must be a list of files and modules (got [3])"


def test_paths_in_a_file_are_taken_from_its_folder(mine: Path, tmp_path: Path) -> None:
    row = tmp_path / "row.yaml"
    row.write_text("base: fedbuff\naggregation: {rule: trimmed, cut_frac: 0.3}\n")
    run = tmp_path / "run.yaml"
    run.write_text("plugins: [./mine.py]\nmethod: ./row.yaml\n")
    config = load_config(run)
    assert config.plugins == (str(mine),)
    assert config.method == method_label(config) == "row"
    assert config.methods == {
        "row": {"base": "fedbuff", "aggregation": {"rule": "trimmed", "cut_frac": 0.3}}
    }
    assert make_config(config.model_dump(mode="json")) == config
    changed = load_config(run, ["aggregation.cut_frac=0.1"])
    assert method_label(changed) == "row[aggregation.cut_frac=0.1]"


def test_another_content_is_another_run(mine: Path) -> None:
    words = [f"plugins={mine}"]
    before = load_config("digits", words)
    mine.write_text(RULE + "\n# changed\n")
    after = load_config("digits", words)
    assert list(differences(before, after, RESUMED)) == ["plugin_digests"]
    with pytest.raises(ValueError, match="plugins: mine.py must be the file that "):
        make_config(before.model_dump(mode="json"))


def test_several_sources_add_up(mine: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(RULE.replace("trimmed", "other").replace("cut_frac", "other_frac"))
    config = load_config(["digits", {"plugins": [str(mine)]}], [f"plugins={other}"])
    assert sorted(config.plugin_digests) == ["mine", "other"]


def test_options_of_two_plug_ins_do_not_share_a_name(mine: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(RULE.replace('"trimmed"', '"other"'))
    line = "an option of other must have a name of its own (got 'cut_frac'): "
    assert f"{line}it is an option of trimmed" in mistake(f"plugins=[{mine}, {other}]")


def test_a_choice_is_found_among_the_keys_with_its_options(mine: Path) -> None:
    plugins.load_plugins([str(mine)])
    assert [line.split(" = ")[0] for line in describe_keys("trimmed").splitlines()[::2]] == [
        "aggregation.rule",
        "aggregation.cut_frac",
    ]
    line = "    Share of the updates cut off at each end. [with aggregation.rule=trimmed]"
    assert describe_keys("aggregation.cut_frac").splitlines()[1] == line


def test_one_of_the_site_counts_where_it_is_used(mine: Path) -> None:
    code = (
        "from fedgmr_hpc import load_config; "
        "print([sorted(load_config('digits', words).plugin_digests) "
        "for words in ([], ['aggregation.rule=trimmed'])])"
    )
    environ = {**os.environ, "FEDGMR_PLUGINS": str(mine)}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert ran.stdout.strip() == "[[], ['mine']]", ran.stderr


def test_a_row_of_a_configuration_is_a_method() -> None:
    rows = {"mine": {"base": "fedgmr", "restoration": {"step": "fixed"}}, "unused": {}}
    config = load_config({"method": "mine+aux", "methods": rows})
    assert config.restoration.step == "fixed" and config.admission.kind == "window"
    assert config.methods == {"mine": rows["mine"]} and method_label(config) == "mine+aux"


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ({"mine": {"base": "fedgrm"}}, "methods.mine: base must be the name of a row"),
        ({"mine": {"base": "mine"}}, "methods.mine: base must be another row"),
        ({"mine": {"base": "fedgmr", "agregation": {}}}, "methods.mine: agregation is not a key"),
        ({"mine": 3}, "methods.mine must be a mapping of axes (got 3)"),
        ({"fedgmr": {"base": "fedavg"}}, "a key of methods must be a new name"),
    ],
)
def test_a_wrong_row_is_one_line(rows: dict[str, object], line: str) -> None:
    assert line in mistake(source={"method": "mine", "methods": rows})


def load(path: Path, source: str, *words: str) -> Config:
    path.write_text(source)
    return load_config("digits", [f"plugins={path}", *words])


def test_one_that_was_broken_and_mended_is_there_again(mine: Path) -> None:
    word = "aggregation.rule=trimmed"
    load(mine, RULE, word)
    with pytest.raises(ValueError, match="SyntaxError"):
        load(mine, "def f(:\n", word)
    assert load(mine, RULE, word).aggregation.rule == "trimmed"


def test_a_name_is_registered_only_once(mine: Path) -> None:
    twice = RULE + RULE.replace("cut_frac", "other_frac")
    with pytest.raises(ValueError, match="'trimmed' must be registered only once"):
        load(mine, twice)


def test_a_module_that_was_imported_before_is_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("from mypackage import rules\n")
    (package / "rules.py").write_text(RULE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("mypackage")
    words = ["plugins=mypackage", "aggregation.rule=trimmed"]
    before = load_config("digits", words)
    assert list(before.plugin_digests) == ["mypackage"]
    plugins._loaded.clear()
    (package / "core.py").write_text("x = 1\n")  # the whole package counts
    assert load_config("digits", words).plugin_digests != before.plugin_digests


def test_a_file_that_was_moved_takes_the_place_of_the_old_path(mine: Path, tmp_path: Path) -> None:
    before = load_config("digits", [f"plugins={mine}", "aggregation.rule=trimmed"])
    moved = tmp_path / "new" / "mine.py"
    moved.parent.mkdir()
    mine.rename(moved)
    after = load_config(before.model_dump(mode="json"), [f"plugins={moved}"])
    assert after.plugins == (str(moved),) and after.plugin_digests == before.plugin_digests


def test_options_go_with_their_choice(mine: Path) -> None:
    row = {"mine": {"base": "fedbuff", "aggregation": {"rule": "trimmed", "cut_frac": 0.2}}}
    own = {"plugins": [str(mine)], "method": "mine", "methods": row}
    plain = load_config(own, ["aggregation.rule=mask_aware"])
    assert "cut_frac" not in plain.model_dump()["aggregation"]
    written = load_config(own).model_dump(mode="json")
    again = load_config(written, ["aggregation.rule=mask_aware"])
    assert "cut_frac" not in again.model_dump()["aggregation"]
    with pytest.raises(ValueError, match="aggregation.cut_frac must be absent"):
        load_config(own, ["aggregation.rule=mask_aware", "aggregation.cut_frac=0.3"])
    flat_values = flat(load_config(own).model_dump(mode="json"))
    assert is_used("aggregation.cut_frac", flat_values)
    assert not is_used("aggregation.cut_frac", flat_values | {"aggregation.rule": "average"})


def test_required_options_and_validators_of_a_class_are_heeded(mine: Path) -> None:
    required = RULE.replace(" = 0.1\n", "\n")
    with pytest.raises(ValueError, match=r"^aggregation.cut_frac must be given$"):
        load(mine, required, "aggregation.rule=trimmed")
    assert "aggregation.cut_frac = required" in describe_keys("cut_frac")
    strict = RULE.replace("import Field", "import Field, field_validator") + (
        '    @field_validator("cut_frac")\n'
        "    @classmethod\n"
        "    def _check(cls, value):\n"
        "        if value == 0.25:\n"
        '            raise ValueError("other than a quarter")\n'
        "        return value\n"
    )
    words = ("aggregation.rule=trimmed", "aggregation.cut_frac=0.25")
    with pytest.raises(ValueError, match=r"^aggregation.cut_frac must be other than a quarter"):
        load(mine, strict, *words)


def test_options_of_several_values_count_only_where_they_differ(mine: Path) -> None:
    several = RULE.replace(
        "cut_frac: Annotated[float, Field(ge=0, lt=0.5)] = 0.1", "parts: tuple[int, ...] = (1, 2)"
    )
    config = load(mine, several, "aggregation.rule=trimmed")
    assert "aggregation.parts" not in identity(config)
    assert method_label(config) == "fedgmr[aggregation.rule=trimmed]"
    assert identity(load(mine, several, "aggregation.rule=trimmed", "aggregation.parts=3,4"))[
        "aggregation.parts"
    ] == [3, 4]


def test_labels_say_options_of_plug_ins_that_are_not_there(mine: Path) -> None:
    words = ["aggregation.rule=trimmed", "aggregation.cut_frac=0.2"]
    values = load(mine, RULE, *words).model_dump(mode="json")
    plugins._loaded.clear()
    for registry in REGISTRIES:
        registry.forget("mine")
    assert method_label(values) == "fedgmr[aggregation.rule=trimmed,aggregation.cut_frac=0.2]"


def test_what_it_prints_is_no_output(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(mine, 'print("hello")\n')
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "hello\n"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "import fedgmr_hpc\n\n@fedgmr_hpc.register_objective('f')\ndef f(): pass\n",
            "a class of Objective (got f)",
        ),
        (RULE.replace("combine", "merge"), "'trimmed' must have a method combine"),
        (
            "import fedgmr_hpc\nfedgmr_hpc.load_config(None, [f'plugins={__file__}'])\n",
            "must not load itself",
        ),
    ],
)
def test_what_is_of_a_wrong_kind_is_told(source: str, line: str, mine: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        load(mine, source)


def test_a_module_without_source_is_no_plug_in() -> None:
    assert "plugins.0 must be a module that can be imported" in mistake("plugins=sys")


def test_the_path_of_a_row_may_have_odd_letters(tmp_path: Path) -> None:
    folder = tmp_path / "c++ 😀"
    folder.mkdir()
    row = folder / "mine.yaml"
    row.write_text("base: fedgmr\n")
    assert load_config(None, [f"method={row}+aux"]).method == "mine+aux"
    (folder / "my row.yaml").write_text("base: fedgmr\n")
    assert "method must be a file whose name has letters" in mistake(f"method={folder}/my row.yaml")


def test_a_rows_file_brings_its_plug_ins_along(mine: Path, tmp_path: Path) -> None:
    row, here = tmp_path / "cut.yaml", "aggregation: {rule: trimmed, cut_frac: 0.3}\n"
    row.write_text(f"base: fedgmr\n{here}plugins: [./mine.py]\n")
    config = load_config("digits", [f"method={row}", "aggregation.cut_frac=0.2"])
    assert config.plugins == (str(mine),) and config.aggregation.cut_frac == 0.2  # type: ignore
    assert make_config(config.model_dump(mode="json")) == config

    row.write_text(f"base: fedgmr\n{here}")
    words = [f"method={row}", f"plugins=[{mine}]", "aggregation.cut_frac=0.2"]
    assert identity(load_config("digits", words)) == identity(config)


def test_a_rows_file_is_explained_by_itself(mine: Path, tmp_path: Path) -> None:
    row = tmp_path / "cut.yaml"
    row.write_text("base: fedgmr\naggregation: {rule: trimmed}\nplugins: [./mine.py]\n")
    assert "rule: trimmed" in explain_method(str(row))
    row.write_text("base: fedgmr\nplugins: 3\n")
    assert mistake(f"method={row}") == "plugins must be a list of files and modules (got 3)"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("aggregation: {rule: elsewhere}", "cut.yaml: aggregation.rule must be 'mask_aware', "),
        (
            "aggregation: {quirk: 3}",
            "cut.yaml: aggregation.quirk is not a key (keys of aggregat",
        ),
    ],
)
def test_a_missing_plug_in_is_asked_for(text: str, start: str, tmp_path: Path) -> None:
    row = tmp_path / "cut.yaml"
    row.write_text(f"base: fedgmr\n{text}\n")
    line = mistake(f"method={row}")
    assert line.startswith(f"{tmp_path}/{start}")
    assert line.endswith("); is a plug-in missing (--plugin FILE, or plugins: in a file)?")
    assert "plug-in" not in mistake("run.foo=3")  # no section of choices


def test_what_a_script_has_registered_is_told_from_a_plug_in(mine: Path) -> None:
    line = (
        "plugins: __main__ must be loaded, as when the run began (got not loaded): "
        "a script registered it itself; "
    )
    found = mistake(source={"plugin_digests": {"__main__": "1f"}})
    assert (
        found
        == f"{line}runs that can be replayed elsewhere have it from a file, named with --plugin"
    )


def test_a_script_reserves_no_key(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from fedgmr_hpc.config.choices.registry import register_score\n"
        "from fedgmr_hpc.config.choices.section import Section\n"
        "@register_score('mine')\n"
        "class Mine(Section):\n"
        "    floor_frac: float = 0.5\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert "an option of mine must have a name of its own (got 'floor_frac')" in ran.stderr


def test_a_configuration_does_not_run_with_other_code(mine: Path) -> None:
    before = load(mine, RULE)
    load(mine, RULE + "\n# changed\n")
    with pytest.raises(ValueError, match="plugins: mine.py must be the file that "):
        fedgmr_hpc.run(before)


def test_a_plug_in_may_have_any_file_name(tmp_path: Path) -> None:
    path = tmp_path / "rules.txt"
    path.write_text("import fedgmr_hpc\n")
    assert load_config(None, {"plugins": [str(path)]}).plugins == (str(path),)
    path = tmp_path / "other"
    path.write_bytes(b"\x00")
    with pytest.raises(ValueError, match=f"plug-in {path}: "):
        load_config(None, {"plugins": [str(path)]})
