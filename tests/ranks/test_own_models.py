"""Models of a user's own: the same bytes in one process and on four ranks, dropout included."""

from __future__ import annotations

import time
from pathlib import Path

import killing
import pytest
from launchers import MPIRUN, ROOT, TINY, run_job

from fedgmr_hpc.storage.reader import Result, differing_columns, read_result

pytestmark = pytest.mark.skipif(
    not MPIRUN.exists(), reason="no mpirun beside this python: install the mpich wheel"
)
PLUGIN = ROOT / "tests" / "own_models.py"
CASES = {
    ("own_vit", "fedgmr"): ("restoration.patience=1", "eval.submodels=true"),
    ("own_vit", "fiarse"): (),
    ("own_resnet", "fedavg"): (),
    ("own_resnet_bn", "fedgmr"): ("submodel.score=wg", "wire.dtype=int8"),
    ("own_resnet_bn", "fiarse"): ("train.batch_norm=static", "eval.submodels=true"),
}


def run_own(path: Path, num_ranks: int, model: str, method: str, *words: str) -> Result:
    tiny = [word for word in TINY if not word.startswith("restoration.")]
    ended = run_job(
        num_ranks, *tiny, f"plugins={PLUGIN}", f"model.name={model}", f"method={method}", *words,
        "run.max_rounds=4", "run.interval_rounds=2", f"results.path={path}",
        launcher="none" if num_ranks == 1 else "mpirun",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    return read_result(path)


@pytest.mark.parametrize(("model", "method"), CASES)
def test_own_models_are_bit_identical_on_four_ranks(
    model: str, method: str, tmp_path: Path
) -> None:
    words = CASES[model, method]
    alone = run_own(tmp_path / "1.h5", 1, model, method, *words)
    ranks = run_own(tmp_path / "4.h5", 4, model, method, *words)
    assert differing_columns(alone, ranks) == []
    assert len(alone.merges["version"]) == 4 and list(alone.config["plugin_digests"])


def test_one_with_dropout_is_killed_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    path, alone = tmp_path / "run.h5", tmp_path / "alone.h5"
    words = (*TINY, f"plugins={PLUGIN}", "model.name=own_vit", "checkpoint.every_s=0")
    assert killing.wait(killing.start(tmp_path, 1, *words, f"results.path={alone}")) == [0]
    resumed = (*words, f"results.path={path}", "--resume")
    pids = killing.start(tmp_path, 4, *resumed)
    while not path.with_suffix(".ckpt").exists():
        time.sleep(0.01)
    assert killing.kill(pids, 0)
    assert killing.wait(killing.start(tmp_path, 4, *resumed)) == [0] * 4
    result = read_result(path)
    assert differing_columns(result, read_result(alone)) == []
    assert 1 in result.checkpoints["is_resume"]


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("method=heterofl",), "submodel.kind must be 'importance', 'magnitude' or 'full' when "
         "model.name is 'own_vit' (got 'width_prefix'): a module does not say"),
        (("data.name=synthetic_cifar10",), "model.name must fit the data when data.name is "
         "'synthetic_cifar10' (got 'own_vit'): own_vit takes images (1, 8, 8), not (3, 32, 32)"),
    ],
)  # fmt: skip
def test_what_a_module_cannot_do_is_told_once(
    words: tuple[str, ...], wrong: str, tmp_path: Path
) -> None:
    ended = run_job(
        3, f"plugins={PLUGIN}", "model.name=own_vit", *words, f"results.path={tmp_path / 'x.h5'}"
    )
    assert ended.code == 2
    (error,) = ended.errors
    assert wrong in error
