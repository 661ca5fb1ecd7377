"""What callbacks are told of a run, how they stop it, and that it is the same run with them."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fedgmr_hpc
from fedgmr_hpc import Callback, CsvLines, RunResult, TensorBoard, WeightsAndBiases
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.runtime.callbacks.contract import RoundEnd
from fedgmr_hpc.runtime.callbacks.teller import Teller
from fedgmr_hpc.storage.checkpoint import has_checkpoint
from fedgmr_hpc.storage.reader import differing_columns
from fedgmr_hpc.storage.run_files import checkpoint_path

TINY: dict[str, Any] = {
    "clients.count": 2,
    "run": {"max_rounds": 6, "interval_rounds": 2},
    "train": {"batch": 4, "steps": 1},
    "data": {"max_train": 200, "max_test": 40},
    "eval.every_s": 2.0,
    "progress": "quiet",
}


def train(path: Path, *callbacks: Callback, resume: bool = False, **keys: Any) -> RunResult:
    return fedgmr_hpc.run(
        "digits", TINY, callbacks=callbacks, resume=resume, **{"results.path": path}, **keys
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The run without callbacks."""
    return train(tmp_path_factory.mktemp("unbroken") / "run.h5")


class Witness(Callback):
    """Notes everything."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def of(self, kind: str) -> list[Any]:
        return [what for each, what in self.seen if each == kind]

    def on_start(self, run: Any) -> None:
        self.seen.append(("start", run.resumed_version))

    def on_round(self, run: Any, end: Any) -> None:
        self.seen.append(("round", end))

    def on_evaluation(self, run: Any, row: Any) -> None:
        self.seen.append((type(row).__name__, row))

    def on_checkpoint(self, run: Any, row: Any) -> None:
        self.seen.append(("checkpoint", row.version))

    def on_end(self, run: Any, status: str) -> None:
        self.seen.append(("end", status))


class StopAt(Callback):
    """Stops the run at a round."""

    def __init__(self, round: int) -> None:
        self.round = round

    def on_round(self, run: Any, end: Any) -> None:
        if end.round >= self.round:
            run.stop()


class FailIn(Callback):
    """Has an error in one of its methods."""

    def __init__(self, method: str) -> None:
        setattr(self, method, self.fail)

    def fail(self, *what: Any) -> None:
        raise KeyError("no such thing")


def test_a_callback_sees_what_the_file_holds_and_changes_none_of_it(
    tmp_path: Path, unbroken: RunResult
) -> None:
    witness = Witness()
    result = train(tmp_path / "run.h5", witness, CsvLines(tmp_path / "scores.csv"))
    assert differing_columns(result, unbroken) == []
    assert witness.seen[0] == ("start", None) and witness.seen[-1] == ("end", "finished")
    ends = witness.of("round")
    for name in ("round", "version", "now_s", "server_up_bytes", "server_down_bytes"):
        assert [getattr(end, name) for end in ends] == result.merges[name].tolist()
    assert [end.mean_density for end in ends] == result.merges["density"].mean(axis=1).tolist()
    for kind, columns in (("EvaluationRow", result.evaluations), ("LookRow", result.looks)):
        rows = witness.of(kind)
        assert len(rows) > 1
        assert [row.test_accuracy for row in rows] == columns["test_accuracy"].tolist()
        assert [row.now_s for row in rows] == columns["now_s"].tolist()


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path, unbroken: RunResult) -> None:
    path, witness = tmp_path / "run.h5", Witness()
    stopped = train(path, StopAt(3), witness)
    assert stopped.status == "checkpointed: version 3, at the request of StopAt"
    assert witness.seen[-2:] == [("checkpoint", 3), ("end", stopped.status)]
    assert stopped.merges["version"][-1] == 3 and has_checkpoint(checkpoint_path(path))
    witness = Witness()
    assert differing_columns(train(path, witness, resume=True), unbroken) == []
    assert witness.seen[0] == ("start", 3)
    assert [end.round for end in witness.of("round")] == [4, 5, 6]


def test_a_run_can_be_stopped_at_once_and_once_more(tmp_path: Path) -> None:
    class StopAtOnce(Callback):
        def on_start(self, run: Any) -> None:
            run.stop()

    for resume in (False, True):
        stopped = train(tmp_path / "run.h5", StopAtOnce(), resume=resume)
        assert stopped.status == "checkpointed: version 0, at the request of StopAtOnce"


@pytest.mark.parametrize("method", ["on_start", "on_round", "on_evaluation"])
def test_an_error_names_its_callback_and_loses_nothing(
    method: str, tmp_path: Path, unbroken: RunResult
) -> None:
    path, witness = tmp_path / "run.h5", Witness()
    line = f"callback FailIn.{method} failed: KeyError: 'no such thing'"
    with pytest.raises(RunError) as error:
        train(path, FailIn(method), witness)
    assert str(error.value) == line and isinstance(error.value.__cause__, KeyError)
    status = f"failed: RunError: {line}"
    assert fedgmr_hpc.read_result(path).status == status
    assert witness.of("end") == ([status] if witness.of("start") else [])
    assert bool(witness.of("start")) == (method != "on_start")  # it comes behind the other one
    assert differing_columns(train(path, resume=True), unbroken) == []


def test_an_error_at_the_end_leaves_a_finished_run(tmp_path: Path, unbroken: RunResult) -> None:
    witness = Witness()
    path = tmp_path / "run.h5"
    with pytest.raises(RunError) as error:
        train(path, FailIn("on_end"), witness)
    assert str(error.value) == (
        f"callback FailIn.on_end failed: KeyError: 'no such thing'; the run is finished: {path}"
    )
    result = fedgmr_hpc.read_result(path)
    assert result.status == "finished" == witness.of("end")[0]
    assert differing_columns(result, unbroken) == []


def test_an_error_elsewhere_is_the_one_to_see() -> None:
    witness = Witness()
    with pytest.raises(OSError, match="disk full"), Teller([FailIn("on_end"), witness]) as tell:
        tell.start(SimpleNamespace(), Path("run.h5"), None, 0)  # type: ignore[arg-type]
        raise OSError("disk full")
    assert witness.seen[-1] == ("end", "failed: OSError: disk full")


def test_only_merges_that_complete_a_round_are_told() -> None:
    witness = Witness()
    with Teller([witness]) as tell:
        tell.start(SimpleNamespace(), Path("run.h5"), 7, 3)  # type: ignore[arg-type]
        for version, round in enumerate((3, 4, 4, 6), 8):
            tell.merged(RoundEnd(round, version, 1.0 * version, 0.5, 10, 20))
    assert [(end.round, end.version) for end in witness.of("round")] == [(4, 9), (6, 11)]


def test_lines_of_csv_are_appended_as_they_come(tmp_path: Path) -> None:
    class Reader(Callback):
        def on_evaluation(self, run: Any, row: Any) -> None:
            lines.append(len(path.read_text().splitlines()))

    path, lines = tmp_path / "logs" / "scores.csv", list[int]()
    result = train(tmp_path / "a.h5", CsvLines(path), Reader())
    assert lines == list(range(2, len(lines) + 2))
    train(tmp_path / "b.h5", CsvLines(path))
    with path.open() as file:
        rows = list(csv.DictReader(file))
    found = [row for row in rows if row["table"] == "evaluations" and Path(row["file"]).stem == "a"]
    columns = result.evaluations
    assert [float(row["val_loss"]) for row in found] == columns["val_loss"].tolist()
    assert [int(row["model_xxh3"]) for row in found] == columns["model_xxh3"].tolist()
    assert len(rows) == 2 * len(lines)


def test_a_csv_that_is_not_its_own_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path, said = tmp_path / "clients.csv", r"^the path of CsvLines must be a new file or one with"
    run = SimpleNamespace(path=tmp_path / "run.h5")
    path.write_bytes(b"")
    lines = CsvLines(path)
    for other in (b"client,sample\n0,17\n", b"\x89HDF\r\n\x1a\n", b"file,table\n"):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=said):
            CsvLines(path)
        with pytest.raises(ValueError, match=r"clients.csv'\): the first line is not file,table,"):
            lines.on_start(run)  # type: ignore[arg-type]
        assert path.read_bytes() == other


def test_tensorboard_gets_scalars_and_a_resumed_run_goes_on_with_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run.h5", TensorBoard(tmp_path / "board"), StopAt(3))
    result = train(tmp_path / "run.h5", TensorBoard(tmp_path / "board"), resume=True)
    events = EventAccumulator(str(tmp_path / "board" / "run"))
    events.Reload()
    points = events.Scalars("evaluations/test_accuracy")
    assert [point.step for point in points] == result.evaluations["version"].tolist()
    assert [p.value for p in points] == pytest.approx(result.evaluations["test_accuracy"].tolist())
    looks = events.Scalars("looks/val_accuracy")
    assert [point.step for point in looks] == result.looks["now_s"].astype(int).tolist()
    rounds = events.Scalars("rounds/server_up_bytes")
    assert [point.step for point in rounds] == [1, 2, 3, 4, 5, 6]


def test_weights_and_biases_takes_a_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = train(tmp_path / "a.h5", WeightsAndBiases(mode="offline", dir=str(tmp_path)))
    assert result.status == "finished"
    (log,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"evaluations/test_accuracy" in content and b"restoration" in content


def test_weights_and_biases_is_told_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    log = SimpleNamespace(
        define_metric=lambda name, step_metric: said.append((name, step_metric)),
        log=said.append,
        summary={},
        finish=lambda exit_code: said.append(exit_code),
    )
    stand_in = SimpleNamespace(init=lambda **settings: said.append(settings) or log)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    result = train(tmp_path / "a.h5", WeightsAndBiases("digits", mode="offline"))
    assert {k: said[0][k] for k in ("project", "mode", "name")} == {
        **{"project": "digits", "mode": "offline", "name": "a"}
    }
    assert json.dumps(said[0]["config"]) and said[0]["config"]["clients"]["count"] == 2
    assert said[1] == ("rounds/*", "rounds/version")
    scores = [each["evaluations/val_loss"] for each in said[4:-1] if "evaluations/val_loss" in each]
    assert scores == result.evaluations["val_loss"].tolist()
    assert log.summary == {"status": "finished"} and said[-1] == 0


@pytest.mark.parametrize(
    ("package", "make"),
    [("tensorboard", lambda: TensorBoard("board")), ("wandb", lambda: WeightsAndBiases())],
)
def test_a_missing_package_is_one_sentence(
    package: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).endswith(f"needs {package}, which is missing: pip install {package}")
