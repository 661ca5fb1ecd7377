"""The live table: what a look finds, which runs seem dead, and how it is drawn."""

from __future__ import annotations

import io
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_results import EVALUATION, merge_row, open_writer, write_run

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.results import watch as watch_module
from fedgmr_hpc.results.summary import make_report
from fedgmr_hpc.results.watch import (
    find_files,
    follow,
    left_s,
    look,
    progress_frac,
    render,
    watch,
)
from fedgmr_hpc.storage.liveness import allowed_silence_s, shown_status

CONFIG = "method: fedgmr\nrun: {max_rounds: 8, max_time_s: null}\n"


def make_silent(path: Path, age_s: float) -> None:
    then_s = time.time() - age_s
    os.utime(path, (then_s, then_s))


def test_a_look_reads_a_file_that_is_being_written(tmp_path: Path) -> None:
    with open_writer(tmp_path / "run.h5", config_yaml=CONFIG) as writer:
        writer.append(merge_row(1))
        writer.append(merge_row(2))
        writer.append(EVALUATION)
        writer.flush()
        found = look(writer.path)
    assert found.state == "running" and found.num_rows == 3
    assert found.merges["round"].tolist() == [1, 2]
    assert found.merges["density"] == pytest.approx([1.75 / 3] * 2)
    assert found.val_accuracy == 0.5 and math.isnan(found.test_accuracy)
    cells = render([found]).splitlines()[2].split()
    assert cells[:5] == ["run", "fedgmr", "running", "2/8", "25"]
    assert "0.0" in cells and "15.0" in cells  # MB up, and 3 rows in 0.2 s


@pytest.mark.parametrize(
    ("wall_s", "allowed_s"), [([], 620.0), ([5.0], 620.0), ([0.0, 1.0, 3.0], 60.0), ([0, 30], 300)]
)
def test_the_pace_of_a_run_says_how_long_it_may_be_silent(
    wall_s: list[float], allowed_s: float
) -> None:
    config = {"results": {"flush_s": 2.0}}
    times = np.array(wall_s, float)
    assert allowed_silence_s(times, config) == allowed_s
    assert shown_status("running", allowed_s - 0.5, times, config) == "running"
    assert shown_status("running", allowed_s + 0.5, times, config) == "dead?"
    assert shown_status("failed: rank 2 left", 1e9, times, config) == "failed"


