"""Every script of examples/ runs, and every file there is read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from preloaded import preloaded_python

import fedgmr_hpc
from fedgmr_hpc.study.study_file import load_study

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SHORT = ("run.max_rounds=4", "run.interval_rounds=2", "data.max_train=300", "data.max_test=60")


def _run(script: str, *words: str, folder: Path) -> str:
    command = [*preloaded_python(), str(EXAMPLES / script), *words]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_two_methods_are_compared(tmp_path: Path) -> None:
    printed = _run("compare_methods.py", *SHORT, folder=tmp_path).splitlines()
    assert [line.split()[0] for line in printed] == ["method", "fedgmr", "heterofl"]
    assert list(tmp_path.iterdir()) == []


def test_a_row_from_a_file_trains(tmp_path: Path) -> None:
    words = (*SHORT, "progress=quiet", f"results.path={tmp_path / 'own.h5'}")
    assert "hinge weights, fixed steps" in _run("own_row.py", *words, folder=tmp_path)


def test_a_data_set_from_arrays_trains(tmp_path: Path) -> None:
    words = (*SHORT, "progress=quiet", f"data.cache={tmp_path}", f"results.path={tmp_path}/own.h5")
    assert "accuracy 0." in _run("own_data.py", *words, folder=tmp_path)
    assert list(tmp_path.glob("large_digits-*/train_x.npy"))


def test_an_objective_of_ones_own_trains(tmp_path: Path) -> None:
    words = (*SHORT, "train.pull=0.5", "progress=quiet", f"results.path={tmp_path / 'own.h5'}")
    assert "pulled by 0.5: test" in _run("own_objective.py", *words, folder=tmp_path)


def test_an_own_module_trains(tmp_path: Path) -> None:
    words = (*SHORT, "model.depth=1", "progress=quiet", f"results.path={tmp_path / 'own.h5'}")
    printed = _run("own_model.py", *words, folder=tmp_path)
    # 160 + 512 of the embeddings, 8,544 of one encoder layer, 330 of the head
    assert "Patches of 9,546 parameters" in printed and "test accuracy" in printed


def test_a_rule_of_ones_own_trains(tmp_path: Path) -> None:
    words = (*SHORT, "aggregation.look_ahead=0.5", "progress=quiet")
    words = (*words, f"results.path={tmp_path / 'own.h5'}")
    assert "looking ahead by 0.5: test accuracy" in _run("own_rule.py", *words, folder=tmp_path)


def test_a_score_and_a_schedule_of_ones_own_train(tmp_path: Path) -> None:
    words = (*SHORT, "restoration.pause=1", "progress=quiet", f"results.path={tmp_path / 'own.h5'}")
    script = "own_score_and_schedule.py"
    slow = _run(script, *words, folder=tmp_path)
    assert "mean density 0." in slow and "test accuracy" in slow


def test_a_selection_of_ones_own_trains(tmp_path: Path) -> None:
    words = (*SHORT, "clients.candidates=7", "progress=quiet")
    words = (*words, f"results.path={tmp_path / 'own.h5'}")
    assert "7 candidates: test accuracy" in _run("own_selection.py", *words, folder=tmp_path)


@pytest.mark.parametrize(
    "script", ["own_rule", "own_score_and_schedule", "own_objective", "own_selection"]
)
def test_what_plug_ins_promise_holds(script: str) -> None:
    command = [*preloaded_python(), "-m", "fedgmr_hpc", "conformance", "--json"]
    command += [str(EXAMPLES / f"{script}.py"), "data.max_train=300", "data.max_test=60"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    checks = json.loads(ran.stdout)["checks"]
    assert ran.returncode == 0, [check for check in checks if check["state"] == "FAIL"]
    assert {"run", "ranks", "resume", "replay"} <= {check["name"] for check in checks}


def test_a_result_is_read_with_pandas(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is no dependency")
    path = tmp_path / "run.h5"
    words = (*SHORT, "progress=quiet", f"results.path={path}")
    fedgmr_hpc.run(fedgmr_hpc.load_config("digits", words))
    printed = _run("read_with_pandas.py", str(path), folder=tmp_path)
    assert "finished, method fedgmr" in printed and "sent_mb" in printed


def test_a_notebook_stops_goes_on_and_draws(tmp_path: Path) -> None:
    printed = _run("notebook.py", folder=tmp_path)
    assert "round 2: " in printed and "checkpointed: version 2, at the request of Earl" in printed
    assert "5 lines" in printed and "weights\n" in printed and list(tmp_path.iterdir()) == []


def test_the_study_is_read() -> None:
    study, _ = load_study(EXAMPLES / "digits_study.yaml")
    assert study.row_keys() == ("method",) and len(study.matrix["seed"]) == 3


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.*") if path.stem not in text] == []
