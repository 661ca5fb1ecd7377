"""The verbs a person types."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.results import summary as report
from fedgmr_hpc.storage.reader import read_result


def run_verb(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_check_prints_a_configuration_that_loads_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cache = f"data.cache={tmp_path}"
    code, out, _ = run_verb(capsys, "check", "digits", "--ranks", "13", "seed=3", cache)
    (tmp_path / "run.yaml").write_text(out)
    assert code == 0
    assert load_config(tmp_path / "run.yaml") == load_config("digits", ["seed=3", cache])
    assert "71,754 weights, 70,288 prunable" in out
    assert "13 ranks: 1 server, 12 for 10 clients" in out
    assert "note: 12 client ranks for clients.count = 10: 2 more than can train" in out


def test_check_says_what_hardly_anybody_wants(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["clients.count=9", "method=fedgmr_timed", "run.max_time_s=100"]
    _, out, _ = run_verb(capsys, "check", "digits", *words, "restoration.total_time_s=1000")
    assert "note: clients.level = high gives none of 9 clients a bandwidth share above 0.05" in out
    assert "note: restoration.total_time_s = 1000 restores at 200 s at the earliest, after" in out
    _, out, _ = run_verb(capsys, "check", "digits", "data.partition=iid", "data.alpha=0.1")
    assert "note: data.alpha = 0.1 has no effect when data.partition is 'iid'" in out
    words = ["method=median", "aggregation.staleness=poly", "links.rank_up_bytes_per_s=2e6"]
    _, out, _ = run_verb(capsys, "check", "digits", *words)
    assert "note: aggregation.staleness = poly has no effect when aggregation.rule is 'med" in out
    assert "note: links.rank_up_bytes_per_s = 2e+06 has no effect when clock is 'virtual'" in out
    _, out, _ = run_verb(capsys, "check", "digits", "clients.count=2", "clients.shares=[0.1, 0.1]")
    assert "note: " not in out


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["clients.count=9", "clients.shares=[" + "1," * 8 + "1]"], "of 9 values, rounded down"),
        (["clients.sampled=4"], "of 4 values, rounded down, so the trimmed mean is a plain one"),
        (["clients.sampled=4"], "use 0.25 or more"),
        (["clients.sampled=2"], "use more clients"),
        (["clients.sampled=4", "aggregation.trim_frac=0.25"], ""),
        (["clients.sampled=4", "aggregation.buffered=true"], ""),  # which holds all ten clients'
        ([], ""),
    ],
)
def test_check_says_where_a_trimmed_mean_trims_nothing(
    capsys: pytest.CaptureFixture[str], words: list[str], note: str
) -> None:
    _, out, _ = run_verb(capsys, "check", "digits", "method=trimmed_mean", *words)
    assert ("note: aggregation.trim_frac" in out) == bool(note)
    assert note in out


def test_check_reports_every_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_verb(capsys, "check", "clients.count=0", "seed=-1")
    assert code == 2
    said = [line.split(": ")[2].split()[0] for line in err.splitlines()]
    assert said == ["clients.count", "seed"]


def test_keys_documents_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_verb(capsys, "keys")
    lines = out.splitlines()
    assert "restoration.patience = 5" in lines
    assert all(line.startswith("    ") and len(line) > 20 for line in lines[1::2])


def test_keys_finds_sections_names_and_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_verb(capsys, "keys", "wire")
    assert all(line.startswith(("wire.", "    ")) for line in out.splitlines())
    _, out, _ = run_verb(capsys, "keys", "patience")
    assert out.startswith("restoration.patience = 5\n")
    _, out, _ = run_verb(capsys, "keys", "plateau")  # a word of meanings, of no name
    assert "restoration.patience = 5\n" in out
    code, out, err = run_verb(capsys, "keys", "restoration.patence")
    assert (code, out) == (2, "") and "did you mean 'restoration.patience'?" in err


def test_prepare_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run_verb(capsys, "prepare", "cifar10", "--root", str(tmp_path))
    assert code == 2
    assert "data_batch_1" in out and str(tmp_path) in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lanuch",), "unknown verb 'lanuch'; did you mean 'launch'?"),
        (("study", "sumbit"), "unknown action 'sumbit'; did you mean 'submit'?"),
        (("study",), "choose one of run, submit, status, report"),
        (("bench", "cdec"), "(got cdec); did you mean 'codec'?"),
        (("bench",), "missing: WHAT"),
        (("check", "--rank", "3"), "unknown option '--rank'; did you mean '--ranks'?"),
        (("launch", "--resmue"), "unknown option '--resmue'; did you mean '--resume'?"),
        (("report",), "missing: RESULT"),
        (("prepare", "fmnist"), "(got fmnist); did you mean 'femnist'?"),
        (("site", "local", "here"), "unexpected word 'here'"),
        (("watch", "x.h5", "--every=0"), "--every must be a number above 0 (got 0)"),
        (("watch", "x.h5", "--every=inf"), "--every must be a number above 0 (got inf)"),
    ],
)
def test_wrong_words_are_named(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_verb(capsys, *words)
    assert (code, out) == (2, "") and said in err.splitlines()[0]


@pytest.mark.parametrize("verb", [("agree", "digits"), ("check",), ("study", "run", "main")])
@pytest.mark.parametrize("ranks", ["0", "-1"])
def test_fewer_than_one_rank_are_refused(
    verb: tuple[str, ...], ranks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_verb(capsys, *verb, "--ranks", ranks)
    said = f"fedgmr_hpc: error: --ranks must be a whole number from 1 on (got {ranks})"
    assert (code, err.splitlines()[0]) == (2, said)


def test_a_partition_by_writers_needs_writers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("check", "digits", "data.partition=group", f"data.cache={tmp_path}")
    code, _, err = run_verb(capsys, *words)
    assert code == 2
    assert "'quantity' or 'file' when data.name is 'digits'" in err


@pytest.mark.parametrize("words", [("results", "verify"), ("report",)])
def test_a_missing_file_is_bad_input(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "nope.h5"
    code, out, err = run_verb(capsys, *words, str(path))
    assert (code, out) == (2, "")
    assert err.startswith(f"fedgmr_hpc: error: results {path}: no such file")


def test_a_damaged_file_is_a_finding(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("no HDF5")
    code, out, err = run_verb(capsys, "results", "verify", str(tmp_path / "a.h5"))
    assert (code, err) == (1, "") and "cannot be read" in out


def test_report_takes_folders(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "make_report", lambda files, out, *_: f"{[*map(str, files)]} {out}")
    for name in ("b.h5", "a.h5", "a.log", "c"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    _, out, _ = run_verb(capsys, "report", str(tmp_path), str(tmp_path / "c"))
    assert out == f"['{tmp_path}/a.h5', '{tmp_path}/b.h5', '{tmp_path}/c'] {tmp_path}/report\n"
    code, _, err = run_verb(capsys, "report", str(tmp_path / "empty"))
    assert code == 2 and "empty: no result files there" in err


def test_words_that_a_shell_has_split_hint_at_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_verb(capsys, "check", "faults=[{kind:", "drop,", "at_s:", "1}]")
    assert code == 2
    assert "faults=[{kind: is cut off at a space: quote the value, 'faults=...'" in err


@pytest.mark.parametrize("what", ["codec", "merge", "data"])
def test_a_quick_bench_ends_in_one_json_line(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_verb(capsys, "bench", what, "--quick")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["bench"] == what


def test_a_listing_piped_into_head_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m fedgmr_hpc methods | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.count(b"\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_a_command_runs_with_closed_descriptors(closed: str, tmp_path: Path) -> None:
    words = f"progress=quiet run.max_rounds=1 train.steps=1 results.path={tmp_path}/run.h5"
    command = f"{sys.executable} -m fedgmr_hpc.launch {words} {closed}"
    assert subprocess.run(command, shell=True, cwd=tmp_path).returncode == 0
    assert read_result(tmp_path / "run.h5").status == "finished"
