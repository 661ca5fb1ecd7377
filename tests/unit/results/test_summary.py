"""Tables, summary and plots from hand-made result files with literal numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from fedgmr_hpc.results import summary as summary_module
from fedgmr_hpc.results.series import mean_density
from fedgmr_hpc.results.summary import make_report, render_summary
from fedgmr_hpc.storage.reader import Result, read_result
from fedgmr_hpc.storage.rows import (
    EvaluationRow,
    EventRow,
    LookRow,
    MergeRow,
    SubmodelRow,
    UpdateRow,
)
from fedgmr_hpc.storage.writer import ResultWriter

CONFIG = "seed: 7\nmethod: fedgmr\ndata: {name: digits}\n"
MB = 1_000_000
NAN = float("nan")


def merge(version: int) -> MergeRow:
    """Two clients; client 0 starts at density 0.25 and is restored to 0.75 by version 3."""
    return MergeRow(
        version=version,
        round=version,
        now_s=10.0 * version,
        num_merged=2,
        server_up_bytes=4 * MB * version,
        server_down_bytes=MB * version // 2,
        staleness=np.array([1, 0 if version == 1 else version]),
        density=np.array([0.25 if version < 3 else 0.75, 1.0]),
        weight=np.array([0.5, 0.5]),
        up_bytes=np.array([1, 1]),
        down_bytes=np.array([1, 1]),
        wall_s=0.5 * version,
        wall_rss_bytes=1,
    )


def evaluation(version: int, val: float, test: float, density: float) -> EvaluationRow:
    return EvaluationRow(
        version=version,
        round=version,
        now_s=10.0 * version,
        val_accuracy=val,
        val_loss=1.0,
        test_accuracy=test,
        test_loss=1.0,
        mean_density=density,
        model_xxh3=version,
        wall_s=0.5 * version + 0.1,
    )


def update(version: int, age: int) -> UpdateRow:
    """Merged into `version`, 0 for none."""
    counts = {"client": 0, "mask_id": 0, "down_bytes": 1, "up_bytes": 1, "num_samples": 1}
    numbers = {"now_s": 1.0, "density": 1.0, "train_loss": 1.0, "score": NAN}
    own = {"base_version": version - age, "version": version}
    return UpdateRow(**own, **counts, **numbers, wall_overrun=0, wall_rank=1)


UPDATES = [update(1, 1), update(2, 1), update(4, 4), update(0, -2)]  # the last was lost
LOSS = EventRow(kind=3, now_s=40.0, ready_s=40.0, client=0, chain_xxh3=0)
EVALUATIONS = [
    evaluation(0, 0.1, 0.11, 0.625),
    evaluation(2, 0.5, 0.4, 0.625),
    evaluation(3, 0.7, 0.6, 0.875),
    evaluation(4, 0.8, 0.62, 0.875),
]


def write(
    path: Path,
    num_merges: int = 4,
    evaluations: list[EvaluationRow] = EVALUATIONS,
    status: str = "finished",
    config: str = CONFIG,
    updates: list[UpdateRow] = UPDATES,
    others: Sequence[SubmodelRow | LookRow] = (),
) -> Path:
    sizes = {"num_clients": 2, "num_weights": 1, "num_ranks": 1}
    texts: dict[str, Any] = {"config_yaml": config, "layout_json": "{}", "provenance": {}}
    with ResultWriter(path, **sizes, **texts) as writer:
        for version in range(1, num_merges + 1):
            writer.append(merge(version))
        for row in [*evaluations, *updates[: num_merges + 1], LOSS, *others]:
            writer.append(row)
        writer.finish(status)
    return path


@pytest.fixture
def result(tmp_path: Path) -> Result:
    return read_result(write(tmp_path / "run one.h5"))


def cells(report: str, start: str) -> list[list[str]]:
    """The words of every line that starts with `start`, split at spaces."""
    return [line.split() for line in report.splitlines() if line.split()[:1] == [start]]


def test_the_run_table_holds_the_numbers_of_the_file(tmp_path: Path) -> None:
    report = make_report([write(tmp_path / "a.h5")], tmp_path / "out", sizes=())
    name, *numbers = cells(report, "a")[0]
    assert numbers[:5] == ["fedgmr", "digits", "7", "4", "4"]
    assert numbers[5:7] == ["40.0", "2.1"]  # the clock's and wall seconds
    assert numbers[7:10] == ["62.00", "54.00", "80.00"]  # test, mean of 3, val
    assert numbers[10:13] == ["0.625", "->", "0.875"]
    assert numbers[13:] == ["16.0", "2.0", "finished"]  # server up, down: what it sent, received


def test_clients_in_quarantine_are_named(result: Result) -> None:
    whole = replace(result, events={name: v[:0] for name, v in result.events.items()})
    warning = "  warning        client 0 in quarantine, so that the others alone were trained"
    assert warning in render_summary(whole).splitlines()
    assert "warning" not in render_summary(result)


def test_the_course_pairs_evaluations_with_the_bytes_of_their_version(tmp_path: Path) -> None:
    report = make_report([write(tmp_path / "a.h5")], tmp_path / "out", sizes=())
    course = report.split("a: finished\n")[1].split("\n\n")[0].splitlines()
    assert [line.split() for line in course[3:]] == [
        ["0", "0.0", "10.00", "11.00", "0.625", "0.0", "0.0"],
        ["2", "20.0", "50.00", "40.00", "0.625", "8.0", "1.0"],
        ["3", "30.0", "70.00", "60.00", "0.875", "12.0", "1.5"],
        ["4", "40.0", "80.00", "62.00", "0.875", "16.0", "2.0"],
    ]


def test_the_course_of_looks_ends_with_the_time_of_the_run(tmp_path: Path) -> None:
    looks = [LookRow(**asdict(replace(each, now_s=each.now_s + 5))) for each in EVALUATIONS]
    config = f"{CONFIG}run: {{max_time_s: 36}}\n"
    path = write(tmp_path / "a.h5", config=config, others=looks)
    course = make_report([path], tmp_path / "out", sizes=()).split("a: finished\n")[1]
    assert [line.split()[1] for line in course.split("\n\n")[0].splitlines()[3:]] == [
        *("5.0", "25.0", "35.0")
    ]


def test_a_long_course_is_thinned_to_eight_rows_with_both_ends(tmp_path: Path) -> None:
    rows = [evaluation(version, 0.5, 0.5, 1.0) for version in range(100)]
    report = make_report([write(tmp_path / "a.h5", 100, rows)], tmp_path / "out", sizes=())
    course = report.split("a: finished\n")[1].split("\n\n")[0].splitlines()[3:]
    assert [line.split()[0] for line in course] == ["0", "14", "28", "42", "57", "71", "85", "99"]


def test_columns_line_up(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.h5"), write(tmp_path / "much longer.h5", status="failed: no GPU")]
    report = make_report(paths, tmp_path / "out", sizes=())
    heads, units, rule, first, second = report.splitlines()[:5]
    assert first.index("62.00") == second.index("62.00")
    assert heads.index("test") + len("test") == first.index("62.00") + len("62.00")
    assert second.endswith("failed") and "much longer: failed: no GPU" in report
    assert len(rule) == max(len(heads), len(first), len(second))
    assert units.split()[:4] == ["s", "s", "%", "%"]


def test_equal_file_names_are_told_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / "run.h5") for folder in ("x", "y")]
    report = make_report(paths, tmp_path / "out", sizes=())
    assert all(cells(report, str(path)) for path in paths)


def is_drawn(path: Path) -> bool:
    pixels = imread(path)[..., :3]
    return pixels.shape[1] == 7.2 * 200 and pixels.min() < 0.1 < 0.9 < pixels.mean()


@pytest.mark.parametrize("num_runs", [1, 2])
def test_plots_are_drawn(tmp_path: Path, num_runs: int) -> None:
    paths = [write(tmp_path / f"run{index}.h5") for index in range(num_runs)]
    report = make_report(paths, tmp_path / "new" / "out")
    for name in ("accuracy_vs_time.png", "density_vs_time.png"):
        assert is_drawn(tmp_path / "new" / "out" / name)
        assert f"plot: {tmp_path / 'new' / 'out' / name}" in report


def test_an_empty_run_is_reported_with_dashes(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.h5", 0, [], "failed: no client")
    report = make_report([path], tmp_path / "out", sizes=())
    assert cells(report, "empty")[0][3:] == [
        *["7", "0", "0", "0.0", "0.0", "-", "-", "-", "-", "0.0", "0.0", "failed"]
    ]
    assert "empty: failed: no client\nno evaluation yet" in report
    summary = render_summary(read_result(path))
    assert "test accuracy  -" in summary and "mean density   -" in summary


def test_unmeasured_test_accuracy_falls_back_to_the_last_measured(tmp_path: Path) -> None:
    rows = [evaluation(1, 0.5, 0.4, 1.0), evaluation(2, 0.6, NAN, 1.0)]
    report = make_report([write(tmp_path / "a.h5", 2, rows)], tmp_path / "out", sizes=())
    assert cells(report, "a")[0][8:11] == ["40.00", "40.00", "60.00"]
    assert cells(report, "2")[0][2:4] == ["60.00", "-"]


def test_mean_density_begins_with_the_initial_model(result: Result) -> None:
    times, means = mean_density(result)
    assert times.tolist() == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert means.tolist() == [0.625, 0.625, 0.625, 0.875, 0.875]


def test_summary(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert render_summary(result).splitlines() == [
        "fedgmr on digits, seed 7: finished",
        "  test accuracy  62.00 %, mean of the last 3 evaluations 54.00 %",
        "  val accuracy   80.00 %",
        "  mean density   0.625 -> 0.625, 0.625, 0.875 -> 0.875"
        "  (after 0 -> 25, 50, 75 -> 100 % of the time)",
        "  server         16.0 MB up to the clients, 2.0 MB down from them",
        "  merged         rounds 4, versions 4",
        "  time           40.0 s virtual, 2.1 s wall",
        "  staleness      mean 2.00, max 4 versions",
        f"  results        {result.path}",
        f"next: python -m fedgmr_hpc report '{result.path}'",
    ]


def test_what_to_type_next_names_a_python_that_is_not_on_path(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(Path(sys.executable).parent.parent)
    assert f"next: bin/{Path(sys.executable).name} -m fedgmr_hpc report" in render_summary(result)
    monkeypatch.chdir("/")
    (result.path.parent / "x").mkdir()
    monkeypatch.chdir(result.path.parent / "x")
    assert f"next: {sys.executable} -m" in render_summary(result)


@pytest.mark.parametrize(
    ("overran", "text"),
    [
        ((0, 0, 0, 0), None),
        ((1, 1, 0, 0), "50.0 % of the client-steps took longer than they may; the times are too"),
    ],
)
def test_the_wall_clock_says_its_time_and_what_overran(
    overran: tuple[int, ...], text: str | None, tmp_path: Path
) -> None:
    config = f"{CONFIG}clock: wall\ntime_scale: 0.05\n"
    pairs = zip(UPDATES, overran, strict=True)
    updates = [replace(row, wall_overrun=is_over) for row, is_over in pairs]
    path = write(tmp_path / "a.h5", 4, config=config, updates=updates)
    (tmp_path / "a.trace.json").write_text("{}")
    summary = render_summary(read_result(path))
    assert "  time           40.0 s at time_scale 0.05, 2.1 s wall" in summary
    assert f"  timeline       {tmp_path / 'a.trace.json'}, for ui.perfetto.dev" in summary
    (tmp_path / "a.trace.json").unlink()
    for shown in (summary, make_report([path], tmp_path / "out", sizes=())):
        assert ("client-steps" in shown) == (text is not None)
        assert (text or "") in shown


def test_the_untrained_model_is_in_no_mean_of_trained_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", 4, EVALUATIONS[:3])
    summary = render_summary(read_result(path))
    assert "test accuracy  60.00 %, mean of the last 2 evaluations 50.00 %" in summary
    untrained = write(tmp_path / "b.h5", 0, EVALUATIONS[:1])
    summary = render_summary(read_result(untrained))
    assert "test accuracy  11.00 %, mean of the last 1 evaluation 11.00 %" in summary


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.h5: no such file"):
        make_report([tmp_path / "absent.h5"], tmp_path / "out")


def test_a_report_leaves_out_what_cannot_be_read_and_says_so(tmp_path: Path) -> None:
    good, cut, empty = write(tmp_path / "a.h5"), tmp_path / "cut.h5", tmp_path / "empty.h5"
    cut.write_bytes(good.read_bytes()[:5000])
    empty.touch()
    report = make_report([cut, good, empty], tmp_path / "out", sizes=())
    assert report.startswith("run") and "\na " in report
    for line, path in zip(report.splitlines()[-2:], (cut, empty), strict=True):
        assert line.startswith(f"left out: results {path}: ")


def test_a_file_that_goes_while_it_is_reported_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.h5")
    monkeypatch.setattr(summary_module, "_write_page", lambda *words: path.unlink() or "no page")
    assert cells(make_report([path], tmp_path / "out", sizes=()), "a")[0][-1] == "finished"


def test_sub_models_are_drawn_where_they_were_scored(tmp_path: Path) -> None:
    scores = {"test_loss": 1.0, "wall_s": 1.0}
    rows: list[Any] = [
        SubmodelRow(v, 10.0 * v, density, 1, 1, test_accuracy=density / (5 - v), **scores)
        for v in (0, 2, 4)
        for density in (0.05, 1.0)
    ]
    plain, cut = write(tmp_path / "plain.h5"), write(tmp_path / "cut.h5", others=rows)
    more = write(tmp_path / "more.h5", others=rows[:2])
    for paths in ([cut], [plain, cut, more]):
        report = make_report(paths, tmp_path / "out")
        assert "submodels.png" in report
        assert is_drawn(tmp_path / "out" / "submodels.png")
    assert "submodels" not in make_report([plain], tmp_path / "out")
