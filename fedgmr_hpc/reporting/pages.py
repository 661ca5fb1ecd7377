"""One page builder: text, tables and figures as an HTML file and as Markdown.

    page = Page("Title", ["What was found."], parts=[table, Picture("Rates", folder / "rates.png")])
    write_page(page, folder, "report")  # folder/report.html and folder/report.md

The HTML file is self-contained: its pictures are inside. The Markdown links to them.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgmr_hpc.reporting import templates
from fedgmr_hpc.reporting.tables import Table, as_markdown, numeric_columns


@dataclass(frozen=True)
class Picture:
    """A figure on disk, and what a reader has to know to read it."""

    title: str
    path: Path
    caption: str = ""

    @property
    def data(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Page:
    """A page, from top to bottom.

    Args:
        lead: paragraphs that a reader must know first.
        warnings: what limits the worth of what follows.
        links: files beside the page and what they are called.
    """

    title: str
    lead: Sequence[str] = ()
    warnings: Sequence[str] = ()
    parts: Sequence[Table | Picture] = ()
    links: Sequence[tuple[str, str]] = ()


def write_page(page: Page, folder: Path, stem: str) -> Path:
    """Write a page as HTML and as Markdown; return the path of the HTML file.

    Raises:
        OSError: `folder` cannot be written, or a picture cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.html"
    path.write_text(page_html(page), encoding="utf-8")
    (folder / f"{stem}.md").write_text(page_markdown(page, folder), encoding="utf-8")
    return path


def page_html(page: Page) -> str:
    """Return a page as one self-contained HTML file."""
    tables = {part.name: as_html(part) for part in page.parts if isinstance(part, Table)}
    return templates.render("page.html", page=page, tables=tables)


def as_html(table: Table) -> str:
    """Write a section with the table, its notes and its command."""
    numeric = numeric_columns(len(table.heads), table.rows)
    return templates.render("table.html", table=table, numeric=numeric)


def page_markdown(page: Page, folder: Path) -> str:
    """Return a page as Markdown whose links to pictures start at `folder`."""
    links = [f"[{text}]({href})" for href, text in page.links]
    blocks = [f"# {page.title}\n", *(f"{line}\n" for line in (*page.lead, *links, *page.warnings))]
    for part in page.parts:
        if isinstance(part, Table):
            blocks.append(as_markdown(part))
        else:
            link = Path(os.path.relpath(part.path, folder)).as_posix()
            blocks.append(f"![{part.title}]({link})\n")
            blocks += [f"{part.caption}\n"] if part.caption else []
    return "\n".join(blocks)
