"""A configuration is checked before anything heavy is imported: a mistake answers at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "h5py", "scipy", "matplotlib", "submitit", "sklearn", "PIL", "mpi4py"}
MISTAKES = {
    "restoration.triger=x": "restoration.triger is not a key; did you mean 'restoration.trigger'?",
    "restration.trigger=time": "restration is not a key; did you mean 'restoration'?",
    "max_rounds=3": "max_rounds is not a key; did you mean 'run.max_rounds'?",
    "method=fedgrm": "there is no method 'fedgrm'; did you mean 'fedgmr'?",
    "method=heterofl+axu": "there is no wrapper 'axu'; did you mean 'aux'?",
    "clock=virtul": "clock must be 'virtual' or 'wall' (got 'virtul'); did you mean 'virtual'?",
    "run.max_rounds=0": "run.max_rounds must be at least 1 (got 0)",
    "run.max_rounds=many": "run.max_rounds must be a whole number (got 'many')",
    "train.momentum=1": "train.momentum must be less than 1 (got 1)",
    "train.learning_rate=": "train.learning_rate must be given a value (got '')",
    "aggregation.buffered=3": "aggregation.buffered must be true or false (got 3)",
    "admission.count=2": "admission.count must be null when admission.kind is 'window' (got 2)",
    "admission.slack=1": "admission.slack is not a key; did you mean 'admission.slack_s'?",
    "clients.shares=1,0.5": "clients.shares must have 10 values when clients.count is 10 (got 2)",
    "clients.shares=[1": "clients.shares must be valid YAML (got '[1')",
    "faults=[{kind: drop}]": "faults must be empty when clock is 'virtual' (got 1)",
    "faults=[{kind: dorp}]": "did you mean 'drop'?",
    "links.trace_period_s=2": "links.trace_period_s must be null when links.trace is null (got 2)",
    "seed.x=1": "seed must be a whole number (got {x: 1})",
    "seed": "an override must be dotted.key=value (got 'seed')",
}
CODE = """
import json, sys
import fedgmr_hpc
import fedgmr_hpc.study.study_file
from fedgmr_hpc.config.sites import load_site
load_site("example")
said = {}
for word in json.loads(sys.argv[1]):
    try:
        fedgmr_hpc.load_config("digits", [word])
    except ValueError as error:
        said[word] = str(error)
print(json.dumps([said, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def seen() -> tuple[dict[str, str], set[str]]:
    words = [sys.executable, "-c", CODE, json.dumps(list(MISTAKES))]
    said, modules = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return said, set(modules)


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistyped_word_is_answered(seen: tuple[dict[str, str], set[str]], word: str) -> None:
    assert MISTAKES[word] in seen[0][word] and "\n" not in seen[0][word]


def test_nothing_heavy_is_imported_for_it(seen: tuple[dict[str, str], set[str]]) -> None:
    assert seen[1].isdisjoint(HEAVY)


def test_what_only_reads_results_needs_no_torch() -> None:
    """Reports, the table of a study, and the child that reads a data set's file start at once."""
    light = ("results.summary", "results.watch", "results.verify", "study.folder",
             "study.running.runner", "study.report.page", "study.export",
             "data.formats.tff_clients")  # fmt: skip
    names = ", ".join(f"fedgmr_hpc.{name}" for name in light)
    code = f"import sys, {names}; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert said == b"False\n"
