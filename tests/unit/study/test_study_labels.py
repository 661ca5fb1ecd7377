"""What rows and columns are called, and that no name changes which runs a study has."""

from __future__ import annotations

from typing import Any

import pytest

from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.config.identity import identity, method_title
from fedgmr_hpc.study.cells import expand, titles_of
from fedgmr_hpc.study.labels import title_of
from fedgmr_hpc.study.study_file import load_study

STUDY: dict[str, Any] = {
    "title": "tiny",
    "base": "digits",
    "matrix": {"method": ["fedgmr", "heterofl+aux"], "clients.level": ["high"], "seed": [0, 1]},
    "comparison_time_s": 10.0,
    "tune": {"restoration.patience": [3, 5]},
}


def titles(**changes: Any) -> dict[str, str]:
    return titles_of(expand(*load_study({**STUDY, **changes})))


def line_of(**changes: Any) -> str:
    with pytest.raises(ValueError) as caught:
        titles(**changes)
    return str(caught.value)


def test_methods_have_the_titles_of_their_rows_and_wrappers() -> None:
    assert titles() == {"fedgmr": "FedGMR", "heterofl+aux": "HeteroFL + Aux", "high": "high"}


def test_labels_come_first_and_that_of_a_key_stands_before_its_values() -> None:
    labels = {"fedgmr": "ours", "clients.level": "level"}
    assert titles(labels=labels) == {
        "fedgmr": "ours",
        "heterofl+aux": "HeteroFL + Aux",
        "high": "level high",
    }
    values, keys = {"restoration.patience": 3}, ["restoration.patience"]
    assert title_of(values, keys, {}) == "patience 3"
    assert title_of(values, keys, {"restoration.patience": "P ="}) == "P = 3"
    assert title_of(values, keys, {"patience 3": "patient"}) == "patient"


def test_what_differs_from_a_row_stays_in_its_title() -> None:
    found = titles(set={"aggregation.rule": "average"}, labels={"fedgmr": "ours"})
    assert found["fedgmr[aggregation.rule=average]"] == "ours [aggregation.rule=average]"


def test_labels_titles_and_captions_change_no_run() -> None:
    own = {"mine": {"base": "fedgmr"}}
    matrix = {**STUDY["matrix"], "method": ["fedgmr", "mine"]}
    plain = expand(*load_study({**STUDY, "matrix": matrix, "methods": own}))
    words = {"labels": {"fedgmr": "ours"}, "captions": {"test_accuracy": "Accuracy."}}
    own = {"mine": {"base": "fedgmr", "title": "My own"}}
    titled = expand(*load_study({**STUDY, "matrix": matrix, "methods": own, **words}))
    assert [cell.name for cell in titled] == [cell.name for cell in plain]
    assert titles_of(titled) != titles_of(plain)


def test_a_row_is_called_by_its_title_or_its_name() -> None:
    config = load_config("digits", {"methods": {"mine": {"base": "fedgmr"}}, "method": "mine+gmr"})
    assert method_title(config) == "mine + GMR"
    titled = {"methods": {"mine": {"base": "fedgmr", "title": "My own"}}, "method": "mine+gmr"}
    assert method_title(load_config("digits", titled)) == "My own + GMR"
    assert identity(load_config("digits", titled)) == identity(config)
    assert method_title({"method": "from_elsewhere"}) == "from_elsewhere"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"labels": {"fedgrm": "ours"}},
            "labels must name what the study varies, such as fedgmr, heterofl+aux, high "
            "(got 'fedgrm'); did you mean 'fedgmr'?",
        ),
        (
            {"labels": {"patiense 3": "3"}},
            "labels must name what the study varies, such as fedgmr, heterofl+aux, high "
            "(got 'patiense 3'); did you mean 'patience 3'?",
        ),
        ({"labels": {"seed": "s"}}, "labels must name what the study varies, such as "),
        ({"labels": {"fedgmr": ""}}, "labels.fedgmr must be non-empty text (got '')"),
        ({"captions": {"test_acuracy": "x"}}, "captions must name tables: claims, "),
        (
            {"labels": {"fedgmr": "HeteroFL + Aux"}},
            "labels must tell rows and columns apart "
            "(got 'HeteroFL + Aux' for both fedgmr and heterofl+aux)",
        ),
    ],
)
def test_a_label_of_what_a_study_lacks_is_refused(changes: dict[str, Any], line: str) -> None:
    assert line_of(**changes).startswith(line)


def test_labels_stay_where_the_command_line_leaves_rows_out() -> None:
    study = {**STUDY, "labels": {"fedgmr": "ours", "heterofl+aux": "theirs"}}
    assert titles_of(expand(*load_study(study, ["method=fedgmr"])))["fedgmr"] == "ours"
