"""A plug-in that fails while a run runs is one line with its choice, file and line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fedgmr_hpc.config.choices.failures import check_state, naming_plugins
from fedgmr_hpc.config.choices.registry import REGISTRIES
from fedgmr_hpc.config.errors import RunError, TransportError
from fedgmr_hpc.results.runs import run
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.storage.run_files import log_path

RULE = """import fedgmr_hpc

@fedgmr_hpc.register_aggregation("bad")
class Bad(fedgmr_hpc.{base}):
    vectors, numbers = ("moved",), {{"seen": 0}}
{body}
"""
WHOLE = "    def combine(self, old, values, is_held, part):\n        "
STEP = "    def step(self, old, mean, part):\n        "
PREPARE = STEP + "pass\n    def prepare(self, merge, numbers):\n        "
SCHEDULE = """import fedgmr_hpc

@fedgmr_hpc.register_restoration("bad")
class Bad(fedgmr_hpc.Schedule):
    def densities(self, refresh):
        {body}
"""
ADMISSION = """import fedgmr_hpc

@fedgmr_hpc.register_admission("bad")
class Bad(fedgmr_hpc.AdmissionRule):
    def close_s(self, window):
        {body}
"""
SCORE = """import fedgmr_hpc

@fedgmr_hpc.register_score("bad")
def score(weights):
    return helper(weights)


def helper(weights):
    return weights + nothing
"""
OBJECTIVE = """import fedgmr_hpc

@fedgmr_hpc.register_objective("bad")
class Bad(fedgmr_hpc.Objective):
    def gradients(self, steps, gradients):
        {body}
"""
SHORT = {
    "method": "fedgmr",
    "run.max_rounds": 4,
    "run.interval_rounds": 2,
    "clients.count": 4,
    "train.steps": 1,
    "data.max_train": 300,
    "data.max_test": 60,
    "progress": "plain",
}


@pytest.fixture
def start(tmp_path: Path):
    """Run with the plug-in of a source; return the error that ends the run."""
    path = tmp_path / "mine.py"

    def run_with(source: str, key: str, **more: object) -> str:
        path.write_text(source)
        keys = {**SHORT, key: "bad", "plugins": [str(path)], "results.path": tmp_path / "run.h5"}
        with pytest.raises(RunError) as caught:
            run("digits", keys | more)
        return str(caught.value).replace(str(tmp_path), "")

    yield run_with
    path.unlink()  # a plug-in's name is used once in a process
    for registry in REGISTRIES:
        registry.forget("mine")


MERGE = "rank 0, version 0, stage merge: "
NAME = "NameError: name 'nothing' is not defined"
FAILING = [
    (RULE.format(base="MeanRule", body=STEP + "nothing"), "aggregation.rule", MERGE, 7, NAME),
    (RULE.format(base="MeanRule", body=PREPARE + "nothing"), "aggregation.rule", MERGE, 9, NAME),
    (RULE.format(base="WholeRule", body=WHOLE + "nothing"), "aggregation.rule", MERGE, 7, NAME),
    (SCHEDULE.format(body="nothing"), "restoration.trigger", MERGE, 6, NAME),
    (ADMISSION.format(body="raise OSError('no\\n!')"), "admission.kind", MERGE, 6, "OSError: no !"),
    (SCORE, "submodel.score", "rank 0, version ", 9, NAME),
    (OBJECTIVE.format(body="nothing"), "train.objective", "rank 1, client ", 6, NAME),
]  # fmt: skip


@pytest.mark.parametrize(("source", "key", "where", "line", "what"), FAILING)
def test_a_failure_names_choice_file_and_line(
    source, key, where, line, what, start, tmp_path, capsys
):
    told = start(source, key)
    assert told.startswith(where)
    assert told.endswith(f"{key} 'bad' (/mine.py:{line}): {what}")
    assert "Traceback" not in capsys.readouterr().err
    path = tmp_path / "run.h5"
    kind = "RankFailed" if key == "train.objective" else "PluginError"
    assert read_result(path).status.replace(str(tmp_path), "") == f"failed: {kind}: {told}"
    log = log_path(path).read_text()
    assert log.count("Traceback") == 1 and f'mine.py", line {line}' in log


ASSIGNED = "must not be assigned: one object may serve several runs; keep it in "
REFUSED = [
    (
        STEP + "return mean",
        "`step` of Bad must write the new values over `mean` and return nothing",
    ),
    (
        STEP + "mean[0] = float('nan')",
        "aggregation.rule 'bad' has made a value that is not finite: ",
    ),
    (WHOLE + "return values", "`combine` of Bad must return a tensor of ["),
    (WHOLE + "return old.numpy()", "] (got a ndarray)"),
    (PREPARE + "self.last = 1", f"mine.py:9): self.last {ASSIGNED}`numbers` or `vectors`"),
    (PREPARE + "self.numbers = {}", f"mine.py:9): self.numbers {ASSIGNED}`numbers` or `vectors`"),
    (PREPARE + "numbers['seen'] = {1}", "rule Bad: numbers['seen'] must hold only what JSON can"),
]


@pytest.mark.parametrize(("body", "line"), REFUSED)
def test_what_a_rule_must_not_do_is_one_line(body, line, start):
    base = "WholeRule" if body.startswith(WHOLE) else "MeanRule"
    told = start(RULE.format(base=base, body=body), "aggregation.rule")
    assert line in told and "pydantic" not in told


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("pass", "give each of 4 clients a density > 0 (got null): `densities` returns nothing"),
        ("return ['x'] * 4", "schedule Bad must give each of 4 clients a density > 0 (got ['x', "),
        ("self.seen = 1", f"self.seen {ASSIGNED}`refresh.state`"),
        (
            "refresh.state['seen'] = {3}; return refresh.densities",
            "schedule Bad: refresh.state['seen'] must hold only what JSON can, and arrays of "
            "numbers (got a set)",
        ),
    ],
)
def test_what_a_schedule_must_not_do_is_one_line(body, line, start):
    assert line in start(SCHEDULE.format(body=body), "restoration.trigger")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return 'now'", "`close_s` must return a time in seconds, or None to wait (got 'now')"),
        ("return True", "admission rule Bad: `close_s` must return a time in seconds, or None to"),
        ("return float('nan')", "or None to wait (got nan)"),
        ("window.state['who'] = {1}", "admission rule Bad: window.state['who'] must hold only"),
        ("self.seen = 1", f"self.seen {ASSIGNED}`window.state`"),
    ],
)
def test_what_an_admission_rule_must_not_do_is_one_line(body, line, start):
    assert line in start(ADMISSION.format(body=body), "admission.kind")


def test_what_an_objective_must_not_do_is_one_line(start, capsys):
    told = start(OBJECTIVE.format(body="return gradients[:1]"), "train.objective")
    assert "stage train: ValueError: Bad must return " in told
    assert "Traceback" not in capsys.readouterr().err


SELECTION = """import fedgmr_hpc

