"""The folder of a scaling study: who works in it, and which of its results are kept."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_scaling_runs import made_plan, made_result

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.config.errors import RunError
from fedgmr_hpc.config.files import load_config
from fedgmr_hpc.scaling import runs as scalingruns
from fedgmr_hpc.scaling.lock import locked
from fedgmr_hpc.scaling.runs import Plan, Point, read_plan, run_path, run_plan, write_plan
from fedgmr_hpc.storage.run_files import timeline_path

RUN_WORDS = ["seed=3", "run.pin_cores=true", "trace=true", "progress=quiet"]
WORDS = ["scale", "strong", "digits", "--ranks", "2", "run.max_rounds=9"]


class Folder:
    """A study of one point and repeat whose result says it has this status and configuration."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.ran = root, 0
        self.source = root / "run.yaml"
        self.source.write_text("run: {max_rounds: 9}\n")
        self.plan = Plan(
            "strong", (str(self.source),), ("seed=3",), 1, 3, 2, (Point("0002-ranks", 2, 2, ()),)
        )
        self.path = run_path(root, self.plan.points[0], 0)
        self.path.parent.mkdir()
        self.path.write_bytes(b"content")
        timeline_path(self.path).write_text("spans")
        result = made_result(load_config(self.plan.sources, RUN_WORDS))
        self.result = replace(result, path=self.path)
        monkeypatch.setattr(scalingruns, "read_result", lambda path: self.result)
        monkeypatch.setattr(scalingruns, "_run", self._run)

    def _run(self, *_: object) -> None:
        self.ran += 1

    def set(self, section: str, **values: object) -> None:
        """Have the result say that its run had other values in a section."""
        config = self.result.config
        changed = {**config, section: {**config[section], **values}}
        self.result = replace(self.result, config=changed)

    def kept(self) -> list[str]:
        """Return what was moved aside."""
        return sorted(path.name for path in self.path.parent.glob("*.kept-1"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    return Folder(tmp_path, monkeypatch)


def test_a_second_command_is_refused_and_touches_nothing(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.result = replace(folder.result, status="running")
    with locked(folder.root):
        assert main([*WORDS, "--out", str(folder.root)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].endswith(
        f"--out must be another folder (got '{folder.root}'): "
        "the runs of another command are under way in this one"
    )
    assert folder.path.exists() and timeline_path(folder.path).exists() and not folder.ran
    assert not (folder.root / "scaling.json").exists()
    assert run_plan(folder.plan, folder.root) and folder.ran == 1


def test_launchers_hold_the_lock_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, path = made_plan(), tmp_path / "a.h5"
    with locked(tmp_path) as lock:
        asks = f"import os; os.fstat({lock})"
        monkeypatch.setattr(scalingruns, "rank_command", lambda n: [sys.executable, "-c", asks])
        scalingruns._run(plan, plan.points[0], path, lock)
        asks = f"import os; os.fstat({lock + 1})"
        with pytest.raises(RunError, match="Bad file descriptor"):
            scalingruns._run(plan, plan.points[0], path, lock)


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(fd: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path), locked(tmp_path):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}: no locks (No locks available)" in line


def test_a_finished_result_of_this_configuration_is_not_run_again(folder: Folder) -> None:
    folder.set("results", path="/elsewhere/a.h5")
    folder.set("data", root="/elsewhere")
    assert run_plan(folder.plan, folder.root)
    assert not folder.ran and folder.path.read_bytes() == b"content"


def test_an_unfinished_result_of_this_configuration_makes_room(folder: Folder) -> None:
    folder.result = replace(folder.result, status="running")
    assert run_plan(folder.plan, folder.root)
    assert folder.ran == 1 and not folder.path.exists() and not folder.kept()


def test_a_finished_result_without_a_timeline_is_kept(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline_path(folder.path).unlink()
    assert run_plan(folder.plan, folder.root)
    assert folder.ran == 1 and folder.kept() == [f"{folder.path.name}.kept-1"]
    said = capsys.readouterr().out
    assert f"{folder.path}: without a timeline; moved to {folder.path.name}.kept-1" in said


def test_a_finished_result_without_one_of_its_ranks_is_kept(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.result = replace(folder.result, provenance={"num_ranks": "4"})
    assert run_plan(folder.plan, folder.root)
    assert folder.ran == 1 and f"{folder.path.name}.kept-1" in folder.kept()
    assert f"{folder.path}: without rank 2, rank 3; moved to" in capsys.readouterr().out


@pytest.mark.parametrize("status", ["finished", "running"])
def test_a_result_of_another_configuration_is_kept(
    folder: Folder, capsys: pytest.CaptureFixture[str], status: str
) -> None:
    folder.result = replace(folder.result, status=status)
    folder.source.write_text("run: {max_rounds: 8, server_threads: 2}\n")
    assert run_plan(folder.plan, folder.root)
    names = [f"{folder.path.name}.kept-1", f"{timeline_path(folder.path).name}.kept-1"]
    assert folder.ran == 1 and folder.kept() == names
    assert "of another configuration, in run.max_rounds, run.server_threads; moved to" in (
        capsys.readouterr().out
    )


def test_a_result_that_cannot_be_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Path] = []
    monkeypatch.setattr(scalingruns, "_run", lambda plan, point, path, lock: ran.append(path))
    path = tmp_path / "runs" / "0002-ranks-repeat0.h5"
    path.parent.mkdir()
    path.write_bytes(b"of a newer release")
    path.with_suffix(".out").write_text("what its ranks said")
    assert run_plan(made_plan(), tmp_path)
    assert path in ran and not path.exists()
    assert path.with_name(f"{path.name}.kept-1").read_bytes() == b"of a newer release"
    assert path.with_suffix(".out.kept-1").read_text() == "what its ranks said"
    assert f"moved to {path.name}.kept-1, it runs again" in capsys.readouterr().out


def test_a_plan_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(made_plan(), tmp_path)

    def full(self: Path, text: str) -> int:
        with self.open("w") as file:
            file.write(text[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_plan(replace(made_plan(), repeats=7), tmp_path)
    assert read_plan(tmp_path) == made_plan()
    assert json.loads((tmp_path / "scaling.json").read_text())["repeats"] == 2
