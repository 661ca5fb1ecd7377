"""Every page of docs/ and every heading that the sources cite is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CITATION = re.compile(r"docs/([\w-]+\.md)(?:#([\w-]+))?")
SUFFIXES = (".py", ".yaml", ".sh", ".cfg", ".toml", ".md", ".csv")
FOLDERS = ("fedgmr_hpc", "tests", "configs", "slurm", "examples")


def heading_anchor(heading: str) -> str:
    """The anchor that forges and MkDocs give a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    return {heading_anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return [*(path for path in found if path.suffix in SUFFIXES), *ROOT.glob("*.md")]


def test_cited_pages_and_headings_exist() -> None:
    missing = []
    for source in sources():
        for page, anchor in CITATION.findall(source.read_text(encoding="utf-8")):
            path = ROOT / "docs" / page
            if not path.exists() or (anchor and anchor not in anchors_of(path)):
                missing.append(f"{source.relative_to(ROOT)}: docs/{page}#{anchor}")
    assert missing == []


def test_anchors_are_those_of_forges() -> None:
    assert heading_anchor("Rules at a refresh") == "rules-at-a-refresh"
    assert heading_anchor("What is new? (1.0)") == "what-is-new-10"
