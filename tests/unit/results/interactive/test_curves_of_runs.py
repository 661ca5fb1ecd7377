"""Curves of runs: what they hold, and what their methods are called."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_results import EVALUATION, UPDATE, merge_row, open_writer, write_run

from fedgmr_hpc.reporting.interactive import PAGE
from fedgmr_hpc.results.interactive.curves import (
    columns,
    curve,
    curves,
    read_light,
)
from fedgmr_hpc.results.summary import make_report
from fedgmr_hpc.storage.reader import read_result

CONFIG = "{method: fedavg, seed: 7, train: {batch: 25}}"


def test_a_curve_of_a_run_that_is_being_written(tmp_path: Path) -> None:
    with open_writer(tmp_path / "run.h5", config_yaml=CONFIG) as writer:
        for row in (merge_row(1), merge_row(2), UPDATE, EVALUATION):
            writer.append(row)
        writer.flush()
        result = read_light(writer.path)
        (found,) = curves([result], ["run"])
    assert (found.method, found.seed, found.state) == ("fedavg", "7", "running")
    values = {key: column.tolist() for key, column in found.values.items()}
    assert values["time_s"] == [3.0] and values["val"] == [50.0] and values["density"] == [0.75]
    assert values["traffic_mb"] == [(200 + 400) / 1e6]
    assert values["client_steps"] == [2.0]  # one update of 50 samples
    assert np.isnan(values["test"]).all() and np.isnan(values["own_mean"]).all()


def test_a_light_look_and_a_whole_one_give_the_same_curve(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5")
    light, whole = (
        curve(read(path), name="a", method="b").values for read in (read_light, read_result)
    )
    assert light.keys() == whole.keys()
    for key, column in whole.items():
        np.testing.assert_array_equal(light[key], column)


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"results .*a.h5: cannot be read"):
        read_light(tmp_path / "a.h5")


def test_methods_are_called_as_in_figures(tmp_path: Path) -> None:
    result = read_result(write_run(tmp_path / "run.h5"))
    configs = [
        {"method": "fedavg", "seed": seed, "train": {"learning_rate": rate}}
        for seed, rate in ((1, 0.1), (2, 0.1), (1, 0.5))
    ]
    runs = [replace(result, config=config) for config in configs]
    found = [each.method for each in curves(runs, ["a", "b", "c"])]
    assert found == [*["fedavg, learning rate 0.1"] * 2, "fedavg, learning rate 0.5"]
    again = replace(result, config=configs[2], path=write_run(tmp_path / "again.h5"))
    found = [each.method for each in curves([*runs, again], ["a", "b", "c", "d"])]
    assert found[2:] == ["fedavg, learning rate 0.5: run", "fedavg, learning rate 0.5: again"]


@pytest.mark.parametrize(
    ("clocks", "label"),
    [(["virtual"], "virtual time"), (["wall"], "unscaled time"), (["wall", "virtual"], "time")],
)
def test_the_axis_says_which_time_it_is(clocks: list[str], label: str) -> None:
    assert columns([{"clock": clock} for clock in clocks])[0].label == label


def test_a_report_without_plotly_says_what_its_page_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    said = make_report([write_run(tmp_path / "run.h5")], tmp_path / "report")
    assert "no interactive page: an interactive page needs plotly, which is missing" in said
    assert not (tmp_path / "report" / PAGE).exists()