@fedgmr_hpc.register_selection("bad")
class Bad(fedgmr_hpc.SelectionRule):
    def choose(self, draw):
        {body}
        return draw.available[: draw.num_wanted]
"""


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "draw.state['who'] = {1}",
            "selection Bad: draw.state['who'] must hold only what JSON can",
        ),
        ("self.seen = 1", f"self.seen {ASSIGNED}`draw.state`"),
    ],
)
def test_what_a_selection_must_not_do_is_one_line(body, line, start):
    sampled = {"clients.sampled": 2, "admission.kind": "barrier"}
    assert line in start(SELECTION.format(body=body), "clients.selection", **sampled)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({3: 0.5}, "the key 3, which is no text"),
        ([{"a": (1, 2)}], "a tuple"),
        (np.array(["a"]), "<U1 of NumPy"),
        (np.complex128(1), "complex128 of NumPy"),
    ],
)
def test_what_a_checkpoint_would_change_is_not_kept(value: object, found: str) -> None:
    with pytest.raises(RunError, match=re.escape(f"state['x'] must hold only what JSON can, and "
                                                 f"arrays of numbers (got {found})")):  # fmt: skip
        check_state("state", {"x": value})


def test_what_a_checkpoint_gives_back_may_be_kept() -> None:
    check_state("state", {"a": [1, None, {"b": 0.5}], "c": np.arange(3), "d": np.float64(1)})


def test_what_a_run_says_itself_is_not_blamed_on_a_plug_in() -> None:
    with pytest.raises(TransportError, match="rank 3 is gone"), naming_plugins(stage="merge"):
        raise TransportError("rank 3 is gone", rank=3)
