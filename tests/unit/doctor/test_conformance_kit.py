"""The verb `conformance`: what it looks at, what it prints, and how it ends."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.choices.registry import AGGREGATIONS, registering
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


def test_a_row_is_told_as_json(capsys):
    assert main(["conformance", "median", "--json", *SHORT]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] is False
    assert {check["state"] for check in told["checks"]} == {"ok", "-"}
    assert {check["subject"] for check in told["checks"]} == {"median"}


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
