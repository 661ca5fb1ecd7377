"""When versions are evaluated, and which rows that makes: refreshes, and looks at equal times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedgmr_hpc
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.sections import EvalConfig
from fedgmr_hpc.config.yaml_file import configs_dir
from fedgmr_hpc.data.federated import FederatedData
from fedgmr_hpc.fl.events import Evaluate, Merged
from fedgmr_hpc.fl.submodels import full_masks
from fedgmr_hpc.models import FlatNet, Layout, make_layout
from fedgmr_hpc.results.series import measure_run
from fedgmr_hpc.results.verify import verify
from fedgmr_hpc.runtime.callbacks.teller import Teller
from fedgmr_hpc.runtime.evaluations import Evaluator
from fedgmr_hpc.storage.reader import Result, differing_columns
from fedgmr_hpc.storage.rows import EvaluationRow, LookRow, SubmodelRow
from fedgmr_hpc.study.study_file import load_study
from fedgmr_hpc.training.chunks import Evaluation, Part

TINY = (
    "progress=quiet",
    "run.max_rounds=6",
    "run.interval_rounds=3",
    "train.steps=1",
    "eval.client_samples=16",
    "data.max_train=200",
    "data.max_test=50",
)


class Hands:
    """A pool that has evaluated version v at once, with v of ten samples right; or once told to.

    Like the real one it has one evaluation a version, to which all results of the version go.
    """

    def __init__(self) -> None:
        self.evaluations: dict[int, Evaluation] = {}
        self.asked: list[tuple[int, bool]] = []
        self.is_slow = False

    def evaluate(
        self, evaluation: Evaluation, parts: Sequence[Part], *, is_awaited: bool = False
    ) -> None:
        if evaluation.version not in self.evaluations:
            self.asked.append((evaluation.version, is_awaited))
            self.evaluations[evaluation.version] = evaluation
        if not self.is_slow:
            self.answer(evaluation.version)

    def answer(self, version: int) -> None:
        for chunks in self.evaluations[version].chunks.values():
            chunks.update(dict.fromkeys(chunks, (version, 5.0)))


class Desk:
    """An evaluator, and a coordinator of which only the version and two levels are there."""

    def __init__(self, every_s: float | None, *, submodels: bool = False) -> None:
        self.pool, self.rows, self.version = Hands(), [], 0
        self.restoration = SimpleNamespace(densities=[0.5, 1.0])
        self.classes, self.masks = {0.5: 3, 1.0: 1}, full_masks(2)
        ladder = SimpleNamespace(counts=(1, 2), size=2, level=[0.5, 1.0].index)
        self.masking = SimpleNamespace(ladder=ladder)
        data = SimpleNamespace(pool_size=lambda pool: 10, num_scored=lambda pool: 10)
        self.evaluator = Evaluator(
            EvalConfig(every_s=every_s, submodels=submodels),
            self,
            self.pool,
            data,
            SimpleNamespace(append=lambda *rows: self.rows.extend(rows)),
            SimpleNamespace(evaluated=lambda row: None),
            Teller(),
            num_statistics=0,
            run_id=1,
            wall_s=lambda: 0.0,
        )

    def look(self) -> Evaluate:
        weights = np.full(3, self.version, np.float32)
        return Evaluate(self.version, 10 + self.version, full_masks(2), weights[:2], weights[2:])

    def refresh(self, now_s: float) -> None:
        """The current version is validated, and its densities are decided."""
        self.evaluator.validate(self.look(), now_s)
        no_weights = np.zeros(0)
        density = np.array(self.restoration.densities)
        merged = Merged(self.version, 0, (), no_weights, density, no_weights)
        self.evaluator.merged(merged)

    def merge(self, ready_s: float) -> None:
        """The next version is there at `ready_s`."""
        self.evaluator.look(ready_s)
        self.version += 1

    def seen(self, row_type: type[Any]) -> list[tuple[float, int, float]]:
        """(time, version, test accuracy) of the rows of a table."""
        rows = [row for row in self.rows if type(row) is row_type]
        return [(row.now_s, row.version, row.test_accuracy) for row in rows]


def test_looks_come_at_equal_times_and_see_the_version_that_is_current_then() -> None:
    """Versions exist from 0, 1, 10, 12.5, 13 on; a version merged at the very time is seen."""
    desk = Desk(2.5)
    desk.refresh(0.0)
    for ready_s in (1.0, 10.0, 12.5, 13.0):
        desk.merge(ready_s)
    desk.evaluator.look(15.1)
    assert desk.seen(LookRow) == [
        (0.0, 0, 0.0),
        (2.5, 1, 0.1),
        (5.0, 1, 0.1),
        (7.5, 1, 0.1),
        (10.0, 2, 0.2),
        (12.5, 3, 0.3),
        (15.0, 4, 0.4),
    ]
    assert desk.seen(EvaluationRow) == [(0.0, 0, 0.0)]
    assert desk.pool.asked == [(0, True), (1, False), (2, False), (3, False), (4, False)]
    assert not desk.evaluator.is_waiting and not desk.pool.evaluations


def test_without_a_step_only_refreshes_are_evaluated() -> None:
    desk = Desk(None)
    desk.refresh(0.0)
    desk.merge(100.0)
    desk.refresh(100.0)
    assert desk.seen(LookRow) == [] and desk.seen(EvaluationRow) == [(0.0, 0, 0.0), (100, 1, 0.1)]


def test_a_version_is_evaluated_once_whatever_asks_for_it() -> None:
    desk = Desk(2.0)
    desk.refresh(0.0)
    desk.merge(3.0)
    desk.refresh(3.0)
    desk.merge(7.0)
    assert desk.pool.asked == [(0, True), (1, True)]
    assert desk.seen(LookRow) == [(0.0, 0, 0.0), (2.0, 0, 0.0), (4.0, 1, 0.1), (6.0, 1, 0.1)]
    looks = [row for row in desk.rows if type(row) is LookRow]
    assert {(row.mean_density, row.round - row.version) for row in looks} == {(0.75, 10)}


def test_rows_wait_for_their_scores_in_the_order_of_versions() -> None:
    desk = Desk(2.0)
    desk.refresh(0.0)
    desk.merge(1.0)
    desk.pool.is_slow = True
    desk.merge(3.0)
    desk.pool.is_slow = False
    desk.refresh(3.0)
    assert desk.seen(EvaluationRow) == [(0.0, 0, 0.0)] and desk.evaluator.is_waiting
    desk.pool.answer(1)
    desk.evaluator.write_rows()
    assert [row.version for row in desk.rows] == [0, 0, 1, 2]


@pytest.mark.parametrize("are_rows_written", [False, True])
def test_levels_are_scored_whenever_the_scores_of_the_refresh_came(are_rows_written: bool) -> None:
    """A look finds its version scored, and its rows written or, as the wall clock takes results
    without writing, not yet: the pool knows the evaluation that the levels belong to.
    """
    desk = Desk(2.0, submodels=True)
    desk.pool.is_slow = True
    desk.refresh(0.0)
    desk.pool.answer(0)
    if are_rows_written:
        desk.evaluator.write_rows()
    desk.merge(1.0)
    assert desk.evaluator.is_waiting
    desk.pool.answer(0)
    desk.evaluator.write_rows()
    assert not desk.evaluator.is_waiting and not desk.pool.evaluations
    assert len(desk.seen(EvaluationRow)) == len(desk.seen(LookRow)) == 1
    levels = [row for row in desk.rows if type(row) is SubmodelRow]
    assert [(row.now_s, row.density, row.num_kept) for row in levels] == [(0, 0.5, 1), (0, 1, 2)]


def test_times_of_looks_do_not_drift() -> None:
    """The time of look k is k steps, not a sum of k steps."""
    desk = Desk(0.1)
    desk.evaluator.look(0.7)
    assert [row.now_s for row in desk.rows] == [0.1 * number for number in range(7)]


def run_tiny(folder: Path, name: str, *words: str) -> Result:
    path = f"results.path={folder / name}.h5"
    return fedgmr_hpc.run(fedgmr_hpc.load_config(None, TINY, (*words, path)))


@pytest.mark.parametrize("method", ["fedgmr", "fedavg"])
def test_looks_change_nothing_that_a_run_does(method: str, tmp_path: Path) -> None:
    """Versions, merges, updates, events and the evaluations of refreshes are bit for bit those of
    a run without looks and sub-models' scores, and looks see what the merges say is current.
    """
    words = (f"method={method}", *(["restoration.patience=1"] if method == "fedgmr" else []))
    plain = run_tiny(tmp_path, "plain", *words)
    looked = run_tiny(tmp_path, "looked", *words, "eval.every_s=0.7", "eval.submodels=true")
    tables = {name.partition("/")[0] for name in differing_columns(looked, plain)}
    assert tables == {"looks", "submodels"}
    times, merges = looked.looks["now_s"], looked.merges
    assert np.array_equal(times, 0.7 * np.arange(len(times)))
    assert 0 <= merges["now_s"][-1] - times[-1] < 0.7
    current = np.searchsorted(merges["now_s"], times, side="right")
    assert np.array_equal(looked.looks["version"], current)
    assert len(plain.looks["version"]) == len(plain.submodels["version"]) == 0
    num_classes, seen = 5 if method == "fedgmr" else 1, {*looked.looks["version"]}
    assert looked.submodels["version"].tolist() == sorted([*seen] * num_classes)
    assert {*looked.evaluations["version"]} - seen  # refreshes between looks are not cut
    assert verify(looked.path) == []


@pytest.mark.parametrize("name", sorted(p.stem for p in (configs_dir() / "studies").glob("*.yaml")))
def test_studies_look_at_all_their_methods_at_equal_times(name: str) -> None:
    """At T itself, too, and often enough that times to an accuracy mean something, if any do."""
    study, _ = load_study(name)
    looks = study.comparison_time_s / study.settings["eval.every_s"]
    assert looks == int(looks) and (looks >= 40 or not study.targets)


def cut_by_hand(method: str, weights: Any, layout: Layout, density: float) -> FlatNet:
    """The network of a class, entry by entry: the largest weights of all, without the biases of
    units that keep none; the largest of each tensor; or the first units of every layer.
    """
    tensors = {e.name: weights[e.span].reshape(e.shape).copy() for e in layout.entries}
    if method == "heterofl":
        net = FlatNet("digits_cnn", "cpu", "width_prefix", density)
        for name, tensor in net.tensors.items():
            corner = tensors[name][tuple(slice(size) for size in tensor.shape)]
            tensor.data.copy_(torch.from_numpy(np.ascontiguousarray(corner)))
        return net
    cut = [e for e in layout.entries if e.prunable]
    groups = [cut] if method == "fedgmr" else [[entry] for entry in cut]
    for group in groups:
        sizes = np.concatenate([abs(tensors[e.name]).ravel() for e in group])
        least = np.sort(sizes)[len(sizes) - int(density * len(sizes))]
        for entry in group:
            tensors[entry.name] *= abs(tensors[entry.name]) >= least
    for entry in layout.entries:
        if method == "fedgmr" and entry.gated_by is not None:
            gate = tensors[entry.gated_by]
            tensors[entry.name] *= abs(gate).reshape(len(gate), -1).max(1) > 0
    net = FlatNet("digits_cnn")
    net.flat.copy_(
        torch.from_numpy(np.concatenate([tensors[e.name].ravel() for e in layout.entries]))
    )
    return net


@pytest.mark.parametrize("method", ["fedgmr", "fiarse", "heterofl"])
def test_sub_models_score_what_models_cut_by_hand_do(method: str, tmp_path: Path) -> None:
    """The last version at each density, by an independent cut of the run's final weights."""
    words = ["eval.submodels=true", "train.steps=5", "train.learning_rate=0.2"]
    if method == "fedgmr":
        words += ["submodel.use_costs=false", "submodel.floor_frac=0", "restoration.patience=1"]
    result = run_tiny(tmp_path, "run", f"method={method}", *words)
    config = make_config(result.config)
    data, rows = FederatedData(config), result.submodels
    last = np.flatnonzero(rows["version"] == result.merges["version"][-1])
    assert rows["density"][last].tolist() == [0.05, 0.1, 0.2, 0.5, 1.0]
    assert rows["num_clients"][last].tolist() == [6, 1, 1, 1, 1]
    layout, losses = make_layout("digits_cnn", config.submodel.kind), []
    for row in last:
        net = cut_by_hand(method, result.weights, layout, rows["density"][row])
        assert rows["num_kept"][row] == sum(
            net.split(net.flat)[i].count_nonzero()
            for i, e in enumerate(net.layout.trainable)
            if e.prunable
        )
        num, hits, loss_sum = data.pool_size("test"), 0, 0.0
        for samples, labels in data.pool_batches("test", 0, num):
            logits = net(samples).detach()
            hits += int((logits.argmax(1) == labels).sum())
            loss_sum += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        assert rows["test_accuracy"][row] == hits / num
        assert rows["test_loss"][row] == pytest.approx(loss_sum / num, rel=1e-5)
        losses.append(loss_sum / num)
    assert len(set(losses)) == len(losses)
    whole = result.evaluations["test_accuracy"][-1], result.evaluations["test_loss"][-1]
    assert (rows["test_accuracy"][last[-1]], rows["test_loss"][last[-1]]) == whole


