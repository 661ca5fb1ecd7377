"""One table in all its forms, and numbers in words."""

from __future__ import annotations

import math
from pathlib import Path

from fedgmr_hpc.reporting.pages import as_html
from fedgmr_hpc.reporting.tables import (
    Table,
    as_csv,
    as_latex,
    as_markdown,
    as_text,
    write_tables,
)
from fedgmr_hpc.reporting.words import count_of, describe_s, percent

TABLE = Table("t", "A_B", ["method", "50 %"], [["wo_gmr", "1 < 2"]], ["note"], "redo", "1 (0)")


def test_forms_of_a_table() -> None:
    assert as_text(TABLE.heads, TABLE.rows).splitlines()[2] == "wo_gmr  1 < 2"
    assert "| wo_gmr | 1 < 2 |" in as_markdown(TABLE) and "    redo" in as_markdown(TABLE)
    assert r"wo\_gmr & 1 $<$ 2 \\" in as_latex(TABLE)
    assert as_csv(TABLE).splitlines()[-2:] == ["method,50 %", "wo_gmr,1 < 2"]
    assert ">1 &lt; 2</td>" in as_html(TABLE) and "Seeds: 1 (0)." in as_html(TABLE)


def test_columns_of_numbers_stand_to_the_right_in_every_form() -> None:
    rows = [["x", "+10"], ["longer", "-"], ["y", "not reached"]]
    assert as_text(["a", "n"], rows).split("\n") == [
        "a                 n",
        "-------------------",
        "x               +10",
        "longer            -",
        "y       not reached",
    ]
    assert "| --- | ---: |" in as_markdown(TABLE)
    assert r"\begin{tabular}{lr}" in as_latex(TABLE)
    assert "<td>wo_gmr</td><td class=num>1 &lt; 2</td>" in as_html(TABLE)


def test_marked_cells_stand_out_in_every_form() -> None:
    table = Table("a_b", "T", ["m", "x"], [["p_q", "1.5"], ["r", "1.25"]], marked={(0, 1)})
    assert table.as_text().split("\n") == [
        "T",
        "m        x",
        "----------",
        "p_q   1.5*",
        "r    1.25",
        "",
    ]
    assert "| p_q | **1.5** |\n| r | 1.25 |" in as_markdown(table)
    assert r"p\_q & \textbf{1.5} \\" in as_latex(table)
    assert "<td class=num><b>1.5</b></td>" in as_html(table)
    assert as_csv(table).endswith("p_q,1.5\nr,1.25\n")


def test_a_latex_table_is_whole_with_its_caption_and_label() -> None:
    table = Table("a_b", "50 % & more", ["m"], [["1"]], ["10^6 \u00b1 1."], "redo", "1 (0)")
    assert as_latex(table).split("\n") == [
        r"% needs \usepackage{booktabs}; made by: redo",
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% \& more. 10\textasciicircum{}6 $\pm$ 1. Seeds: 1 (0).}",
        r"\label{tab:a-b}",
        r"\begin{tabular}{r}",
        r"\toprule",
        r"m \\",
        r"\midrule",
        r"1 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]


def test_heads_have_units_below_them_and_a_total_a_rule_above_it() -> None:
    text = as_text(["run", "time\ns"], [["a", "1.0"], ["b", "12.0"]], ["total", "13.0"])
    assert text.split("\n") == [
        "run    time",
        "          s",
        "-----------",
        "a       1.0",
        "b      12.0",
        "-----------",
        "total  13.0",
    ]


def test_records_are_what_a_csv_file_holds(tmp_path: Path) -> None:
    table = Table("t", "T", ["a"], [["1.0"]], records=[{"a": 1.04, "seed": 3}])
    write_tables([table], tmp_path / "new")
    assert (tmp_path / "new" / "t.csv").read_text() == "# T\na,seed\n1.04,3\n"
    assert (tmp_path / "new" / "t.tex").read_text() == as_latex(table)


def test_times_are_readable() -> None:
    assert [describe_s(s) for s in (8.2, 250.0, 11520.0, math.nan)] == [
        "8 s",
        "4 min 10 s",
        "3 h 12 min",
        "unknown",
    ]


def test_counts_and_fractions_are_readable() -> None:
    assert [count_of(number, "rank") for number in (0, 1, 3)] == ["0 ranks", "1 rank", "3 ranks"]
    assert [percent(value) for value in (0.51234, math.nan)] == ["51.23", "-"]


def test_names_that_rows_share_stand_once_above_them() -> None:
    rows = [["a is better", "b", "+1"], ["a is better", "c", "+10"], ["a is sooner", "b", "-1"]]
    table = Table("claims", "Claims", ["claim", "than", "points"], rows, is_grouped=True)
    assert table.as_text().splitlines() == [
        "Claims",
        "  than  points",
        "  ------------",
        "a is better",
        "  b         +1",
        "  c        +10",
        "a is sooner",
        "  b         -1",
    ]
