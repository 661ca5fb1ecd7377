"""The report of a study: report.md, report.html, tables as CSV and LaTeX, figures.

report.html             everything in one file, pictures included
report.md               the same for reading in a checkout
interactive.html        the curves for a browser: axes, methods and runs to choose (needs plotly)
tables/NAME.csv, .tex   numbers, and cells as shown
figures/NAME.png, .pdf, NAME-slide.png and so on
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedgmr_hpc.config.errors import DIVERGED, RunError
from fedgmr_hpc.reporting.pages import Page, write_page
from fedgmr_hpc.reporting.tables import Table, write_tables
from fedgmr_hpc.results.labels import Rows
from fedgmr_hpc.results.series import TIMES, Run, common_time, end_s
from fedgmr_hpc.results.stretches import ARROW, in_turn, stretches
from fedgmr_hpc.study.cells import Cell, find_row, titles_of
from fedgmr_hpc.study.claims import ClaimResult, Comparison, Place, corrected, judge
from fedgmr_hpc.study.labels import matches
from fedgmr_hpc.study.measures import measure
from fedgmr_hpc.study.report.accuracy_tables import (
    accuracy_table,
    difference_table,
    legacy_table,
    own_table,
)
from fedgmr_hpc.study.report.claims_table import claims_table
from fedgmr_hpc.study.report.figures import write_figures
from fedgmr_hpc.study.report.head import head_of, setting_of, settings_note
from fedgmr_hpc.study.report.interactive import write_page_of_curves
from fedgmr_hpc.study.report.tables import Scale, Spread, cost_table
from fedgmr_hpc.study.report.tuning_tables import tuning_tables
from fedgmr_hpc.study.states import ENDED, CellState
from fedgmr_hpc.study.study_file import ClaimSpec, StudyFile
from fedgmr_hpc.study.tuning import States, read_states, scores_of

FROM_RESULT = (
    *("git_commit", "data_xxh3", "version_torch", "version_numpy"),
    *("hostname", "cpu_model", "cpu_capability", "start_utc"),
)


def write_report(
    study: StudyFile,
    cells: Sequence[Cell],
    cells_dir: Path,
    out_dir: Path,
    command: Callable[[str], str],
    spread: Spread = "sd",
    formats: Sequence[str] = ("png", "pdf"),
    sizes: Sequence[str] = ("page",),
) -> str:
    """Write the report of the finished cells; return what to say on the terminal.

    Args:
        command: what to type for an action on this study.
        spread: what stands behind a mean: standard deviation, or half the 95 % interval.
        formats: of the figures' files.
        sizes: what there shall be figures for: `page`, which the report has, `slide`, `column`.

    Raises:
        OSError: `out_dir` cannot be written.
        RunError: No cell has ended, and a report of others is there.
    """
    states = read_states(cells_dir, cells)
    _check_old_report(states, out_dir)
    compared = [(cell, state) for cell, state in states if not cell.is_trial]
    finished = [(c, s.result) for c, s in compared if s.status == "done" and s.result is not None]
    runs = [measure(cell, result) for cell, result in finished]
    scale = _scale(study, cells, command("report"), spread)
    tables = _tables(study, compared, runs, scale) if runs else []
    scores = scores_of(cells, states)
    tables += tuning_tables(study, states, scores, scale)
    *tables, origins = _captioned([*tables, _provenance(states, scale)], study.captions)
    rows = Rows.of(runs, scale.at_s, scale.last, {run.row: scale.title(run.row) for run in runs})
    drawn = [replace(run, column=scale.title(run.column)) for run in runs]
    pictures = write_figures(drawn, rows, scale.reference, out_dir / "figures", formats, sizes)
    write_tables([*tables, origins], out_dir / "tables")
    first, *warnings = head_of(states, runs, scores, scale)
    lead = [first, *settings_note(study, [cell for cell, _ in compared])]
    links, missing = write_page_of_curves(study.title, finished, scale, out_dir)
    page = Page(study.title, lead, warnings, [*tables, *pictures, origins], links)
    path = write_page(page, out_dir, "report")
    shown = [table.as_text() for table in tables]
    return "\n".join([*shown, *lead, *warnings, *missing, f"report: {path}"])


def _check_old_report(states: States, out_dir: Path) -> None:
    """Refuse to write a report of nothing over another one.

    Raises:
        RunError: That would be done.
    """
    has_values = (out_dir / "tables" / "test_accuracy.csv").exists()
    if has_values and not any(state.status in ENDED for _, state in states):
        raise RunError(
            f"none of {len(states)} cells has ended, so {out_dir / 'report.md'} stays as it is, a "
            "report of others: another plug-in, data set or value makes other cells"
        )


def _scale(study: StudyFile, cells: Sequence[Cell], command: str, spread: Spread) -> Scale:
    reference = study.reference
    row = None if reference is None else find_row(cells, reference, "reference")
    when = (study.comparison_time_s, study.last, study.targets)
    setting = setting_of(study, [cell for cell in cells if not cell.is_trial])
    time = common_time(TIMES[cell.config.clock] for cell in cells)
    return Scale(*when, row, command, titles_of(cells), spread, setting, time)


def _tables(study: StudyFile, compared: States, runs: Sequence[Run], scale: Scale) -> list[Table]:
    """Make every table of the runs that the study compares."""
    findings = corrected(
        [found for spec in study.claims for found in _findings(study, spec, compared, runs)]
    )
    tables = [
        claims_table(findings, runs, scale) if findings else None,
        accuracy_table(runs, scale),
        difference_table(runs, scale),
        cost_table(runs, scale),
        own_table(runs, scale),
        legacy_table(runs, scale),
    ]
    return [table for table in tables if table is not None]


def _captioned(tables: Sequence[Table], captions: Mapping[str, str]) -> list[Table]:
    """Return the tables with the captions of the study."""
    return [replace(each, title=captions.get(each.name, each.title)) for each in tables]


def _findings(
    study: StudyFile, spec: ClaimSpec, compared: States, runs: Sequence[Run]
) -> list[ClaimResult]:
    """Judge a claim against each of its opponents."""
    cells = [cell for cell, _ in compared]
    diverged = [cell for cell, state in compared if DIVERGED in state.error]
    a = find_row(cells, spec.a, "claims")
    of_all = spec.full_model()
    full = None if of_all is None else find_row(cells, of_all, "claims")
    at_s = spec.at_s or study.comparison_time_s
    return [
        judge(
            Comparison(spec, a, b, full, at_s, study.last),
            runs,
            _planned(cells, spec, a, b),
            diverged,
        )
        for b in (find_row(cells, row, "claims") for row in spec.opponents())
    ]


def _planned(cells: Sequence[Cell], spec: ClaimSpec, a: str, b: str) -> set[Place]:
    """Return where the study's cells make pairs for a claim."""
    places = [
        {(c.column, c.seed) for c in cells if c.row == row and matches(c.labels, spec.where)}
        for row in (a, b)
    ]
    return places[0] & places[1]


