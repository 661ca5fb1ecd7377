"""Correlations, laws and verdicts of `probe error` from literals, and the verb on the digits."""

from __future__ import annotations

import pytest

import fedgmr_hpc.experiments.merge_error as merge_error
from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.experiments.merge_error import assignments, ladder_steps
from fedgmr_hpc.experiments.merge_error_tables import (
    ErrorRow,
    MismatchRow,
    density_and_error,
    falling_steps,
    fit_power,
    mismatch_correlations,
    seed_correlations,
    verdicts,
)
from fedgmr_hpc.results.runs import run


def row(name: str, density: float, error: float, seed: int = 0) -> ErrorRow:
    return ErrorRow(seed, 10, "mask_aware", name, density, error, error**2)


def mismatch(start: int, num: int, increase: float, mixed: float) -> MismatchRow:
    return MismatchRow(0, 10, "mask_aware", start, num, 0.5, increase, 0.25, mixed)


def test_power_law_is_found_and_zeros_are_left_out():
    a, b, fit = fit_power([1, 2, 4, 5], [3, 0.75, 0.1875, 0])
    assert (a, b, fit) == (pytest.approx(3), pytest.approx(-2), pytest.approx(1))


def test_correlation_of_a_seed_is_of_its_own_assignments():
    rows = [row("a", 0.1, 0.9), row("b", 0.5, 0.4), row("a", 0.1, 0.2, 1), row("b", 0.5, 0.3, 1)]
    assert seed_correlations(rows, density_and_error) == [pytest.approx(-1), pytest.approx(1)]


def test_steps_up_the_ladder_are_counted_within_a_level():
    rows = [row("high +1", 0.3, 0.5), row("high +0", 0.2, 0.8), row("high +2", 0.5, 0.6)]
    assert falling_steps([*rows, row("low +0", 0.3, 0.1), row("uniform 1", 1, 0)]) == (1, 2)


def test_verdicts_compare_one_rung_with_all_at_once():
    found = [mismatch(0, 1, 0.1, 0.35), mismatch(1, 1, 0.2, 0.45), mismatch(0, 2, 0.3, 0.75)]
    assert mismatch_correlations(found) == [pytest.approx(1)]
    lines = verdicts([row("a", 0.1, 0.9), row("b", 1.0, 0.0)], found)
    assert "mean density -1.000 over 1 seeds" in lines[0]
    assert "adds +0.200 at most and +0.300 over the whole ladder" in lines[1]
    assert "all rungs at once +0.500" in lines[1]


def test_assignments_go_from_all_low_to_all_full_without_repeats():
    found = assignments(10)
    assert found["uniform 0.05"] == (0.05,) * 10 and found["uniform 1"] == (1.0,) * 10
    assert found["high +1"] == (1.0, 1.0, 0.5, 0.2, *(0.1,) * 6)
    assert len(set(found.values())) == len(found)


def test_ladder_steps_end_at_all_full():
    assert ladder_steps((1.0, 0.5)) == [(0, 0), (0, 1)]
    assert ladder_steps((0.5, 0.1)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


TINY = ["clients.count=3", "train.steps=1", "run.interval_rounds=1", "data.max_train=200"]


def test_verb_writes_tables_and_pictures(tmp_path, capsys):
    words = ["probe", "error", "digits", *TINY, "seed=[3]", "run.max_rounds=1"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "rank correlation of error and mean density -" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    pages, csvs = {"error.html", "error.md"}, {"error.csv", "mismatch.csv"}
    assert names == {*pages, *csvs, "error.png", "mismatch.png"}
    first = (tmp_path / "error.csv").read_text().splitlines()
    heads = next(line for line in first if not line.startswith("#"))
    assert heads == "seed,round,rule,assignment,mean_density,error,bound"
    assert any(line.startswith("3,1,mask_aware,uniform 1,1.0,0.0,0.0") for line in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of one round."""
    path = tmp_path_factory.mktemp("finished") / "run.h5"
    words = [*TINY, "run.max_rounds=1", "progress=quiet", f"results.path={path}"]
    return str(run(load_config("digits", words)).path)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[merge_error.Start]:
    """What would have been measured."""
    found: list[merge_error.Start] = []

    def measure(starts):
        found.extend(starts)
        raise ValueError("measured")

    monkeypatch.setattr(merge_error, "measure", measure)
    return found


@pytest.mark.parametrize(
    "word", ["seed=1", "clients.count=3", "data.max_train=500", "run.max_rounds=5", "seed=[1, 2]"]
)
def test_what_makes_a_finished_run_cannot_be_changed(finished, measured, word, tmp_path, capsys):
    assert main(["probe", "error", finished, word, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "probe error of a result file must have no --config, and set nothing but " in said
    assert f"(got {word})" in said
    assert not measured and not (tmp_path / "out").exists()


def test_where_the_data_of_a_finished_run_are_may_be_said(finished, measured, tmp_path, capsys):
    words = [finished, f"data.cache={tmp_path}", "--out", str(tmp_path / "out")]
    assert main(["probe", "error", *words]) == 2 and "measured" in capsys.readouterr().err
    (start,) = measured
    assert (start.config.data.cache, start.config.seed, start.round) == (str(tmp_path), 0, 1)


def test_files_and_folder_are_checked_before_anything_is_measured(
    finished, measured, tmp_path, capsys
):
    absent, out = str(tmp_path / "absent.h5"), tmp_path / "out"
    assert main(["probe", "error", finished, absent, "--out", str(out)]) == 2
    assert "absent.h5: no such file" in capsys.readouterr().err and not out.exists()
    out.write_text("a file")
    for source in (finished, "digits"):
        assert main(["probe", "error", source, "--out", str(out)]) == 2
        said = f"--out must be a folder to write in (got '{out}'): File exists"
        assert said in capsys.readouterr().err
    assert not measured


def test_verb_names_what_it_cannot_probe(capsys):
    assert main(["probe", "speed"]) == 2
    assert "unknown action 'speed'" in capsys.readouterr().err
    assert main(["probe", "error", "digits", "femnist"]) == 2
    assert "must have one configuration, or results" in capsys.readouterr().err
