"""Study files and the cells they make."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedgmr_hpc.config.yaml_file import configs_dir, dump
from fedgmr_hpc.study import cells as cells_module
from fedgmr_hpc.study.cells import digest_of, expand, find_row
from fedgmr_hpc.study.labels import label_of
from fedgmr_hpc.study.notices import warn_once
from fedgmr_hpc.study.study_file import load_study

NAMES = sorted(path.stem for path in (configs_dir() / "studies").glob("*.yaml"))
TINY: dict[str, Any] = {
    "title": "tiny",
    "base": "digits",
    "set": {"run.max_rounds": 8},
    "matrix": {"method": ["fedgmr", "fedavg"], "clients.level": ["high", "low"], "seed": [0, 1]},
    "comparison_time_s": 10.0,
}


def errors_of(changes: dict[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(ValueError) as caught:
        study, words = load_study({**TINY, **changes}, overrides)
        expand(study, words)
    return str(caught.value).splitlines()


def test_a_matrix_makes_every_combination_with_its_settings() -> None:
    study, words = load_study(TINY)
    cells = expand(study, words)
    assert [cell.slug for cell in cells[:3]] == [
        "fedgmr-high-s0",
        "fedgmr-high-s1",
        "fedgmr-low-s0",
    ]
    assert len(cells) == 8 and len({cell.digest for cell in cells}) == 8
    assert {cell.config.run.max_rounds for cell in cells} == {8}
    assert {(cell.row, cell.column) for cell in cells} == {
        (row, column) for row in ("fedgmr", "fedavg") for column in ("high", "low")
    }


def test_cells_of_a_row_from_a_file_are_no_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: fedgmr\n")
    matrix = {"method": [f"{tmp_path}/mine.yaml+aux", "fedgmr"], "data.root": ["./data"]}
    cells = expand(*load_study({**TINY, "matrix": matrix}))
    assert [cell.slug for cell in cells] == ["mine+aux-.data", "fedgmr-.data"]
    swapped = {**TINY, "matrix": dict(reversed(matrix.items()))}
    assert [cell.slug for cell in expand(*load_study(swapped))] == ["data-mine+aux", "data-fedgmr"]


def test_the_old_spelling_of_max_parallel_still_works() -> None:
    assert [
        load_study({**TINY, key: 3})[0].max_parallel for key in ("max_parallel", "side_by_side")
    ] == [3, 3]


def test_exclude_and_more_cells() -> None:
    changes = {
        "exclude": [{"method": "fedavg", "clients.level": "low"}],
        "cells": [{"method": "fedasync", "clients.level": ["high"], "seed": 7}],
    }
    study, words = load_study({**TINY, **changes})
    cells = expand(study, words)
    assert len(cells) == 8 - 2 + 1
    assert (cells[-1].row, cells[-1].column, cells[-1].seed) == ("fedasync", "high", 7)


def test_command_line_replaces_varied_keys_and_sets_others() -> None:
    study, words = load_study(TINY, ["seed=[4, 5, 6]", "method=fedavg", "run.max_rounds=3"])
    cells = expand(study, words)
    assert [cell.seed for cell in cells] == [4, 5, 6, 4, 5, 6]
    assert {cell.row for cell in cells} == {"fedavg"} and words == ["run.max_rounds=3"]
    assert {cell.config.run.max_rounds for cell in cells} == {3}


def test_what_names_a_value_that_the_command_line_takes_away_goes_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    warn_once.cache_clear()
    claims = [
        {"name": "all", "kind": "difference", "a": "fedavg", "b": ["fedgmr", "fedasync"]},
        {"name": "gone", "kind": "difference", "a": "fedgmr", "b": "fedavg"},
        {"name": "low", "kind": "difference", "a": "fedavg", "b": "fedasync"}
        | {"where": {"clients.level": "low"}},
        {"name": "any", "kind": "difference", "a": "fedavg", "b": "fedasync"}
        | {"where": {"clients.level": ["low", "high"]}},
    ]
    methods = ["fedgmr", "fedavg", "fedasync"]
    content = {**TINY, "matrix": {**TINY["matrix"], "method": methods}, "claims": claims}
    content["reference"] = "fedgmr"
    words = ["method=[fedavg,fedasync]", "clients.level=[high]"]
    study, others = load_study(content, words)
    assert [cell.row for cell in expand(study, others)] == ["fedavg"] * 2 + ["fedasync"] * 2
    assert study.reference is None
    left = [(claim.name, claim.opponents()) for claim in study.claims]
    assert left == [("all", ["fedasync"]), ("any", ["fedasync"])]
    assert "without its reference and 2 of 4 claims, which name" in capsys.readouterr().err
    kept, _ = load_study(content, ["seed=[3]", "method=[fedavg,fedgmr]"])
    assert kept.reference == "fedgmr"
    assert [(claim.name, claim.opponents()) for claim in kept.claims] == [
        ("all", ["fedgmr"]),
        ("gone", ["fedavg"]),
    ]


def test_a_reference_that_the_study_never_had_is_a_mistake_whatever_it_runs() -> None:
    found = errors_of({"reference": "fedgmrr"}, "method=[fedavg]")
    assert found == ["reference must fit one of the rows fedavg (got 'fedgmrr', which fits no row)"]


def test_a_digest_ignores_where_files_are_and_nothing_else() -> None:
    study, _ = load_study(TINY)

    def digests(*words: str) -> list[str]:
        return [digest_of(cell.config) for cell in expand(study, words)]

    assert digests("results.path=x.h5", "progress=quiet") == digests()
    assert digests("data.root=/a", "data.cache=/b") == digests()
    assert not set(digests("train.batch=21")) & set(digests())


def test_rows_with_a_number_are_named_by_their_key() -> None:
    labels = {"method": "fedgmr", "restoration.total_time_s": 5.5, "restoration.patience": 3}
    assert label_of(labels, list(labels)) == "fedgmr, total time s 5.5, patience 3"
    assert label_of(labels, ["clients.level"]) == "all"


def test_a_row_is_found_by_method_label_or_values() -> None:
    changes = {"rows": ["method", "restoration.patience"]}
    changes |= {"matrix": {"method": ["fedgmr"], "restoration.patience": [1, 2]}}
    cells = expand(*load_study({**TINY, **changes}))
    assert find_row(cells, "fedgmr, patience 2", "a") == "fedgmr, patience 2"
    assert find_row(cells, {"restoration.patience": 1}, "a") == "fedgmr, patience 1"
    with pytest.raises(ValueError, match="got 'fedgmr', which fits 2 rows"):
        find_row(cells, "fedgmr", "reference")


def test_every_mistake_of_every_cell_is_reported_once() -> None:
    matrix = {"method": ["fedgmr", "nothing"], "train.batch": [0, 20], "seed": [0, 1]}
    lines = errors_of({"matrix": matrix})
    assert [line.split(" must ")[0] for line in lines[:1]] == ["train.batch"] and len(lines) == 2
    assert lines[0].endswith("(in 4 cells, the first: fedgmr-batch0-s0)")
    assert lines[1].startswith("there is no method 'nothing'")


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"matirx": {}}, "matirx is not a key; did you mean 'matrix'?"),
        ({"comparison_time_s": -1}, "comparison_time_s must be more than 0 (got -1)"),
        (
            {"rows": ["model.name"]},
            "rows must name keys that the cells vary, method, clients.level, seed",
        ),
        ({"exclude": [{"x": 1}]}, "exclude.0 must name keys that the cells vary, "),
        (
            {"reference": "fedasync"},
            "reference must fit one of the rows fedgmr; fedavg (got 'fedasync', ",
        ),
        ({"matrix": {"seed": []}}, "matrix.seed must be a list of at least one value"),
        ({"matrix": {}}, "matrix must have at least one key with values"),
        ({"exclude": [{"seed": [0, 1]}]}, "exclude must leave at least one cell"),
        ({"base": "nothing"}, "there is no run 'nothing'"),
        ({"base": "femnist"}, "data.root must be the folder of femnist (got null)"),
        (
            {"claims": [{"name": "n", "kind": "time_ratio", "a": "fedgmr", "b": "fedavg"}]},
            "claims.0.target must be given",
        ),
        (
            {"claims": [{"name": "n", "kind": "difference", "a": "fedgmr", "b": "x"}]},
            "claims.0 must fit one of the rows",
        ),
    ],
)
def test_wrong_studies_are_named(changes: dict[str, Any], start: str) -> None:
    assert errors_of(changes)[0].startswith(start)


def test_a_study_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"there is no study 'nothing' \(give a file, or one of "):
        load_study("nothing")


def test_rows_of_two_files_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    (tmp_path / "d2").mkdir()
    (tmp_path / "row.yaml").write_text("base: fedgmr\n")
    (tmp_path / "d2" / "row.yaml").write_text("base: fedavg\n")
    rows = [f"{tmp_path}/row.yaml", f"{tmp_path}/d2/row.yaml"]
    (line,) = errors_of({"matrix": {"method": rows, "seed": [3]}})
    assert line == (
        f"cells must be told apart in tables (got method={rows[0]} and method={rows[1]}): "
        "both are row in all"
    )


def test_rows_and_plug_ins_are_found_from_the_studys_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    for each in (folder, elsewhere):
        each.mkdir()
    (folder / "row.yaml").write_text("base: fedavg\n")
    for name in ("in_base", "in_set"):
        (folder / f"{name}.py").write_text("")
    values = {
        **TINY,
        "base": {"plugins": ["./in_base.py"], "clients.count": 3},
        "set": {"plugins": ["./in_set.py"]},
        "matrix": {"method": ["./row.yaml", "fedgmr"]},
        "cells": [{"method": "./row.yaml", "clients.level": ["low", "high"]}],
        "exclude": [{"method": "./row.yaml", "clients.level": "high"}],
        "reference": "./row.yaml",
        "claims": [{"name": "n", "kind": "difference", "a": "fedgmr", "b": ["./row.yaml"]}],
    }
    (folder / "study.yaml").write_text(dump(values))
    for here, path in ((elsewhere, "../study/study.yaml"), (folder, "study.yaml")):
        monkeypatch.chdir(here)
        cells = expand(*load_study(path))
        slugs = ["row", "fedgmr", "row-low"]
        assert [cell.slug for cell in cells] == slugs
        assert {cell.row for cell in cells} == {"row", "fedgmr"}
        assert cells[0].config.plugins == (
            *(str(folder / "in_base.py"), str(folder / "in_set.py")),
        )


def test_files_of_links_and_availability_are_found_from_the_studys_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "traces").mkdir()
    for name in ("days", "nights"):
        (tmp_path / "traces" / f"{name}.csv").write_text(f"client,from_s,to_s\n0,0,{len(name)}\n")
    values = {
        **TINY,
        "set": {"links": {"trace": "traces/days.csv"}},
        "matrix": {"clients.availability": [None, "traces/days.csv", "traces/nights.csv"]},
        "labels": {"traces/nights.csv": "nights"},
    }
    (tmp_path / "study.yaml").write_text(dump(values))
    monkeypatch.chdir("/")
    cells = expand(*load_study(tmp_path / "study.yaml"))
    named = [cell.config.clients.availability for cell in cells]
    assert named == [None, *(str(tmp_path / "traces" / f"{d}.csv") for d in ("days", "nights"))]
    assert [cell.config.links.trace for cell in cells] == [named[1]] * 3
    assert cells[1].slug == "tracesdays.csv"
    assert [cell.row_title for cell in cells[1:]] == ["traces/days.csv", "nights"]


def test_the_availability_of_a_shipped_study_is_found_from_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cells_module, "describe_missing", lambda *words: [])
    monkeypatch.chdir("/")
    cells = expand(*load_study("beyond_small"))
    named = {cell.config.clients.availability for cell in cells} - {None}
    assert named == {str((configs_dir() / "traces" / "evenings.csv").resolve())}
    assert all(
        cell.config.clients.availability_xxh3
        for cell in cells
        if cell.config.clients.availability is not None
    )


@pytest.mark.parametrize("name", NAMES)
def test_shipped_studies_resolve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "describe_missing", lambda *words: [])
    study, words = load_study(name)
    cells = expand(study, words)
    assert len({cell.digest for cell in cells}) == len(cells) > 3
    for is_trial, at_s in ((True, study.tuned_at_s()), (False, study.comparison_time_s)):
        limits = {cell.config.run.max_time_s for cell in cells if cell.is_trial == is_trial}
        assert all(limit_s is not None and limit_s >= at_s for limit_s in limits)


def test_a_study_bounds_its_runs_a_little_past_the_comparison() -> None:
    def limits(*words: str, **changes: Any) -> set[float | None]:
        study, others = load_study({**TINY, **changes}, words)
        return {cell.config.run.max_time_s for cell in expand(study, others)}

    assert limits() == {10.5}
    assert limits("eval.every_s=2", last=4) == {10.0}  # the last look is at T itself
    claim = {"name": "n", "kind": "difference", "a": "fedgmr", "b": "fedavg", "at_s": 40}
    assert limits(claims=[claim]) == {42.0}
    assert limits("run.max_time_s=99") == {99.0} and limits("run.max_time_s=null") == {None}
    assert limits(set={"run.max_time_s": 70}) == {70.0}
    assert limits(base={"run": {"max_time_s": 1000}}) == {10.5}  # a base says nothing of T
    assert limits(base={"run": {"max_time_s": 10.2}}) == {10.2}


def test_every_tuned_study_gives_all_methods_as_many_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cells_module, "describe_missing", lambda *words: [])
    for name in ("main", "main_small", "claims", "claims_small"):
        cells = expand(*load_study(name))
        rows = Counter(cell.row for cell in cells if cell.is_trial)
        assert set(rows) == {cell.row for cell in cells} and len(set(rows.values())) == 1


@pytest.mark.parametrize(
    ("changes", "words", "line"),
    [
        ({"set": {"eval.every_s": 3}}, [], "comparison_time_s / last, 2 s (got 3)"),
        ({"base": {"eval": {"every_s": 3}}}, [], "comparison_time_s / last, 2 s (got 3)"),
        ({"set": {"eval.every_s": 2}}, ["eval.every_s=2.5"], "last, 2 s (got 2.5)"),
        ({"set": {"eval.every_s": 1}}, [], "tune_time_s / last, 0.8 s (got 1)"),
        ({"matrix": {"eval.every_s": [0.5, 3]}}, [], "comparison_time_s / last, 2 s (got 3)"),
    ],
)
def test_the_look_at_the_untrained_model_is_in_no_mean(
    changes: dict[str, Any], words: list[str], line: str
) -> None:
    times = {"comparison_time_s": 10, "last": 5, "tune": {"train.learning_rate": [0.1, 0.2]}}
    if "tune_time_s" in line:
        times["tune_time_s"] = 4
    (found,) = errors_of({"set": {}, **times, **changes}, *words)
    assert found.startswith("eval.every_s must be at most ") and line in found
    assert ": the look at 0 s, at the untrained model, would count" in found


def test_looks_of_a_base_that_is_a_file_are_checked(tmp_path: Path) -> None:
    base = tmp_path / "rare.yaml"
    base.write_text("eval: {every_s: 4}\n")
    (found,) = errors_of({"base": str(base)})
    assert found.startswith(
        "eval.every_s must be at most comparison_time_s / last, 3.33333 s (got 4)"
    )
    at_once = {"name": "early", "kind": "difference", "a": "fedgmr", "b": "fedavg", "at_s": 6}
    (found,) = errors_of({"set": {"eval.every_s": 3}, "claims": [at_once]})
    assert "claims.0.at_s / last, 2 s (got 3)" in found


@pytest.mark.parametrize(
    "changes",
    [
        {"set": {"eval.every_s": 1.1}, "comparison_time_s": 3.3, "last": 3},  # 3.3000000000000003
        {"set": {"eval.every_s": 2}, "last": 5, "tune_time_s": 4},  # nothing is tuned
        {"last": 5},
    ],
)
def test_as_many_looks_as_there_are_may_count(changes: dict[str, Any]) -> None:
    assert expand(*load_study({**TINY, **changes}))


def test_a_claim_of_own_sub_models_needs_runs_that_score_them() -> None:
    claim = {"name": "own", "kind": "difference", "of": "own_mean", "a": "fedgmr", "b": "fedavg"}
    (line,) = errors_of({"claims": [claim]})
    assert line == "eval.submodels must be true when claims.0 is of own_mean (got false)"
    ours = {"method": ["fedgmr", "fedavg"], "eval.submodels": [True, False]}
    inside = {**claim, "where": {"eval.submodels": True}}
    assert expand(*load_study({**TINY, "matrix": ours, "claims": [inside]}))
    scored = {**TINY["set"], "eval.submodels": True}
    assert expand(*load_study({**TINY, "set": scored, "claims": [claim]}))


def test_a_claim_without_opponents_and_rows_named_twice_are_refused() -> None:
    claim = {"name": "nothing", "kind": "difference", "a": "fedgmr", "b": []}
    assert any("claims.0" in line for line in errors_of({"claims": [claim]}))
    assert errors_of({"rows": ["method", "method"]}) == [
        "rows must name each key once (got ['method', 'method'])"
    ]


def test_values_that_are_written_in_two_ways_are_one() -> None:
    matrix = {"method": ["fedgmr"], "train.momentum": [0, 0.0, 0.5], "data.alpha": [1.0, 1]}
    assert len(expand(*load_study({**TINY, "matrix": matrix}))) == 2