def _provenance(states: Sequence[tuple[Cell, CellState]], scale: Scale) -> Table:
    """Tabulate where every cell comes from."""
    heads = ["cell", "state", "seed", "rounds", scale.seconds, "wall s", *FROM_RESULT]
    rows = [
        [cell.name, state.status, str(cell.seed), *_origin(state)]
        for cell, state in states
        if state.result is not None
    ]
    return Table(
        name="cells",
        title="Cells and where they come from",
        heads=heads,
        rows=rows,
        notes=[
            "A commit with + had changes that were not committed. "
            f"A{ARROW}B: begun with A, resumed with B."
        ],
        command=scale.command,
    )


def _origin(state: CellState) -> list[str]:
    result = state.result
    assert result is not None
    start, *later = parts = stretches(result.provenance)
    for part in parts:
        dirty = "+" if part.get("git_dirty") == "true" else ""
        part["git_commit"] = part.get("git_commit", "-")[:10] + dirty
    for part in later:  # begun once
        part["start_utc"] = start.get("start_utc", "-")
    rounds = int(result.merges["round"][-1]) if len(result.merges["round"]) else 0
    times = [f"{end_s(result, name):.1f}" for name in ("now_s", "wall_s")]
    origin = (in_turn(part.get(key, "-") for part in parts) for key in FROM_RESULT)
    return [str(rounds), *times, *origin]