@settings(max_examples=50, deadline=None)
@given(
    st.floats(0.01, 10.0),
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=12),
    st.sets(st.integers(0, 12)),
)
def test_looks_see_the_newest_version_at_every_due_time(
    every_s: float, gaps: list[float], refreshed: set[int]
) -> None:
    """Whatever the merges' times and whichever versions are refreshed: a look at each multiple of
    the step up to the end, at the newest version there is.
    """
    desk = Desk(every_s)
    ready = [0.0, *np.cumsum(gaps).tolist()]
    for version, now_s in enumerate(ready):
        if version:
            desk.merge(now_s)
        if version in refreshed:
            desk.refresh(now_s)
    desk.evaluator.look(math.nextafter(ready[-1], math.inf))
    looks = desk.seen(LookRow)
    times = [at_s for at_s, *_ in looks]
    assert times == [every_s * number for number in range(len(times))]
    assert times[-1] <= ready[-1] < every_s * len(times)
    newest = [max(v for v, ready_s in enumerate(ready) if ready_s <= at_s) for at_s in times]
    assert [version for _, version, _ in looks] == newest
    assert len(desk.pool.asked) == len({version for version, _ in desk.pool.asked})


@pytest.mark.parametrize("interval", [1, 7])  # a refresh follows the last merge, or none
@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("every_s", [None, 5.0, 30.0, 50.0])
def test_a_run_whose_clients_stay_away_ends_in_time_with_all_its_looks(
    every_s: float | None, levels: bool, interval: int, tmp_path: Path
) -> None:
    trace = tmp_path / "away.csv"
    spans = [f"{client},0,20" for client in range(10)]
    trace.write_text("\n".join(["client,from_s,to_s", *spans]))
    every = "null" if every_s is None else f"{every_s}"
    words = [f"clients.availability={trace}", f"eval.every_s={every}", f"eval.submodels={levels}"]
    words += ["run.max_time_s=40", "run.max_rounds=1000", f"run.interval_rounds={interval}"]
    result = run_tiny(tmp_path, "away", *words)
    last = int(result.merges["version"][-1])
    assert result.status == "finished" and (interval == 1 or last % interval)
    assert result.evaluations["now_s"][-1] == 40 and result.evaluations["version"][-1] == last
    if every_s is not None:
        assert result.looks["now_s"].tolist() == list(np.arange(0, 40.1, every_s))
    if levels:
        assert (last in result.submodels["version"]) == (every_s != 50)
    assert measure_run(result, "away").covers(40.0) or every_s == 50
    assert list(result.merges["version"]) == list(range(1, last + 1))
    assert verify(result.path) == []


def test_a_run_is_resumed_while_all_its_clients_are_away(tmp_path: Path) -> None:
    trace = tmp_path / "away.csv"
    spans = [f"{client},0,20" for client in range(10)]
    trace.write_text("\n".join(["client,from_s,to_s", *spans]))
    words = [f"clients.availability={trace}", "run.max_time_s=40", "run.max_rounds=1000"]
    words += ["run.interval_rounds=1"]
    whole = run_tiny(tmp_path, "whole", *words)

    class Stop(fedgmr_hpc.Callback):
        def on_round(self, run: Any, end: Any) -> None:
            if end.version == whole.merges["version"][-1]:
                run.stop()

    path = f"results.path={tmp_path / 'cut.h5'}"
    config = fedgmr_hpc.load_config(None, TINY, (*words, path))
    cut = fedgmr_hpc.run(config, callbacks=[Stop()])
    assert cut.status.startswith("checkpointed: ")
    assert cut.merges["version"][-1] == whole.merges["version"][-1]
    again = fedgmr_hpc.run(config, resume=True)
    assert differing_columns(again, whole) == [] and again.status == "finished"
