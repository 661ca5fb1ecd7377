"""Which tests are run again when they fail (tests/conftest.py)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
from pathlib import Path

def attempt(name):
    path = Path({folder!r}) / name
    path.write_text(path.read_text() + "." if path.exists() else ".")
    return len(path.read_text())

def differing_columns():
    return ["weights"]

def test_fails_once():
    assert attempt("{kind} once") == 2

def test_fails_always():
    assert attempt("{kind} always") == 0

def test_gives_other_results():
    attempt("{kind} other")
    assert differing_columns() == []
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, int]]:
    """A suite of this one's form: what pytest says, and how often each test was run."""
    folder = tmp_path_factory.mktemp("suite")
    for kind in ("ranks", "slurm", "unit"):
        (folder / "tests" / kind).mkdir(parents=True)
        text = TESTS.format(folder=str(folder), kind=kind)
        (folder / "tests" / kind / f"test_of_{kind}.py").write_text(text)
    shutil.copy(CONFTEST, folder / "tests")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -p no:cacheprovider\n")
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadscope", "tests"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    attempts = {path.name: len(path.read_text()) for path in folder.glob("* *")}
    return done.stdout, attempts


@pytest.mark.parametrize("kind", ["ranks", "slurm"])
def test_a_test_that_starts_ranks_is_run_again_once(
    kind: str, tried: tuple[str, dict[str, int]]
) -> None:
    said, attempts = tried
    assert (attempts[f"{kind} once"], attempts[f"{kind} always"]) == (2, 2), said
    assert attempts[f"{kind} other"] == 1


def test_a_unit_test_never_is(
    tried: tuple[str, dict[str, int]], request: pytest.FixtureRequest
) -> None:
    said, attempts = tried
    assert {attempts[f"unit {name}"] for name in ("once", "always", "other")} == {1}, said
    units = [item for item in request.session.items if item.nodeid.startswith("tests/unit/")]
    assert units and not any(item.get_closest_marker("flaky") for item in units)


def test_every_rerun_is_counted_and_what_fails_twice_fails(
    tried: tuple[str, dict[str, int]],
) -> None:
    said = tried[0]
    closing = said.strip().splitlines()[-1]
    assert re.search(r"\b7 failed, 2 passed, 4 rerun\b", closing), said
