"""Every command on the pages can be typed: the parser takes it, and its keys are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgmr_hpc.cli.command_line import build_parser
from fedgmr_hpc.cli.parser import parse
from fedgmr_hpc.config.identity import marks
from fedgmr_hpc.study.study_file import load_study

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*")),
]
COMMAND = re.compile(r"^(?:    |#     ?)?\s*[^`|\n]*-m (fedgmr_hpc(?:\.launch)?(?: .*)?)$", re.M)


def _commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        if page.is_file():
            text = re.sub(
                r"<!-- begin generated.*<!-- end generated -->", "", page.read_text(), flags=re.S
            )
            text = re.sub(r"\\\n\s*", "", text)  # commands of several lines
            yield from (
                (page.name, found) for found in COMMAND.findall(text) if "VERB" not in found
            )


def _words(command: str) -> list[str]:
    """The words behind the program's name, without what the shell keeps for itself."""
    command = re.sub(r" >>? \S+", "", command.partition(')"')[0])  # the shell's redirections
    program, *words = shlex.split(command, comments=True)
    return ["launch", *words] if program.endswith(".launch") else words


@pytest.mark.parametrize(("page", "command"), [*_commands()])
def test_a_documented_command_can_be_typed(page: str, command: str) -> None:
    words = _words(command)
    parse(build_parser(), words)
    keys = {word.partition("=")[0] for word in words if re.match(r"[a-z_.]+=", word)}
    assert keys <= marks().keys()


def test_commands_are_found_on_the_pages() -> None:
    assert {"README.md", "quickstart.md", "clusters.md"} <= {page for page, _ in _commands()}


def test_studies_on_the_pages_are_complete(tmp_path: Path) -> None:
    blocks = [
        block
        for page in PAGES
        if page.suffix == ".md"
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)
        if "\nmatrix:" in block
    ]
    assert blocks
    for block in blocks:
        (tmp_path / "study.yaml").write_text(block)
        study, _ = load_study(tmp_path / "study.yaml")
        assert study.title
