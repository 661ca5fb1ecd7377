"""A table and its forms: text, Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Cells as shown, and the numbers behind them.

    Args:
        name: stem of its files.
        notes: what a reader has to know: units, intervals, seeds.
        records: one mapping a value, for CSV; empty to take heads and rows.
    """

    name: str
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    command: str = ""
    num_seeds: str = ""
    records: Sequence[Mapping[str, Any]] = ()

    @property
    def footer(self) -> list[str]:
        """Notes, seeds, and the command that makes the table again."""
        lines = list(self.notes)
        if self.num_seeds:
            lines.append(f"Seeds: {self.num_seeds}.")
        return lines


def as_text(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal; numbers to the right."""
    columns = [_aligned(cells) for cells in zip(heads, *rows, strict=True)]
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def as_markdown(table: Table) -> str:
    """A section with the table, its notes and its command."""
    lines = [f"### {table.title}", "", _bar(table.heads), _bar(["---"] * len(table.heads))]
    lines += [_bar(row) for row in table.rows]
    lines += ["", *(f"{line}  " for line in table.footer)]
    if table.command:
        lines += ["", f"    {table.command}"]
    return "\n".join(lines) + "\n"


def as_csv(table: Table) -> str:
    """The records with plain numbers, else the cells as shown; comment lines come first."""
    records = table.records or [dict(zip(table.heads, row, strict=True)) for row in table.rows]
    stream = io.StringIO()
    for line in (table.title, *table.footer, table.command):
        stream.write(f"# {line}\n" if line else "")
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def as_latex(table: Table) -> str:
    """A `tabular` with booktabs rules; the notes and the command are comments."""
    body = [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
    return "\n".join(
        [
            *(f"% {line}" for line in (table.title, *table.footer, table.command) if line),
            rf"\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
            r"\toprule",
            " & ".join(map(_latex, table.heads)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def as_html(table: Table) -> str:
    """A section with the table, its notes and its command."""
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in table.heads)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<p class=note>{html.escape(line)}</p>" for line in table.footer)
    command = f"<pre>{html.escape(table.command)}</pre>" if table.command else ""
    return (
        f"<section><h2>{html.escape(table.title)}</h2><div class=scroll><table>"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
        f"{notes}{command}</section>\n"
    )


def _aligned(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    numeric = all(cell[:1].isdigit() or cell in ("-", "") for cell in cells[1:])
    return [cell.rjust(width) if numeric else cell.ljust(width) for cell in cells]


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _latex(cell: str) -> str:
    special = {c: rf"\{c}" for c in "&%$#_{}"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    special |= {"\u2212": "$-$", "<": "$<$", ">": "$>$"}
    return "".join(special.get(char, char) for char in cell)


def count_of(number: int, noun: str) -> str:
    """`1 rank`, `3 ranks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
