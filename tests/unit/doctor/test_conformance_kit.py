"""The verb `conformance`: what it looks at, what it prints, and how it ends."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import ClassVar

import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.choices.registry import (
    AGGREGATIONS,
    DATASETS,
    MODELS,
    OBJECTIVES,
    registering,
)
from fedgmr_hpc.doctor.conformance.merges import check_merging
from fedgmr_hpc.doctor.conformance.runs import check_runs
from fedgmr_hpc.fl.aggregation import MeanRule

SHORT = ("data.max_train=300", "data.max_test=60")
PLUGIN = """
import fedgmr_hpc

@fedgmr_hpc.register_aggregation("absent_is_zero")
class AbsentIsZero(fedgmr_hpc.MeanRule):
    def step(self, old, mean, part):
        mean.mul_(part.share(part.merge.total))
"""


@pytest.fixture
def plugin(tmp_path: Path):
    path = tmp_path / "broken_rule.py"
    path.write_text(PLUGIN)
    yield path
    AGGREGATIONS.forget("broken_rule")


def test_a_broken_plug_in_is_told_so_line_by_line(plugin, capsys):
    assert main(["conformance", str(plugin), *SHORT]) == 1
    lines = capsys.readouterr().out.splitlines()
    parts = [re.fullmatch(r"(\S+) +(\S+)  ([a-z -]+): .*", line) for line in lines[:-1]]
    told = {part[3]: part[1] for part in parts}
    assert told["no-ops"] == "FAIL"
    assert told["shares"] == told["ranks"] == told["resume"] == told["replay"] == "ok"
    assert told["state"] == "-"
    assert {part[2] for part in parts} == {"aggregation.rule=absent_is_zero"}
    failed = list(told.values()).count("FAIL")
    assert lines[-1] == f"{len(told)} checks, {failed} failed"


def test_what_fails_everywhere_is_told_once_with_its_line(tmp_path, capsys):
    path = tmp_path / "naming_rule.py"
    path.write_text(PLUGIN.replace("mean.mul_", "undefined_name.mul_"))
    try:
        assert main(["conformance", str(path), *SHORT]) == 1
    finally:
        AGGREGATIONS.forget("naming_rule")
    first, *others, last = capsys.readouterr().out.splitlines()
    told = f"aggregation.rule 'absent_is_zero' ({path}:7): NameError: name 'undefined_name' is not"
    assert first.startswith(f"FAIL  aggregation.rule=absent_is_zero  no-ops: {told}")
    failed = [line for line in others if line.startswith("FAIL")]
    assert all(line.endswith(": the same error as no-ops") for line in failed)
    assert last == f"{1 + len(others)} checks, {1 + len(failed)} failed"


def test_a_row_is_told_as_json(capsys):
    assert main(["conformance", "median", "--json", *SHORT]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] is False
    assert {check["state"] for check in told["checks"]} == {"ok", "-"}
    assert {check["subject"] for check in told["checks"]} == {"median"}


SHAPED = """
import fedgmr_hpc

@fedgmr_hpc.register_objective("shaped")
class Shaped(fedgmr_hpc.Objective):
    def gradients(self, steps, gradients):
        for gradient in gradients[:2]:  # of two convolutions
            gradient -= gradient.mean((1, 2, 3), keepdim=True)
        return gradients
