"""A run has the same bits whatever a notebook has set, and leaves that as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fedgmr_hpc
from fedgmr_hpc.storage.reader import differing_columns
from fedgmr_hpc.training.numeric_settings import settle, settled

TINY = {
    "clients.count": 2,
    "run": {"max_rounds": 3, "interval_rounds": 2},
    "train": {"batch": 16, "steps": 2},
    "data": {"max_train": 200, "max_test": 40},
    "progress": "quiet",
}
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Any]] = {
    "threads": (torch.get_num_threads, torch.set_num_threads, 2),
    "dtype": (torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
        "medium",
    ),
    "oneDNN": (
        lambda: torch.backends.mkldnn.enabled,
        lambda on: setattr(torch.backends.mkldnn, "enabled", on),
        False,
    ),
    "repeatable": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 2),
    "TF32": (
        lambda: torch.backends.cudnn.allow_tf32,
        lambda on: setattr(torch.backends.cudnn, "allow_tf32", on),
        True,
    ),
    "device": (torch.get_default_device, torch.set_default_device, torch.device("meta")),
}


@pytest.fixture(params=SETTINGS)
def changed(request: pytest.FixtureRequest) -> Iterator[str]:
    """One setting as a notebook may have it, given back after the test."""
    name = request.param
    read, write, value = SETTINGS[name]
    before = read()
    write(value)
    yield name
    write(None if name == "device" else before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> fedgmr_hpc.RunResult:
    """The run of a program that has set nothing."""
    folder = tmp_path_factory.mktemp("plain")
    return fedgmr_hpc.run("digits", TINY, **{"results.path": folder / "run.h5"})


def test_a_run_has_the_same_bits_and_gives_the_setting_back(
    changed: str, plain: fedgmr_hpc.RunResult, tmp_path: Path
) -> None:
    result = fedgmr_hpc.run("digits", TINY, **{"results.path": tmp_path / "run.h5"})
    assert differing_columns(result, plain) == []
    read, _, value = SETTINGS[changed]
    assert read() == value


def test_what_a_run_itself_sets_is_given_back() -> None:
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32
    with settled():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False
    assert (torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32) == before


def test_numbers_near_zero_are_kept() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor always keeps them")
    try:
        with settled():
            assert (torch.full((), 2.0**-149) * 1.0).item() > 0
        assert (torch.full((), 2.0**-149) * 1.0).item() == 0
    finally:
        torch.set_flush_denormal(False)


def test_settling_a_rank_sets_what_a_plug_in_has_changed() -> None:
    with settled():
        torch.set_default_dtype(torch.float64)
        settle()
        assert torch.get_default_dtype() == torch.float32
