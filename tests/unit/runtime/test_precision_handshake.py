"""Ranks are asked for the run's precision before it begins: all go on, or all end with code 2."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

import fedgmr_hpc
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.runtime import roles
from fedgmr_hpc.storage.reader import differing_columns
from fedgmr_hpc.training import precision
from fedgmr_hpc.transport.contract import Tag, make_inproc

WORKED = 7


def begin(
    monkeypatch: pytest.MonkeyPatch, refusals: dict[str, str]
) -> tuple[bool, list[Future[int]]]:
    """Hand three ranks a run in bf16; return whether all have it, and how the ranks end."""
    monkeypatch.setattr(roles, "refuse", lambda wanted, device, place: refusals.get(place, ""))
    monkeypatch.setattr(roles, "work", lambda *_: WORKED)
    monkeypatch.setattr(roles, "keep_large_blocks", lambda: None)
    monkeypatch.setattr(roles, "START_TIMEOUT_S", 20.0)
    monkeypatch.setattr(roles.STOP_REQUEST, "suspended", nullcontext)  # threads get no signals
    server, *ends = make_inproc(4)
    config = load_config("digits", ["train.precision=bf16"]).model_dump(mode="json")
    hello = {"config": config, "run_id": 1, "is_replay": True, "data_xxh3": "", "kernels": ""}
    with ThreadPoolExecutor(3) as pool:
        ended = [pool.submit(roles.follow, end) for end in ends]
        for rank in (1, 2, 3):
            server.send(rank, Tag.HELLO, json.dumps(hello).encode())
        has_it = roles._ranks_have_precision(server)
        if not has_it:
            roles._dismiss(server, roles.EXIT_BAD_INPUT)
    return has_it, ended


def test_all_ranks_go_on_where_all_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    has_it, ended = begin(monkeypatch, {})
    assert has_it and [each.result() for each in ended] == [WORKED] * 3


def test_all_ranks_end_where_some_have_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has_it, ended = begin(monkeypatch, {"rank 2": "rank 2 has not", "rank 3": "rank 3 has not"})
    assert not has_it and [each.result() for each in ended] == [roles.EXIT_BAD_INPUT] * 3
    assert capsys.readouterr().err == "fedgmr_hpc: error: rank 2 has not (1 more ranks)\n"


def test_a_run_in_bf16_repeats_itself_and_differs_from_fp32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx512_bf16"}))  # emulated
    few = {"run.max_rounds": 2, "run.interval_rounds": 2, "data.max_train": 200, "device": "cpu"}
    results = [
        fedgmr_hpc.run(
            "digits",
            few | {"data.max_test": 40, "train.steps": 2, "progress": "quiet"},
            **{"train.precision": wanted, "results.path": tmp_path / f"{number}.h5"},
        )
        for number, wanted in enumerate(("bf16", "bf16", "fp32"))
    ]
    assert differing_columns(results[0], results[1]) == []
    assert "model/weights" in differing_columns(results[0], results[2])
