"""A gate compares runs with those of a baseline: literals of small runs in memory and in files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_results import write_result
from sample_results import write_run

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.results.gate.compare import Limits, Verdict, compare_runs
from fedgmr_hpc.results.gate.figures import FIGURES
from fedgmr_hpc.results.gate.perf_log import append_lines, run_lines, verdict_lines
from fedgmr_hpc.results.gate.text import render_verdict
from fedgmr_hpc.storage.reader import Result, read_result

NAN = float("nan")
SYSTEM = {"cpu_model": "Xeon", "num_cores": "8", "hostname": "node7", "git_commit": "8a157d0"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return read_result(write_run(tmp_path_factory.mktemp("gate") / "one.h5"))


@pytest.fixture
def run(stored: Result) -> Result:
    """Two rounds: 3 s, 0.2 s of wall time, 200 bytes up, 400 down, a test accuracy of 60 %."""
    evaluations = {**stored.evaluations, "test_accuracy": np.array([0.6])}
    return replace(stored, evaluations=evaluations, provenance=SYSTEM)


def changed(run: Result, **columns: Any) -> Result:
    """The run with other last rows of `merges`."""
    merges = dict(run.merges)
    for name, last in columns.items():
        merges[name] = np.array([*merges[name][:-1], last], merges[name].dtype)
    return replace(run, merges=merges)


def compared(now: Result, before: Result, **limits: float) -> Verdict:
    return compare_runs([now], [before], Limits(**limits))


def worse(verdict: Verdict) -> list[str]:
    return [each.figure.name for _, each in verdict.worse()]


def test_the_figures_of_a_run(run: Result) -> None:
    assert {figure.name: round(figure.read(run), 6) for figure in FIGURES} == {
        "test accuracy": 60.0,
        "time": 3.0,
        "wall time": 0.2,
        "rounds/s": 10.0,
        "server up": 200.0,
        "server down": 400.0,
    }


def test_the_same_run_passes(run: Result) -> None:
    verdict = compared(run, run)
    assert verdict.is_passed
    assert [each.change for each in verdict.pairs[0].figures] == [0.0] * 6
    assert render_verdict(verdict).endswith("passed: 1 pair: 0 worse, 0 changed, 0 gone")


@pytest.mark.parametrize(("wall_s", "names"), [(0.219, []), (0.23, ["wall time", "rounds/s"])])
def test_a_slower_run_is_worse_by_its_wall_time_alone(
    run: Result, wall_s: float, names: list[str]
) -> None:
    slower = replace(run, evaluations={**run.evaluations, "wall_s": np.array([wall_s])})
    verdict = compared(slower, run)
    assert worse(verdict) == names
    assert verdict.pairs[0].changed == []


def test_wall_times_of_another_machine_are_shown_and_not_judged(run: Result) -> None:
    slow = replace(run, evaluations={**run.evaluations, "wall_s": np.array([9.0])})
    verdict = compared(replace(slow, provenance={**SYSTEM, "num_cores": "2"}), run)
    assert verdict.is_passed
    text = render_verdict(verdict)
    assert "(45.000)" in text
    assert "wall time and rounds/s: Xeon, 2 cores, 1 rank on 1 host, before Xeon, 8 cores" in text


@pytest.mark.parametrize(
    ("hosts", "devices", "is_judged"),
    [
        (["a", "a", "a"], ["cpu", "cuda:0", "cuda:1"], True),
        (["b", "b", "b"], ["cpu", "cuda:1", "cuda:0"], True),
        (["a", "a", "b"], ["cpu", "cuda:0", "cuda:1"], False),
        (["a", "a", "a"], ["cpu", "cuda:0", "cuda:0"], False),
    ],
)
def test_ranks_on_other_hosts_or_another_number_of_gpus_are_another_machine(
    run: Result, hosts: list[str], devices: list[str], is_judged: bool
) -> None:
    def on(hosts: list[str], devices: list[str]) -> Result:
        of_ranks = {"rank": [0, 1, 2], "gpu": ["", "H200", "H200"], "host": hosts}
        return replace(run, ranks={**of_ranks, "device": devices})

    before = on(["a", "a", "a"], ["cpu", "cuda:0", "cuda:1"])
    (pair,) = compared(on(hosts, devices), before).pairs
    assert all(each.is_judged for each in pair.figures) is is_judged


def test_on_the_virtual_clock_fewer_bytes_are_changed_and_not_worse(run: Result) -> None:
    verdict = compared(changed(run, server_up_bytes=150), run)
    assert (worse(verdict), verdict.is_passed) == ([], False)
    assert verdict.pairs[0].changed == ["merges/server_up_bytes"]
    assert "changed: one: merges/server_up_bytes\n" in render_verdict(verdict)


@pytest.mark.parametrize("how", ["wall clock", "other processor", "other instructions"])
def test_bits_are_owed_on_the_virtual_clock_and_one_processor_alone(run: Result, how: str) -> None:
    if how == "wall clock":
        run = replace(run, config={**run.config, "clock": "wall"})
        now = changed(run, server_up_bytes=219)
    else:
        now = changed(run, server_up_bytes=219)
        run = replace(run, provenance={**SYSTEM, "cpu_capability": "AVX512"})
        other = {"cpu_model": "EPYC"} if how == "other processor" else {"cpu_capability": "AVX2"}
        now = replace(now, provenance={**SYSTEM, **other})
    assert compared(now, run).is_passed
    assert worse(compared(now, run, tolerance_frac=0.05)) == ["server up"]


LIBRARIES = {"version_torch": "2.5.0", "version_numpy": "2.1.0", "kernels": "c1"}


@pytest.mark.parametrize(
    ("key", "other"), [("version_torch", "2.4.0"), ("version_numpy", "1.26"), ("kernels", "torch1")]
)
def test_bits_are_owed_by_equal_libraries_alone_and_what_differs_is_named(
    run: Result, key: str, other: str
) -> None:
    now = replace(changed(run, server_up_bytes=201), provenance=SYSTEM | LIBRARIES)
    assert not compared(now, replace(run, provenance=SYSTEM | LIBRARIES)).is_passed
    assert not compared(now, replace(run, provenance=SYSTEM)).is_passed  # older, says none
    before = replace(run, provenance=SYSTEM | LIBRARIES | {key: other})
    verdict = compared(now, before)
    assert verdict.is_passed and not verdict.pairs[0].is_exact
    line = f"bits not owed: one: {key} {LIBRARIES[key]}, before {other}\n"
    assert line in render_verdict(verdict)


def resumed(run: Result, **changes: str) -> Result:
    return replace(run, provenance=run.provenance | {"resume_1": json.dumps(changes)})


def test_a_run_resumed_on_another_processor_owes_no_bits_and_is_judged_by_no_speed(
    run: Result,
) -> None:
    now = resumed(changed(run, server_up_bytes=201), cpu_model="EPYC")
    for pair in (compared(now, run).pairs[0], compared(now, now).pairs[0]):
        assert (pair.is_exact, pair.changed) == (False, [])
        assert [each.figure.name for each in pair.figures if not each.is_judged] == [
            "wall time",
            "rounds/s",
        ]
    text = render_verdict(compared(now, run))
    assert "bits not owed: one: cpu_model Xeon\u2192EPYC, before Xeon\n" in text
    on = "8 cores, 1 rank on 1 host"
    assert f"rounds/s: Xeon, {on}\u2192EPYC, {on}, before Xeon, {on}\n" in text


def test_a_run_resumed_with_more_ranks_owes_its_bits_and_is_judged_by_no_speed(
    run: Result,
) -> None:
    before = replace(run, provenance=SYSTEM | {"num_ranks": "4"})
    now = resumed(changed(before, server_up_bytes=201), num_ranks="1")
    (pair,) = compared(now, before).pairs
    assert pair.changed == ["merges/server_up_bytes"]
    assert [each.is_judged for each in pair.figures].count(False) == 2


def test_lines_of_a_log_name_all_that_a_resumed_run_was_computed_with(run: Result) -> None:
    known = {"git_commit": "b0b", "hostname": "node8", "start_utc": "2026-12-01"}
    run = replace(run, provenance=SYSTEM | {"start_utc": "2026-11-30"})
    system, _ = next(run_lines([resumed(run, **known)]))
    assert (system["commit"], system["host"], system["cpu"], system["utc"]) == (
        *("8a157d0\u2192b0b", "node7\u2192node8", "Xeon", "2026-11-30"),
    )


@pytest.mark.parametrize(("gpu", "passes"), [("H200", True), ("", False)])
def test_no_bits_are_owed_by_gpus_without_repeatable_algorithms(
    run: Result, gpu: str, passes: bool
) -> None:
    ranks, train = {**run.ranks, "gpu": [gpu]}, {"train": {"deterministic": False}}
    run = replace(run, config={**run.config, **train}, ranks=ranks)
    assert compared(changed(run, server_up_bytes=201), run).is_passed is passes


def test_weights_are_bits_too_and_a_column_of_one_version_is_not(run: Result) -> None:
    merges = {name: column for name, column in run.merges.items() if name != "staleness"}
    now = replace(run, weights=run.weights + 1, merges=merges)
    assert compared(now, run).pairs[0].changed == ["model/weights"]


def test_accuracy_may_fall_by_points(run: Result) -> None:
    now = replace(run, evaluations={**run.evaluations, "test_accuracy": np.array([0.585])})
    assert worse(compared(now, run)) == ["test accuracy"]
    assert worse(compared(now, run, points=1.6)) == []
    line = "worse: one: test accuracy 58.5 %, before 60 %: -1.50 points, allowed -1\n"
    assert line in render_verdict(compared(now, run))


def test_a_figure_that_is_no_longer_known_is_worse(run: Result) -> None:
    now = replace(run, evaluations={**run.evaluations, "test_accuracy": np.array([np.nan])})
    assert worse(compared(now, run)) == ["test accuracy"]
    assert "test accuracy" not in worse(compared(run, now))
    lines = [told for _, told in verdict_lines(compared(run, now))]
    assert (lines[0].reference, lines[0].tolerance, lines[0].within) == (None, None, None)


@pytest.mark.parametrize(
    ("percents", "median"),
    [([NAN, 0.6, 0.5], 50.0), ([0.6, NAN, 0.5], 50.0), ([0.6, NAN, NAN], NAN), ([0.6, NAN], NAN)],
)
def test_a_repeat_without_a_value_is_the_worst(
    run: Result, percents: list[float], median: float
) -> None:
    tests = [{**run.evaluations, "test_accuracy": np.array([each])} for each in percents]
    found = FIGURES[0].median(replace(run, evaluations=each) for each in tests)
    assert found == pytest.approx(median, nan_ok=True)


def test_runs_of_other_gpus_are_not_judged_by_wall_times_nor_bits(run: Result) -> None:
    on_gpu = {**run.ranks, "gpu": ["H200"], "device": ["cuda:0"]}
    now = replace(changed(run, server_up_bytes=201), ranks=on_gpu)
    (pair,) = compared(now, run).pairs
    assert (pair.is_exact, [each.is_judged for each in pair.figures].count(False)) == (False, 2)
    text = render_verdict(compared(now, run))
    assert "1 rank on 1 host, H200 (cuda:0), before Xeon, 8 cores, 1 rank on 1 host" in text


def test_repeats_count_by_their_median(run: Result) -> None:
    runs = [
        replace(run, evaluations={**run.evaluations, "wall_s": np.array([wall_s])})
        for wall_s in (0.2, 0.9, 0.21)
    ]
    (pair,) = compare_runs(runs, [run], Limits()).pairs
    assert [each.now for each in pair.figures if each.figure.name == "wall time"] == [0.21]


def test_runs_without_partner(run: Result) -> None:
    others = [
        replace(run, config={**run.config, "seed": seed}, path=Path(f"s{seed}.h5"))
        for seed in (1, 2)
    ]
    verdict = compare_runs([run, others[0]], [run, others[1]], Limits())
    assert [[each.path.stem for each in group] for group in (verdict.gone, verdict.new)] == [
        ["s2"],
        ["s1"],
    ]
    assert not verdict.is_passed
    assert compare_runs([run, others[0]], [run], Limits()).is_passed
    with pytest.raises(ValueError, match=r"^--baseline must name a run of .* \(got 1 other run\)"):
        compared(run, others[0])


def test_lines_of_a_log_say_what_on_what_and_against_what(run: Result, tmp_path: Path) -> None:
    append_lines(tmp_path / "log", run_lines([run]))
    append_lines(tmp_path / "log", verdict_lines(compared(run, run)))
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(lines) == 12
    first, last = lines[1], lines[-1]
    assert (first["host"], first["cpu"], first["cores"]) == ("node7", "Xeon", "8")
    assert first["case"].startswith("- on digits, seed 7, ")
    told = ("check", "figure", "value", "unit", "better", "reference", "tolerance", "within")
    assert [first[name] for name in told] == [
        *("run, 1 rank on 1 host", "time", 3.0, "s", "lower", None, None, None)
    ]
    assert [last[name] for name in told[1:]] == [
        *("server down", 400.0, "bytes", "lower", 400.0, 0.1, True),
    ]


@pytest.mark.parametrize("other", [b"client,sample\n0,17\n", b"\x89HDF\r\n", b"[1]\n", b"\n{}\n"])
def test_a_log_that_is_none_is_refused_and_left_as_it_was(
    run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: bytes
) -> None:
    log, said = tmp_path / "log", "its first line is no JSON object"
    log.write_bytes(other)
    with pytest.raises(ValueError, match=rf"--perf-log must be .* \(got '{log}'\): {said}"):
        append_lines(log, ())
    file = str(write_result(tmp_path / "run.h5", run))
    assert main(["report", file, "--perf-log", str(log), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert log.read_bytes() == other and not (tmp_path / "out").exists()


def test_exit_codes(run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = str(write_result(tmp_path / "before.h5", run))
    slow = replace(run, evaluations={**run.evaluations, "wall_s": np.array([0.3])})
    now = str(write_result(tmp_path / "now.h5", slow))
    log = str(tmp_path / "perf.jsonl")
    words = ["report", now, "--baseline", before]
    assert main([*words, "--tolerance", "60%", "--perf-log", log]) == 0
    assert main(words) == 1
    assert "worse: now: wall time 0.3 s, before 0.2 s: 1.500 of it" in capsys.readouterr().out
    assert len(Path(log).read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--out", "x"], "--out must be absent beside --baseline"),
        (["--perf-log", "/nowhere/x"], "--perf-log must be a file to write (got '/nowhere/x')"),
    ],
)
def test_bad_input(
    run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    file = str(write_result(tmp_path / "run.h5", run))
    assert main(["report", file, "--baseline", file, *words]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "option"), [("report", "--points"), ("bench", "--tolerance")])
def test_a_limit_without_a_baseline_is_refused(
    verb: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [verb, "codec" if verb == "bench" else "a.h5", option, "0.5"]
    assert main(words) == 2
    assert f"{option} must come with --baseline (got 0.5)" in capsys.readouterr().err


def test_a_run_that_has_not_finished_is_refused(
    run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write_result(tmp_path / "run.h5", replace(run, status="failed: it did")))
    assert main(["report", file, "--baseline", file]) == 2
    assert "status must be 'finished' (got 'failed: it did')" in capsys.readouterr().err
