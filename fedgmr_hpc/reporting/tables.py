"""One table, written as text, Markdown, CSV or LaTeX; pages.py writes it as HTML.

    table = Table("speed", "Rate by ranks", ["ranks", "rounds/s"], [["2", "1.9"], ["3", "2.8"]])
    print(as_text(table.heads, table.rows))
    write_tables([table], folder)  # folder/speed.csv and folder/speed.tex

Columns of numbers stand to the right in every form.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

Cells = Sequence[str]

# The start of a number, or what stands in its place.
NUMBER = re.compile(r"(< |[-+\u2212])?\d|(-|no limit|never|not reached|diverged)?$")
LATEX = {
    **{char: rf"\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "\u2212": "$-$",
    "\u00b1": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
}


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, and the numbers behind them.

    Args:
        name: stem of its files.
        notes: what a reader has to know: units, intervals, seeds.
        command: what to type to make the table again.
        records: one mapping per value, for CSV; empty to take heads and rows.
        marked: (row, column) of cells that stand out; the notes say why.
        is_grouped: the first column has long names, which several rows share; on a terminal they
            stand once, above those rows.
    """

    name: str
    title: str
    heads: Cells
    rows: Sequence[Cells]
    notes: Sequence[str] = ()
    command: str = ""
    num_seeds: str = ""
    records: Sequence[Mapping[str, Any]] = ()
    marked: Collection[tuple[int, int]] = ()
    is_grouped: bool = False

    def rows_with(self, before: str, after: str, otherwise: str = "") -> list[list[str]]:
        """Return the rows with signs around the marked cells, and `otherwise` behind the other
        cells of their columns.
        """
        columns = {column for _, column in self.marked}
        return [
            [
                f"{before}{cell}{after}"
                if (i, j) in self.marked
                else cell + otherwise * (j in columns)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]

    def as_text(self) -> str:
        """Return title and cells for a terminal, marked ones with a star."""
        rows = self.rows_with("", "*", " ")
        text = _grouped(self.heads, rows) if self.is_grouped else as_text(self.heads, rows)
        return f"{self.title}\n{text}\n"

    @property
    def footer(self) -> list[str]:
        """The notes, and the seeds where there are any."""
        return [*self.notes, *([f"Seeds: {self.num_seeds}."] if self.num_seeds else [])]


def as_text(heads: Cells, rows: Iterable[Cells], total: Cells | None = None) -> str:
    """Align columns for a terminal.

    Args:
        heads: one per column; a second line, such as a unit, after a newline.
        rows: cells by row.
        total: a last row, set off by a rule.
    """
    rows = list(rows)
    head_lines = _head_lines(heads)
    body = [*rows, *([total] if total else [])]
    numeric = numeric_columns(len(heads), rows)
    columns = [
        _aligned(cells, is_numeric)
        for cells, is_numeric in zip(zip(*head_lines, *body, strict=True), numeric, strict=True)
    ]
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    rule = "-" * max(map(len, lines))
    split = len(head_lines)
    lines.insert(split, rule)
    if total:
        lines.insert(-1, rule)
    return "\n".join(lines)


def _grouped(heads: Cells, rows: Sequence[Cells]) -> str:
    """Align columns below the names that rows share in the first one."""
    lines = as_text(heads[1:], [row[1:] for row in rows]).split("\n")
    first = len(lines) - len(rows)
    text = [f"  {line}" for line in lines[:first]]
    for name, group in groupby(zip(rows, lines[first:], strict=True), key=lambda each: each[0][0]):
        text += [name, *(f"  {line}" for _, line in group)]
    return "\n".join(text)


def _head_lines(heads: Cells) -> list[list[str]]:
    """Split heads into one or two lines of cells."""
    depth = 1 + max(head.count("\n") for head in heads)
    split = [[*head.split("\n"), *[""] * depth][:depth] for head in heads]
    return [list(line) for line in zip(*split, strict=True)]


def numeric_columns(num_columns: int, rows: Sequence[Cells]) -> list[bool]:
    """Tell which columns hold nothing but numbers, which stand to the right."""
    return [all(NUMBER.match(row[i]) for row in rows) for i in range(num_columns)]


def _aligned(cells: Cells, is_numeric: bool) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) if is_numeric else cell.ljust(width) for cell in cells]


def as_markdown(table: Table) -> str:
    """Write a section with the table, its notes and its command."""
    numeric = numeric_columns(len(table.heads), table.rows)
    rule = ["---:" if is_numeric else "---" for is_numeric in numeric]
    lines = [
        f"### {table.title}",
        "",
        *map(_bar, (table.heads, rule, *table.rows_with("**", "**"))),
    ]
    lines += ["", *(f"{line}  " for line in table.footer)]
    if table.command:
        lines += ["", f"    {table.command}"]
    return "\n".join(lines) + "\n"


def _bar(cells: Cells) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def as_csv(table: Table) -> str:
    """Write the records with plain numbers, else the cells as shown; comment lines come first."""
    records = table.records or [dict(zip(table.heads, row, strict=True)) for row in table.rows]
    stream = io.StringIO()
    stream.writelines(f"# {line}\n" for line in _comments(table))
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def as_latex(table: Table) -> str:
    """Write a floating `table` with booktabs rules; the notes are its caption, the command is a
    comment. Marked cells are bold.
    """
    numeric = numeric_columns(len(table.heads), table.rows)
    columns = "".join("r" if is_numeric else "l" for is_numeric in numeric)
    caption = " ".join([f"{table.title.removesuffix('.')}.", *table.footer])
    body = [_escaped(row) for row in table.rows]
    for i, j in table.marked:
        body[i][j] = rf"\textbf{{{body[i][j]}}}"
    lines = [
        "% needs \\usepackage{booktabs}" + f"; made by: {table.command}" * bool(table.command),
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{''.join(_escaped([caption]))}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(_escaped(table.heads)),
        r"\midrule",
        *map(_latex_row, body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def _escaped(cells: Cells) -> list[str]:
    return ["".join(LATEX.get(char, char) for char in cell.replace("\n", " ")) for cell in cells]


def _latex_row(cells: Cells) -> str:
    return " & ".join(cells) + r" \\"


def _comments(table: Table) -> list[str]:
    return [line for line in (table.title, *table.footer, table.command) if line]


def finite(value: Any) -> Any:
    """Return a number, or a list of them, for JSON, which has None for one that is not finite."""
    if isinstance(value, list):
        return [finite(one) for one in value]
    if not isinstance(value, float):
        return value
    return float(value) if math.isfinite(value) else None


def write_tables(tables: Iterable[Table], folder: Path, latex: bool = True) -> None:
    """Write each table as CSV and, unless told otherwise, as LaTeX.

    Raises:
        OSError: `folder` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        (folder / f"{table.name}.csv").write_text(as_csv(table), encoding="utf-8")
        if latex:
            (folder / f"{table.name}.tex").write_text(as_latex(table), encoding="utf-8")
