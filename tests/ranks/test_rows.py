"""Every row of the method table gives the same bytes on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from launchers import MPIRUN, TINY, run_job

from fedgmr_hpc.config.methods import method_names
from fedgmr_hpc.storage.reader import Result, differing_columns, read_result

SCRIPT = str(Path(__file__).with_name("many.py"))
WRAPPED = ("heterofl+aux+gmr", "fedrolex+aux+gmr", "fjord+aux+gmr", "fiarse+aux+gmr")
METHODS = (*method_names(), *WRAPPED)
SLOW = ("links.client_sigma=1.0", "links.client_up_bytes_per_s=2e5")  # so that updates come late
WORDS = (*TINY, *SLOW, "eval.every_s=7", "eval.submodels=true")
pytestmark = pytest.mark.skipif(
    not MPIRUN.exists(), reason="no mpirun beside this python: install the mpich wheel"
)


def run_all(folder: Path, num_ranks: int, launcher: str) -> dict[str, Result]:
    job = run_job(
        num_ranks, *METHODS, *WORDS, launcher=launcher, module=(SCRIPT, str(folder)), timeout_s=600
    )
    assert job.code == 0, job.output
    return {method: read_result(folder / f"{method}.h5") for method in METHODS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return run_all(tmp_path_factory.mktemp("alone"), 1, "none")


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return run_all(tmp_path_factory.mktemp("ranks"), 4, "mpirun")


@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_bit_identical_on_four_ranks(
    method: str, alone: dict[str, Result], on_ranks: dict[str, Result]
) -> None:
    assert differing_columns(on_ranks[method], alone[method]) == []
    assert np.isfinite(alone[method].weights).all()
    assert alone[method].merges["round"][-1] == 12


def test_choices_reach_the_numbers(alone: dict[str, Result]) -> None:
    """Rows that differ in what is trained or merged end with other weights."""
    rows = ("fedgmr", "wo_gmr", "wo_asyn", "wo_buff", "ga", "fa", "fedavg", "fedprox",
            "scaffold", "fedasync", "fedasync_seq", "fedbuff", "heterofl", "fedrolex", "fjord",
            "fiarse", "heterofl+aux+gmr", "fiarse+aux+gmr")  # fmt: skip
    assert len({alone[row].weights.tobytes() for row in rows}) == len(rows)


def test_restoration_grows_every_kind_of_partial_sub_model(alone: dict[str, Result]) -> None:
    for method in ("fedgmr", *WRAPPED):
        density = alone[method].merges["density"]
        assert density[-1].mean() > density[0].mean(), method