"""


def test_an_objective_that_counts_on_shapes_is_told_so(tmp_path, capsys):
    """The weights of a compact layer are a vector (docs/compact-training.md)."""
    (tmp_path / "shaped.py").write_text(SHAPED)
    try:
        assert main(["conformance", str(tmp_path / "shaped.py"), *SHORT]) == 1
    finally:
        OBJECTIVES.forget("shaped")
    told = capsys.readouterr().out
    assert "FAIL  train.objective=shaped  run" in told and "Dimension out of range" in told


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fedavgmm"], "there is no method 'fedavgmm'; did you mean 'fedavgm'?"),
        (["./nowhere.py"], "must be a file that can be read, or a module"),
        (["run.max_rounds=3"], "TARGET must be a plug-in or a row"),
    ],
)
def test_what_is_not_there_is_one_line(words, line, capsys):
    assert main(["conformance", *words]) == 2
    assert line in capsys.readouterr().err


def test_a_plug_in_without_choices_is_refused(tmp_path, capsys):
    (tmp_path / "empty_plugin.py").write_text("x = 1\n")
    assert main(["conformance", str(tmp_path / "empty_plugin.py")]) == 2
    assert (
        "must be a plug-in that registers a choice of aggregation.rule" in capsys.readouterr().err
    )


calls = itertools.count()


class Hiding(MeanRule):
    def step(self, old, mean, part):
        mean.sub_(old).mul_(1 / (1 + next(calls))).add_(old)


def test_short_runs_see_a_state_that_a_rule_hides():
    with registering("test"):
        AGGREGATIONS.add("hiding", Hiding)
    try:
        values = {"method": "fedavg", "aggregation": {"rule": "hiding"}}
        found = list(check_runs("hiding", ["digits", values], SHORT))
    finally:
        AGGREGATIONS.forget("test")
    states = {check.name: check.state for check in found}
    assert states == {"run": "ok", "ranks": "FAIL", "resume": "FAIL", "replay": "FAIL"}
    assert "other bytes in" in found[1].text


def test_a_run_that_fails_is_the_last_line():
    class Failing(MeanRule):
        def step(self, old, mean, part):
            raise RuntimeError("no step today")

    with registering("test"):
        AGGREGATIONS.add("failing", Failing)
    try:
        values = {"method": "fedavg", "aggregation": {"rule": "failing"}}
        (check,) = check_runs("failing", ["digits", values], SHORT)
    finally:
        AGGREGATIONS.forget("test")
    assert (check.name, check.state) == ("run", "FAIL")
    assert "no step today" in check.text


ROW = """
about: a rule of one's own
source: here
base: fedavg
aggregation: {rule: absent_is_zero}
"""


@pytest.mark.parametrize("option", [[], ["--plugin"]])
def test_a_row_may_use_a_rule_of_another_word(option, tmp_path, capsys):
    name = f"rule_of_a_row_{len(option)}"  # a plug-in's name is used once in a process
    plugin, row = tmp_path / f"{name}.py", str(tmp_path / "own.yaml")
    plugin.write_text(PLUGIN)
    Path(row).write_text(ROW)
    try:
        main(["conformance", row, *option, str(plugin), "--json", *SHORT])
    finally:
        AGGREGATIONS.forget(name)
    told = json.loads(capsys.readouterr().out)["checks"]
    states = {check["name"]: check["state"] for check in told if check["subject"] == row}
    assert states["no-ops"] == "ok"  # of full models, where nothing is absent
    assert states["run"] == states["replay"] == "ok"


DATA = """
import numpy as np
import fedgmr_hpc

@fedgmr_hpc.register_dataset("tiny")
def tiny(root):
    rng = np.random.default_rng(0)
    x, y = rng.random((200, 6, 6), np.float32), np.arange(200) % 4
    return fedgmr_hpc.Arrays(x[:160], y[:160], x[160:], y[160:])
"""
MODEL = """
import torch
import fedgmr_hpc

@fedgmr_hpc.register_model("tiny_net", input_shape=(1, 6, 6))
def tiny_net(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, num_classes))
"""


def test_a_data_set_and_a_model_may_lie_in_two_files(tmp_path, capsys):
    data, model = str(tmp_path / "tiny_data.py"), str(tmp_path / "tiny_model.py")
    Path(data).write_text(DATA)
    Path(model).write_text(MODEL)
    cache = f"data.cache={tmp_path / 'cache'}"
    try:
        assert main(["conformance", data, cache]) == 0
        line, _ = capsys.readouterr().out.splitlines()
        assert line.startswith("-     data.name=tiny  run: model.name must fit the data")
        assert line.endswith("; choose one that fits: model.name=...")
        assert main(["conformance", data, "model.name=digits_cnn", cache]) == 1
        assert capsys.readouterr().out.startswith("FAIL  data.name=tiny  run: model.name must fit")
        words = ["data.name=tiny", "model.name=tiny_net", cache]
        assert main(["conformance", data, model, *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["ok"] * 8 + ["8"]
    finally:
        DATASETS.forget("tiny_data")
        MODELS.forget("tiny_model")


def test_a_short_run_is_not_judged_by_its_accuracy():
    words = ["run.max_rounds=4", *SHORT]
    (check, *_) = check_runs("x", ["digits", {"method": "fedavg"}], words)
    assert check.text == "4 rounds; how well it learns is not judged"


class Rounding(MeanRule):
    """Shares in float32, and values that come back but for rounding."""

    off: ClassVar[float] = 1e-8

    def step(self, old, mean, part):
        mean.mul_(0.1).mul_(10)

    def shares(self, merge, prepared):
        return [weight / merge.total + self.off for weight in merge.weights]


class Off(Rounding):
    off: ClassVar[float] = 1e-6


def merges_of(entry) -> dict[str, str]:
    """What the checks of a rule's merges say."""
    with registering("test"):
        AGGREGATIONS.add("off", entry)
    try:
        values = {"method": "ga", "aggregation": {"rule": "off"}}
        return {each.name: f"{each.state} {each.text}" for each in check_merging("off", values)}
    finally:
        AGGREGATIONS.forget("test")


def test_rounding_is_told_as_such():
    told = merges_of(Rounding)
    assert told["shares"].startswith("ok")
    assert told["no-ops"].startswith("FAIL") and " entries by up to " in told["no-ops"]
    assert "; add a difference to `old`, such as `mean - old`" in told["no-ops"]
    assert merges_of(Off)["shares"] == "FAIL the shares of the updates sum to 1.000005"
