"""The words of a study's last run: whose they are, and when they are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedgmr_hpc.cli.command_line import main
from fedgmr_hpc.study.folder import open_study

STUDY = {
    "title": "tiny",
    "base": "digits",
    "matrix": {"method": ["fedavg", "fedasync"], "seed": [0]},
    "comparison_time_s": 50.0,
}


def write(path: Path, **changes: object) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**STUDY, **changes}))  # JSON is YAML
    return str(path)


def test_another_study_of_the_same_name_needs_a_folder_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = write(tmp_path / "a/tiny.yaml"), write(tmp_path / "b/tiny.yaml", title="other")
    out = str(tmp_path / "out")
    open_study(mine, ["seed=[3]"], out, reuses_overrides=False).save_overrides()
    for action in ("run", "status", "report"):
        assert main(["study", action, other, "--out", out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"STUDY must be {mine} (got '{other}'): {out}/tiny has its words and" in line
    assert main(["study", "status", mine, "--out", out]) == 0
    assert "fedavg-s3" in capsys.readouterr().out


def test_a_study_of_a_moved_or_older_folder_is_not_refused(tmp_path: Path) -> None:
    mine, out = write(tmp_path / "a/tiny.yaml"), str(tmp_path / "out")
    open_study(mine, ["seed=[3]"], out, reuses_overrides=False).save_overrides()
    same = write(tmp_path / "b/tiny.yaml")
    moved = write(tmp_path / "c/tiny.yaml", title="changed since")
    assert open_study(same, [], out, reuses_overrides=True).overrides == ["seed=[3]"]
    with pytest.raises(ValueError, match="STUDY must be"):
        open_study(moved, [], out, reuses_overrides=True)
    Path(mine).unlink()
    assert open_study(moved, [], out, reuses_overrides=True).overrides == ["seed=[3]"]
    write(tmp_path / "a/tiny.yaml", title="another again")
    (tmp_path / "out/tiny/source.yaml").unlink()  # as before there was one
    assert open_study(moved, [], out, reuses_overrides=True).overrides == ["seed=[3]"]


def test_a_named_study_and_a_file_of_its_name_are_told_apart(tmp_path: Path) -> None:
    mine, out = write(tmp_path / "quick.yaml"), str(tmp_path / "out")
    open_study("quick", [], out, reuses_overrides=False).save_overrides()
    assert open_study("quick", [], out, reuses_overrides=True).overrides == []
    with pytest.raises(ValueError, match=r"STUDY must be quick \(got "):
        open_study(mine, [], out, reuses_overrides=True)


def test_plug_ins_alone_leave_the_words_of_the_last_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come beside those of the run."""
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("")
    one, two = (str(tmp_path / name) for name in ("one.py", "two.py"))
    mine, out = write(tmp_path / "tiny.yaml"), str(tmp_path / "out")
    open_study(mine, [f'plugins=["{one}"]', "seed=[3]"], out, False).save_overrides()
    folder = open_study(mine, [f'plugins=["{one}", "{two}"]'], out, reuses_overrides=True)
    assert folder.overrides == [f'plugins=["{one}", "{two}"]', "seed=[3]"]
    assert main(["study", "status", mine, "--out", out, "--plugin", two]) == 0
    assert "fedavg-s3" in capsys.readouterr().out
    assert open_study(mine, ["seed=[4]"], out, True).overrides == ["seed=[4]"]
