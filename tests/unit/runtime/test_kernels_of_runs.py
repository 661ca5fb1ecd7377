"""Which kernels compute compact layers is part of a run's identity (docs/compact-training.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedgmr_hpc
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.runtime import preparation, roles
from fedgmr_hpc.runtime.preparation import prepare_experiment
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.training.kernels.choice import make_kernels

NAME = make_kernels().name
WORDS = ["run.max_rounds=2", "data.max_train=300", "data.max_test=50", "progress=quiet"]


def run(folder: Path, *more: str) -> Result:
    config = fedgmr_hpc.load_config("digits", [*WORDS, f"results.path={folder}/run.h5", *more])
    return fedgmr_hpc.run(config)


@pytest.mark.parametrize(("method", "kernels"), [("fedgmr", NAME), ("fedavg", "")])
def test_a_result_says_what_computed_compact_layers(
    method: str, kernels: str, tmp_path: Path
) -> None:
    result = run(tmp_path, f"method={method}")
    assert result.provenance["kernels"] == kernels
    assert result.ranks["kernels"].tolist() == ["", kernels]


def test_a_rank_with_other_kernels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "kernels_in_use", lambda config, device: "other1")
    expected = f"compact layers are computed here by the kernels other1, on rank 0 by {NAME}"
    with pytest.raises(RunError, match=expected):
        run(tmp_path)
    run(tmp_path / "full", "method=fedavg")  # rank 0 has none


def test_a_replay_with_other_kernels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = run(tmp_path)
    config = fedgmr_hpc.load_config("digits", [*WORDS, f"results.path={tmp_path}/again.h5"])
    monkeypatch.setattr(preparation, "kernels_in_use", lambda config, device: "other1")
    with pytest.raises(ValueError, match=rf"kernels of compact layers must be {NAME} when"):
        prepare_experiment(config, recorded)


def test_a_replay_of_a_run_older_than_compact_layers_is_refused(tmp_path: Path) -> None:
    recorded = run(tmp_path)
    del recorded.provenance["kernels"]
    config = fedgmr_hpc.load_config("digits", [*WORDS, f"results.path={tmp_path}/again.h5"])
    with pytest.raises(ValueError, match="kernels of compact layers must be none when"):
        prepare_experiment(config, recorded)


def test_a_run_without_compiled_kernels_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, is_slow in (("torch1", True), ("c1", False)):
        monkeypatch.setattr(preparation, "kernels_in_use", lambda config, device, now=name: now)
        monkeypatch.setattr(roles, "kernels_in_use", lambda config, device, now=name: now)
        caplog.clear()
        run(tmp_path / name)
        assert ("compact layers are computed by torch's" in caplog.text) == is_slow
