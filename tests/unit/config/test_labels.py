"""What a run's method is called once some key of its row was overridden."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedgmr_hpc import run
from fedgmr_hpc.config.choices.section import Section
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.identity import OF_THE_TASK, flat, method_label, method_slug
from fedgmr_hpc.config.methods import AXES, load_method, method_names
from fedgmr_hpc.config.rules import USED_WITH
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.config.yaml_file import configs_dir
from fedgmr_hpc.results.labels import labels_of
from fedgmr_hpc.results.summary import make_report, render_summary
from fedgmr_hpc.results.watch import look, render
from fedgmr_hpc.study.cells import expand
from fedgmr_hpc.study.study_file import load_study

RUNS = sorted((configs_dir() / "runs").glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["method=heterofl"], "heterofl"),
        (["method=heterofl", "aggregation.rule=average"], "heterofl[aggregation.rule=average]"),
        (["method=heterofl+aux", "transmission=whole"], "heterofl+aux[transmission=whole]"),
        (
            ["restoration.balance=true", "submodel.score=wg"],
            "fedgmr[submodel.score=wg,restoration.balance=true]",
        ),
        (["aggregation.max_norm_ratio=4.0"], "fedgmr[aggregation.max_norm_ratio=4]"),
        (["method=fjord", "submodel.width_rates=[0.5, 1]"], "fjord[submodel.width_rates=0.5+1]"),
        (["aggregation.staleness=poly"], "fedgmr"),  # as the row has it
        (["restoration.patience=9", "restoration.total_time_s=5"], "fedgmr"),  # of the task
        (["restoration.fixed_step=0.3", "admission.slack_s=0.7"], "fedgmr[admission.slack_s=0.7]"),
        (["train.learning_rate=0.3", "train.steps=1", "seed=2", "clients.level=low"], "fedgmr"),
        (["train.clip_norm=1", "submodel.surrogate=false"], "fedgmr[train.clip_norm=1]"),
        (["method=fiarse", "submodel.surrogate=false"], "fiarse[submodel.surrogate=false]"),
        (["method=median", "aggregation.staleness=poly"], "median"),
        (["method=fedavg", "submodel.refresh=round"], "fedavg"),
    ],
)
def test_a_label_says_which_choices_are_not_the_rows(words: list[str], label: str) -> None:
    config = load_config(None, words)
    assert method_label(config) == label
    assert method_label(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == label


def test_a_file_is_called_by_its_name_and_not_by_the_digest_of_its_content(tmp_path: Path) -> None:
    paths = [tmp_path / "days.csv", tmp_path / "nights.csv"]
    for path in paths:
        path.write_text(path.stem)
    words = [[], *([f"clients.availability={path}"] for path in paths)]
    configs = [load_config(None, each).model_dump(mode="json") for each in words]
    names = ["days.csv", "nights.csv"]
    said = ["fedgmr", *(f"fedgmr, {tmp_path.name}/{name}" for name in names)]
    assert labels_of(configs) == said


def test_files_of_one_name_are_told_apart_by_their_content(tmp_path: Path) -> None:
    path, configs = tmp_path / "days.csv", []
    for content in ("mild", "harsh"):
        path.write_text(content)
        configs.append(load_config(None, [f"clients.availability={path}"]).model_dump(mode="json"))
    digests = [config["clients"]["availability_xxh3"][:6] for config in configs]
    name = f"fedgmr, {tmp_path.name}/days.csv"
    assert labels_of(configs) == [f"{name} {digest}" for digest in digests]


def test_a_name_of_a_file_holds_nothing_that_a_shell_expands() -> None:
    config = load_config(None, ["method=heterofl+aux", "aggregation.rule=average"])
    assert method_slug(config) == "heterofl+aux-aggregation.rule-average"


def test_results_without_keys_or_of_unknown_rows_keep_their_name() -> None:
    assert method_label({}) == "-"
    assert method_label({"method": "fedgmr", "aggregation": {}}) == "fedgmr"
    assert method_label({"method": "theirs", "transmission": "whole"}) == "theirs"


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("file", RUNS, ids=lambda path: path.stem)
def test_a_shipped_run_gives_every_row_its_own_name(file: Path, method: str) -> None:
    words = [f"method={method}"]
    if method == "scaffold" and "momentum" in file.read_text():
        with pytest.raises(ValueError, match="train.momentum must be 0"):
            load_config(file, words)
        words.append("train.momentum=0")
    assert method_label(load_config(file, words)) == method


def test_every_listed_key_is_one_and_follows_a_choice_that_is_one() -> None:
    keys = flat(Config().model_dump(mode="json")).keys()
    others = {use.other for use in USED_WITH.values()}
    assert OF_THE_TASK | USED_WITH.keys() | others <= keys
    assert all(issubclass(type(getattr(Config(), axis)), Section | str) for axis in AXES)


def test_the_method_of_a_study_row_says_what_set_made_of_it() -> None:
    study = {
        "title": "t",
        "set": {"aggregation.rule": "average"},
        "matrix": {"method": ["heterofl", "fedavg"], "transmission": ["whole", "increments"]},
        "comparison_time_s": 10.0,
    }
    cells = expand(*load_study(study))
    assert [(c.row, c.column) for c in cells[:3]] == [
        ("heterofl[aggregation.rule=average]", "whole"),
        ("heterofl[aggregation.rule=average]", "increments"),
        ("fedavg", "whole"),
    ]


def test_rows_say_nothing_that_their_keys_lack() -> None:
    for name in method_names():
        assert flat(load_method(name).axes).keys() <= flat(Config().model_dump(mode="json")).keys()


def test_tables_titles_and_legends_of_a_run_have_the_label(tmp_path: Path) -> None:
    words = ["aggregation.rule=average", "run.max_rounds=1", "data.max_train=300"]
    words += ["train.steps=1", "progress=quiet", f"results.path={tmp_path / 'r.h5'}"]
    result = run(load_config(None, ["method=heterofl", *words]))
    label = "heterofl[aggregation.rule=average]"
    assert render_summary(result).startswith(f"{label} on digits")
    assert f"r    {label}  digits" in make_report([result.path], tmp_path)
    assert labels_of([result.config]) == [label]
    assert label in render([look(result.path)])
