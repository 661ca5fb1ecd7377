"""What goes into an interactive page, and what must not."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fedgmr_hpc.reporting import interactive
from fedgmr_hpc.reporting.interactive import (
    Chart,
    Column,
    Curve,
    LivePage,
    chart_data,
    in_script,
    write_interactive,
)
from fedgmr_hpc.reporting.palette import MARKERS

NAN = float("nan")
ACCURACY = Column("test", "test accuracy", "%", "y", is_accuracy=True)
COLUMNS = [
    Column("time_s", "time", "s", "x"),
    Column("test", "test accuracy", "%", "y"),
    Column("val", "validation accuracy", "%", "y"),
]


def chart(**changes: Any) -> Chart:
    curves = [
        Curve("a", "fedgmr", "high", "1", "finished", {"time_s": [0, 1.5], "test": [10, 20.0]}),
        Curve("b", "fedavg", "high", "1", "running", {"time_s": [0, 2], "test": [NAN, 1 / 3]}),
    ]
    return Chart(**{"title": "Two runs", "columns": COLUMNS, "curves": curves, **changes})


@pytest.fixture
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)


def test_values_that_are_not_known_are_null_and_columns_without_any_are_left_out() -> None:
    data = chart_data(chart())
    assert [column["key"] for column in data["columns"]] == ["time_s", "test"]
    assert data["runs"][0]["values"] == {"time_s": [0.0, 1.5], "test": [10.0, 20.0]}
    assert data["runs"][1]["values"] == {"time_s": [0.0, 2.0], "test": [None, 0.333333]}
    assert [run["state"] for run in data["runs"]] == ["finished", "running"]


def test_the_age_of_a_page_does_not_depend_on_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive.time, "time", lambda: 1_800_000_000.4)
    assert chart_data(chart())["written_s"] == 1_800_000_000


def test_methods_look_as_in_all_figures() -> None:
    fedgmr, fedavg = chart_data(chart())["methods"]
    assert (fedgmr["colour"], fedgmr["symbol"], fedgmr["dash"]) == ("#000000", "circle", "solid")
    assert (fedavg["colour"], fedavg["symbol"]) == ("#E69F00", "square")
    assert set(interactive.MARKERS) == set(MARKERS)


@pytest.mark.parametrize(("best", "is_log"), [(74.9, False), (75.0, True)])
def test_good_accuracies_open_spaced_by_their_errors(best: float, is_log: bool) -> None:
    curve = Curve("a", "fedgmr", "", "1", "finished", {"test": [10, best, NAN]})
    (column,) = chart_data(chart(columns=[ACCURACY], curves=[curve]))["columns"]
    assert column["is_log"] is is_log


def test_a_long_curve_is_thinned_between_its_ends() -> None:
    long = Curve("a", "fedgmr", "", "1", "finished", {"time_s": range(2998), "test": range(2998)})
    (run,) = chart_data(chart(curves=[long]))["runs"]
    assert run["values"]["time_s"][:3] == [0, 3, 6] and run["values"]["test"][-1] == 2997
    assert len(run["values"]["test"]) == 1000


def test_no_name_ends_the_script() -> None:
    named = Curve("</script><b>", "fedgmr", "", "1", "", {"time_s": [0], "test": [1]})
    text = in_script(chart_data(chart(curves=[named])))
    assert "<" not in text and json.loads(text)["runs"][0]["name"] == "</script><b>"


def test_a_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    plotly = pytest.importorskip("plotly.offline", reason="needs the extra `interactive`")
    path = write_interactive(chart(), tmp_path / "new" / "interactive.html")
    text = path.read_text()
    own = text.replace(plotly.get_plotlyjs(), "")
    assert [file.name for file in path.parent.iterdir()] == ["interactive.html"]
    assert len(text) - len(own) > 1e6 and len(own) < 25_000
    assert not re.search(r"<link|<script [^>]*src|<img|@import|fetch\(|XMLHttp", own)
    urls = set(re.findall(r"https?://[^\s\"']*", own))
    assert urls == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "default-src 'none'" in own


def test_a_live_page_is_written_once_and_its_runs_again(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="needs the extra `interactive`")
    page = LivePage(tmp_path, "Runs", every_s=7)
    before = {file.name: file.stat().st_ino for file in tmp_path.iterdir()}
    page.update(chart(), goes_on=True)
    first = (tmp_path / "runs.js").read_text()
    page.update(chart(curves=[]), goes_on=False)
    second = (tmp_path / "runs.js").read_text()
    assert set(before) == {"index.html", "plotly.min.js"}
    assert {name: (tmp_path / name).stat().st_ino for name in before} == before
    assert first.startswith("show({") and '"goes_on":true' in first and len(first) < 5_000
    assert '"runs":[]' in second and '"goes_on":false' in second
    assert "const EVERY_S = 7;" in page.path.read_text()
    assert {file.name for file in tmp_path.iterdir()} == {*before, "runs.js"}


def test_a_missing_plotly_is_named(tmp_path: Path, without_plotly: None) -> None:
    with pytest.raises(ValueError, match="an interactive page needs plotly, which is missing: pip"):
        write_interactive(chart(), tmp_path / "interactive.html")
    with pytest.raises(ValueError, match="a live page needs plotly"):
        LivePage(tmp_path, "Runs", every_s=2)
    assert list(tmp_path.iterdir()) == []