def test_watch_and_report_mark_a_silent_running_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_writer(tmp_path / "live.h5", config_yaml=CONFIG) as writer:
        writer.append(merge_row(1))
        writer.append(merge_row(2))
        writer.flush()
        (tmp_path / "dead.h5").write_bytes(writer.path.read_bytes())
    make_silent(tmp_path / "dead.h5", 3600)
    assert main(["watch", str(tmp_path), "--once"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[2].split()[:3] == ["dead", "fedgmr", "dead?"]
    assert "60 min" not in shown and "1 h 00 min" in shown
    assert shown.splitlines()[-1].endswith("1 dead?, 1 finished")
    assert " dead?\n" in make_report([tmp_path / "dead.h5"], tmp_path / "report")


@pytest.mark.parametrize(
    ("limits", "done_frac", "eta_s"),
    [
        ({"max_rounds": 30}, 0.5, 28.0),  # 15 rounds at 10 in 20 s, 2 s of it gone
        ({"max_rounds": 30, "max_time_s": 50.0}, 0.8, 8.0),  # 10 s at 20 in 20 s, 2 s of it gone
        ({}, 0.0, math.nan),
    ],
)
def test_time_left_goes_to_the_limit_that_comes_first(
    limits: dict[str, Any], done_frac: float, eta_s: float
) -> None:
    merges = {
        "round": np.array([5, 10, 15]),
        "now_s": np.array([20.0, 30.0, 40.0]),
        "wall_s": np.array([100.0, 110.0, 120.0]),
    }
    last = {name: float(values[-1]) for name, values in merges.items()}
    assert progress_frac(last, limits) == pytest.approx(done_frac)
    assert left_s(merges, limits, 2.0) == pytest.approx(eta_s, nan_ok=True)


def test_words_are_files_patterns_or_folders(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5", "study/cells/c.h5", "note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    names = [
        path.name for path in find_files([f"{tmp_path}/b.h5", f"{tmp_path}/*.h5", str(tmp_path)])
    ]
    assert names == ["b.h5", "a.h5"]
    assert [p.name for p in find_files([str(tmp_path / "study")])] == ["c.h5"]
    assert find_files([f"{tmp_path}/later*.h5"]) == []
    with pytest.raises(ValueError, match="results .*absent.h5: no such file"):
        find_files([f"{tmp_path}/absent.h5"])


def test_a_damaged_file_is_a_row_with_its_reason_below(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    shown = render([look(tmp_path / "text.h5")]).splitlines()
    assert shown[2].split()[:3] == ["text", "-", "unreadable"]
    assert shown[-1].startswith(f"{tmp_path / 'text.h5'}: unreadable: ")


def test_rows_that_do_not_fit_are_counted_and_ended_ones_go_first(tmp_path: Path) -> None:
    with open_writer(tmp_path / "z.h5", config_yaml=CONFIG) as writer:
        looks = [look(write_run(tmp_path / f"{name}.h5")) for name in "ab"] + [look(writer.path)]
    lines = render(looks, 2).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["z", "a"]
    assert lines[-1].endswith("2 finished, 1 running; 1 more rows do not fit")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_redrawn_in_place_until_the_named_runs_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(tmp_path / "run.h5", config_yaml=CONFIG)
    writer.append(merge_row(1))
    writer.flush()
    slept = []

    def end_the_run(seconds: float) -> None:
        slept.append(seconds)
        writer.finish("finished", weights=np.ones(4, np.float32))

    monkeypatch.setattr(time, "sleep", end_the_run)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    assert watch([str(tmp_path / "run.h5")], 0.5, once=False, stream=stream) == 0
    up = "\r\x1b[2K" + "\x1b[1A\x1b[2K" * 3  # from the fourth line to the first one's head
    first, second = stream.getvalue().split(up)[:2]
    assert slept == [0.5]
    assert "running" in first and "finished" in second


def test_a_failed_run_that_is_tried_again_and_a_file_in_place_of_a_finished_one_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for name in ("tried", "replaced", "same"):
        write_run(tmp_path / f"{name}.h5")
    with open_writer(tmp_path / "tried.h5.new", config_yaml=CONFIG) as writer:
        writer.finish("failed: rank 2 left")
    (tmp_path / "tried.h5.new").replace(tmp_path / "tried.h5")
    looks = follow([str(tmp_path)], 0.5)
    assert [run.state for run in next(looks)] == ["finished", "finished", "failed"]
    with open_writer(tmp_path / "again.h5.new", config_yaml=CONFIG) as writer:
        writer.append(merge_row(1))
        writer.flush()
        for name in ("tried", "replaced"):
            (tmp_path / f"{name}.h5").write_bytes(writer.path.read_bytes())
        assert [run.state for run in next(looks)] == ["running", "finished", "running"]


def test_what_has_ended_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = write_run(tmp_path / "a.h5"), []
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(watch_module, "look", lambda path: read.append(path) or look(path))
    looks = follow([str(tmp_path)], 0.5)
    ages = [next(looks)[0].age_s for _ in range(3)]
    assert read == [path] and ages == sorted({*ages})


@pytest.mark.parametrize("state", ["dead?", "unreadable", "gone"])
def test_a_file_that_may_come_back_is_watched_until_it_has(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "run.h5", []
    finished = write_run(tmp_path / "finished.h5")
    with open_writer(path, config_yaml=CONFIG) as writer:
        writer.append(merge_row(1))
        writer.flush()
        running = path.read_bytes()

    def come_back(seconds: float) -> None:
        told.append(seconds)
        if state == "gone" and len(told) == 1:
            path.unlink()
        else:
            path.write_bytes(finished.read_bytes())

    monkeypatch.setattr(time, "sleep", come_back)
    path.write_bytes(b"no HDF5" if state == "unreadable" else running)
    if state == "dead?":
        make_silent(path, 3600)
    states = [looks[0].state.partition(":")[0] for looks in follow([str(path)], 0.5)]
    assert states == {"gone": ["running", "unreadable", "finished"]}.get(state, [state, "finished"])


def test_a_file_that_goes_between_two_looks_of_a_folder_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path / "run.h5")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(watch_module, "find_files", lambda words, **more: [path])
    looks = follow([str(tmp_path)], 0.5)
    next(looks)
    path.unlink()
    assert render(next(looks)).splitlines()[-1].startswith(f"{path}: unreadable: ")


def test_wrong_words_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "x.h5"]) == 2
    assert "results x.h5: no such file, pattern or folder" in capsys.readouterr().err
