"""Plug-ins that are not those with which a run began, when it is to be resumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_checkpoint import save, write_results

from fedgmr_hpc.config.choices import plugins
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.runtime.checkpoints.plan import plan_resume


@pytest.fixture(autouse=True)
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget plug-ins of other tests, whose names could be the same."""
    monkeypatch.setattr(plugins, "_loaded", {})


def test_a_start_names_the_plug_in_that_has_changed(tmp_path: Path) -> None:
    path, plugin = tmp_path / "run.h5", tmp_path / "changes.py"
    plugin.write_text("")
    values: dict[str, object] = {"plugins": [str(plugin)]}
    num_rows = write_results(path, values=values)
    for saves in (False, True):  # begins anew, or goes on
        plugin.write_text("")
        if saves:
            save(path, values, num_rows)
        plugin.write_text("x = 1\n")
        with pytest.raises(ValueError) as wrong:
            plan_resume(path, make_config(values))
        (line,) = str(wrong.value).splitlines()
        start = "plugins: changes.py must be the file that the run began with when continuing "
        end = " (got one that has changed since): use the unchanged file, or start a new run"
        assert line.startswith(start) and line.endswith(end) and "digest" not in line


def test_a_start_names_plug_ins_that_are_missing_or_new(tmp_path: Path) -> None:
    path, plugin = tmp_path / "run.h5", tmp_path / "comes.py"
    plugin.write_text("")
    values: dict[str, object] = {"plugins": [str(plugin)]}
    num_rows = write_results(path)
    save(path, values, num_rows)
    with pytest.raises(ValueError, match=r"plugins: comes.py must be loaded, as .* --plugin$"):
        plan_resume(path, make_config({}))
    save(path, {}, num_rows)
    with pytest.raises(ValueError, match=r"plugins: comes.py must be absent, as .* new run$"):
        plan_resume(path, make_config(values))


def test_resuming_with_a_changed_plug_in_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("")
    words = ["data.max_train=200", "data.max_test=40", "run.max_rounds=1", "clients.count=2"]
    launch = [sys.executable, "-m", "fedgmr_hpc.launch", "--resume", "--plugin", str(plugin)]
    launch += [*words, f"results.path={tmp_path}/run.h5", "progress=quiet"]
    subprocess.run(launch, check=True)
    plugin.write_text("x = 1\n")
    ran = subprocess.run(launch, capture_output=True, text=True)
    (line,) = [each for each in ran.stderr.splitlines() if "error: " in each]
    assert ran.returncode == 2 and "plugins: mine.py must be the file that the run began" in line
