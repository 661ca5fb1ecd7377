"""`bench gpu` where there is no GPU: what it refuses, and that it notices a wrong training."""

from __future__ import annotations

import pytest
import torch

from fedgmr_hpc.bench.gpu.cases import Case
from fedgmr_hpc.bench.gpu.steps import SideBySide, time_steps
from fedgmr_hpc.bench.gpu.table import measure_gpu
from fedgmr_hpc.training.local_training import LocalTraining

SMALL = Case("digits", ("data.max_train=100", "clients.count=4", "train.batch=2"), "images", 10, 0)


def test_it_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^bench gpu must find a CUDA device \(got none\)$"):
        measure_gpu(quick=False)
    with pytest.raises(ValueError, match=r"^--device must be cuda without --quick \(got 'cpu'\)$"):
        measure_gpu(quick=False, device="cpu")


def test_every_way_to_train_has_a_row() -> None:
    rows = list(time_steps(SMALL, "cpu", quick=True))
    ways = [(row["clients at a time"], row["graphs"], row["steps"]) for row in rows]
    assert ways == [
        (1, "off", "plain"),
        (1, "on", "plain"),
        (2, "off", "plain"),
        (2, "on", "plain"),
    ]
    assert all(row["a second"] > 0 and row["of goal"] == row["a second"] / 10 for row in rows)


def test_other_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = LocalTraining.entries

    def drifting(self: LocalTraining) -> tuple[torch.Tensor, ...]:
        return tuple(each + len(made) for each in entries(self))

    made: list[object] = []
    start = SideBySide.__init__

    def counting(self: SideBySide, *words: object) -> None:
        made.append(self)
        start(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalTraining, "entries", drifting)
    monkeypatch.setattr(SideBySide, "__init__", counting)
    with pytest.raises(AssertionError, match="trains other weights"):
        list(time_steps(SMALL, "cpu", quick=True))
