"""The page that `watch --html` renews while runs go on."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from sample_results import EVALUATION, WEIGHTS, merge_row, open_writer, write_run

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.results.interactive import live_page
from fedgmr_hpc.results.interactive.live_page import WatchedCurves, watch_page
from fedgmr_hpc.results.watch import look

pytest.importorskip("plotly", reason="needs the extra `interactive`")


def shown(folder: Path) -> dict[str, Any]:
    text = (folder / "runs.js").read_text()
    return json.loads(text.removeprefix("show(").removesuffix(");\n"))


def test_the_page_is_renewed_until_the_named_runs_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(tmp_path / "run.h5", config_yaml="{method: fedavg, seed: 7}")
    writer.append(merge_row(1))
    writer.flush()
    folder, seen = tmp_path / "page", []

    def go_on(seconds: float) -> None:
        seen.append(shown(folder))
        writer.append(merge_row(2))
        writer.append(EVALUATION)
        writer.finish("finished", weights=WEIGHTS)

    monkeypatch.setattr(time, "sleep", go_on)
    stream = io.StringIO()
    assert watch_page([str(tmp_path / "run.h5")], folder, 0.5, once=False, stream=stream) == 0
    assert stream.getvalue() == f"page: {folder / 'index.html'}\n"
    (first,), last = seen, shown(folder)
    assert first["goes_on"] and not last["goes_on"]
    assert [row[2] for row in first["rows"] + last["rows"]] == ["running", "finished"]
    assert first["runs"][0]["values"] == {}
    assert last["runs"][0]["values"]["val"] == [50.0]


def test_a_file_that_cannot_be_read_breaks_nothing_and_keeps_its_curve(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a.h5"), write_run(tmp_path / "b.h5")]
    watched = WatchedCurves()
    assert len(watched.chart([look(path) for path in paths]).curves) == 2
    paths[1].write_text("no HDF5")
    (tmp_path / "c.h5").write_text("neither")
    chart = watched.chart([look(path) for path in (*paths, tmp_path / "c.h5")])
    assert [curve.name for curve in chart.curves] == ["a", "b"]
    assert [row[2] for row in chart.rows] == ["unreadable", "unreadable", "finished"]
    assert chart.notes[0].startswith(f"{paths[1]}: unreadable")


def test_a_file_deleted_during_a_look_keeps_its_curve(tmp_path: Path) -> None:
    """Such as after the last look, when Ctrl-C has the page written once more."""
    paths = [write_run(tmp_path / "a.h5"), write_run(tmp_path / "b.h5")]
    watched, looks = WatchedCurves(), [look(path) for path in paths]
    watched.chart(looks)
    paths[1].unlink()
    assert [each.state for each in watched.chart(looks).curves] == ["finished", "finished"]


def test_what_has_not_changed_is_not_read_again_but_another_file_in_its_place_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = write_run(tmp_path / "a.h5"), []
    read_light = live_page.read_light
    monkeypatch.setattr(live_page, "read_light", lambda path: read.append(path) or read_light(path))
    watched = WatchedCurves()
    for _ in range(3):
        watched.chart([look(path)])
    assert read == [path]
    other, age = write_run(tmp_path / "b.h5"), path.stat()
    os.utime(other, ns=(age.st_atime_ns, age.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_size == age.st_size
    watched.chart([look(path)])
    assert read == [path] * 2


def test_once_is_enough_for_a_folder_without_runs(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    assert main(["watch", str(tmp_path), "--once", "--html", str(folder)]) == 0
    data = shown(folder)
    assert (data["runs"], data["columns"], data["goes_on"]) == ([], [], False)


def test_a_page_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page").write_text("")
    run = str(write_run(tmp_path / "run.h5"))
    assert main(["watch", run, "--html", str(tmp_path / "page")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
