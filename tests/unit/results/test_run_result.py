"""What a Python program gets of a run: its repr, data frames, weights and figures."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_results import WEIGHTS, open_writer, write_run

import fedgmr_hpc
from fedgmr_hpc import RunResult
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.results.columns import long, wide

LAYOUT = {
    "columns": ["name", "shape", "offset", "prunable", "trainable"],
    "tensors": [["fc.weight", [1, 3], 0, True, True], ["fc.bias", [1], 3, False, True]],
}


@pytest.fixture
def result(tmp_path: Path) -> RunResult:
    return fedgmr_hpc.read_result(write_run(tmp_path / "run.h5"))


def with_layout(result: RunResult) -> RunResult:
    return dataclasses.replace(result, layout_json=json.dumps(LAYOUT))


def test_a_result_is_shown_in_a_line(result: RunResult) -> None:
    assert repr(result) == (
        f"<- on digits, seed 7: finished, 2 rounds in 3.0 s, val accuracy 50.00 %, {result.path}>"
    )


def test_a_run_without_rows_is_shown_too(tmp_path: Path) -> None:
    with open_writer(tmp_path / "new.h5"):
        running = fedgmr_hpc.read_result(tmp_path / "new.h5")
    assert ": running, 0 rounds in 0.0 s, " in repr(running)


def test_a_notebook_shows_a_table_in_which_nothing_is_markup(result: RunResult) -> None:
    shown = result._repr_html_()
    assert shown.startswith("<table><tr>") and shown.count("<tr>") == shown.count("</tr>") == 5
    assert "<td style='text-align:left'>50.00 %</td>" in shown
    status = "failed: <script>alert('&')</script>"
    failed = dataclasses.replace(result, status=status)._repr_html_()
    assert "<script" not in failed and "&lt;script&gt;alert(&#x27;&amp;&#x27;)" in failed


def test_columns_of_clients_become_plain_ones() -> None:
    columns = {"version": np.array([1, 2]), "density": np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])}
    flat = wide(columns)
    assert list(flat) == ["version", "density_0", "density_1", "density_2"]
    assert flat["density_1"].tolist() == [0.2, 0.5]
    rows = long(columns)
    assert rows["client"].tolist() == [0, 1, 2, 0, 1, 2]
    assert rows["version"].tolist() == [1, 1, 1, 2, 2, 2]
    assert rows["density"].tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert long({"version": np.array([1, 2])})["version"].tolist() == [1, 2]


def test_tables_are_data_frames(result: RunResult) -> None:
    pytest.importorskip("pandas", reason="needs the extra `pandas`")
    assert result.frame().set_index("version").val_accuracy.to_dict() == {2: 0.5}
    merges = result.frame("merges")
    assert merges["up_bytes_2"].tolist() == [70, 140] and "up_bytes" not in merges
    clients = result.frame("merges", by_client=True).groupby("client")
    assert clients.up_bytes.last().to_dict() == {0: 20, 1: 40, 2: 140}
    assert result.frame("ranks").host.tolist() == ["node-ü"]
    with pytest.raises(ValueError, match=r"^table must be 'merges', .*did you mean 'merges'\?"):
        result.frame("merge")


def test_without_pandas_a_frame_is_one_sentence(
    result: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError) as error:
        result.frame()
    assert str(error.value) == "result.frame needs pandas, which is missing: pip install pandas"


def test_final_weights_are_tensors_by_name(result: RunResult) -> None:
    state = with_layout(result).state_dict()
    assert list(state) == ["fc.weight", "fc.bias"]
    assert state["fc.weight"].tolist() == [[0.0, 1.0, 2.0]] and state["fc.bias"].tolist() == [3.0]
    state["fc.bias"].zero_()
    assert result.weights.tolist() == WEIGHTS.tolist()
    torch.nn.Linear(3, 1).load_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]})
    running = dataclasses.replace(with_layout(result), status="running", weights=WEIGHTS[:0])
    with pytest.raises(ValueError, match=r"must have final weights: the run is running$"):
        running.state_dict()


def test_a_run_draws_itself(result: RunResult) -> None:
    assert result.plot().axes[0].get_ylabel() == "test accuracy (%)\nlog scale of the error"
    assert result.plot("density").axes[0].get_ylabel().startswith("share of bandwidth")
    with pytest.raises(ValueError, match="what must be 'accuracy', 'density' or 'submodels'"):
        result.plot("losses")
    with pytest.raises(ValueError, match="eval.submodels must have been true for this figure"):
        result.plot("submodels")


def test_the_model_of_a_run_scores_what_the_run_says(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"run.max_rounds": 2, "data.max_train": 200, "progress": "quiet"}
    config = fedgmr_hpc.load_config("digits", keys, results={"path": tmp_path / "run.h5"})
    result = fedgmr_hpc.run(config)
    model = result.model()
    state = result.state_dict()
    assert all(torch.equal(values, state[name]) for name, values in model.state_dict().items())
    data = FederatedData(config)
    batches = data.pool_batches("test", 0, data.pool_size("test"))
    hits = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    assert hits / data.num_scored("test") == result.evaluations["test_accuracy"][-1]


def test_a_result_equals_itself_alone_and_can_be_a_key(result: RunResult) -> None:
    again = fedgmr_hpc.read_result(result.path)
    assert result == result and result != again
    assert len({result, again, result}) == 2
