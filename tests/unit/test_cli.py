"""The verbs a person types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedgmr_hpc.__main__ import main
from fedgmr_hpc.configfile import load_config


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
    assert "13 ranks: 1 server, 12 for 10 clients, 2 of them without a client" in out


def test_check_reports_every_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_verb(capsys, "check", "clients.count=0", "seed=-1")
    assert code == 2
    assert [line.split(": ")[2] for line in err.splitlines()] == ["clients.count", "seed"]


def test_keys_documents_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_verb(capsys, "keys")
    lines = out.splitlines()
    assert "restoration.patience = 5" in lines
    assert all(line.startswith("    ") and len(line) > 20 for line in lines[1::2])


def test_prepare_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run_verb(capsys, "prepare", "cifar10", "--root", str(tmp_path))
    assert code == 2
    assert "data_batch_1" in out and str(tmp_path) in out


@pytest.mark.parametrize("words", [("bench", "nothing"), ("report",), ("prepare", "mnist")])
def test_wrong_words_are_named(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_verb(capsys, *words)
    assert code == 2 and "got " in err and "need " in err


@pytest.mark.parametrize("what", ["codec", "merge", "mask"])
def test_a_quick_bench_ends_in_one_json_line(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_verb(capsys, "bench", what, "--quick")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["bench"] == what
