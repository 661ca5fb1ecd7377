"""Methods learn on real data in the official formats, better than chance by a margin.

Short runs of small models: they show that every path trains, not how good a method is.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from launchers import MPIRUN, run_job

from fedgmr_hpc.config.methods import method_names
from fedgmr_hpc.storage.reader import read_result

SCRIPT = str(Path(__file__).with_name("many.py"))
DATA = os.environ.get("FEDGMR_DATA", "")
WRAPPED = ("heterofl+aux+gmr", "fedrolex+aux+gmr", "fjord+aux+gmr", "fiarse+aux+gmr")
ERODING = ("fa", "gmr_fa")  # count absent entries as zero, which undoes what was learned
OF_EACH_KIND = ("fedgmr", "fedavg", "heterofl", "fedrolex", "fjord", "fiarse")
COMMON = (f"data.root={DATA}", "progress=quiet", "eval.client_samples=32")
FOUR = ("clients.count=4", "clients.shares=[1,1,0.5,0.5]", "data.partition=iid")
pytestmark = [
    pytest.mark.skipif(not DATA, reason="FEDGMR_DATA is not set"),
    pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this python"),
]


def best_accuracies(folder: Path, methods: tuple[str, ...], *words: str) -> dict[str, float]:
    job = run_job(3, *methods, *COMMON, *words, module=(SCRIPT, str(folder)), timeout_s=900)
    assert job.code == 0, job.output
    return {
        method: read_result(folder / f"{method}.h5").evaluations["test_accuracy"][1:].max()
        for method in methods
    }


def test_every_row_learns_femnist_digits(tmp_path: Path) -> None:
    """Ten digits by writer: chance is 0.1; 20 rounds reach 0.25 at least."""
    best = best_accuracies(
        tmp_path,
        (*method_names(), *WRAPPED),
        *("data.name=femnist", "data.partition=group", "model.name=conv2_small"),
        *("data.max_train=3000", "data.max_test=300", "restoration.patience=1"),
        *("run.max_rounds=20", "run.interval_rounds=5"),
    )
    slow = {method: value for method, value in best.items() if value < 0.25}
    assert set(slow) <= set(ERODING), slow
    assert max(best[method] for method in ERODING) < best["wo_gmr"]


def test_every_kind_of_row_learns_a_part_of_cifar10(tmp_path: Path) -> None:
    """2,000 images: chance is 0.1; 16 rounds reach 0.15 at least."""
    best = best_accuracies(
        tmp_path,
        OF_EACH_KIND,
        *("data.name=cifar10", "model.name=cifar_cnn", "train.learning_rate=0.05", *FOUR),
        *("data.max_train=2000", "data.max_test=300", "run.max_rounds=16", "run.interval_rounds=8"),
    )
    assert min(best.values()) > 0.15, best


def test_resnet18_learns_five_classes_of_imagenet(tmp_path: Path) -> None:
    """Chance is 0.2; 8 rounds reach 0.28 at least."""
    classes = sorted(path.name for path in Path(DATA, "imagenet100/train").iterdir())[:5]
    (tmp_path / "classes.txt").write_text("\n".join(classes))
    best = best_accuracies(
        tmp_path,
        ("fedgmr", "fedavg", "heterofl"),
        *("data.name=imagenet100", f"data.class_list={tmp_path}/classes.txt"),
        *("data.image_size=32", "model.name=resnet18", "data.max_test=150", *FOUR),
        *("train.learning_rate=0.05", "train.momentum=0.9"),
        *("run.max_rounds=8", "run.interval_rounds=4", f"data.cache={tmp_path}"),
    )
    assert min(best.values()) > 0.28, best


def test_the_transformer_learns_stackoverflow(tmp_path: Path) -> None:
    """Top 5 of 10,000 words: chance is 0.0005; 6 rounds reach 0.15, what frequent words give."""
    best = best_accuracies(
        tmp_path,
        ("fedgmr", "fedavg", "heterofl"),
        *("data.name=stackoverflow", "model.name=transformer", "data.max_user_samples=100", *FOUR),
        *("data.max_train=1500", "data.max_test=150", "eval.chunk=16"),
        *("train.steps=5", "train.batch=8", "train.learning_rate=0.1", "train.momentum=0.9"),
        *("run.max_rounds=6", "run.interval_rounds=3"),
    )
    assert min(best.values()) > 0.15, best
