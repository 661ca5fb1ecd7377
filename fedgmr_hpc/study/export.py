"""The runs of a study as one tidy table, for other programs."""

from __future__ import annotations

from fedgmr_hpc.reporting.words import count_of
from fedgmr_hpc.results.tidy import NAMED, write_tidy
from fedgmr_hpc.study.folder import StudyFolder


def export_study(folder: StudyFolder, form: str) -> str:
    """Write `tidy.csv` or `tidy.jsonl` beside the study's report: its finished runs, without
    trials, with a column for each key that it varies or tunes.

    Returns:
        What to say on the terminal.

    Raises:
        ValueError: no run has finished.
        OSError: the folder cannot be written.
    """
    states = [(cell, state) for cell, state in folder.states() if not cell.is_trial]
    runs = [(c, s.result) for c, s in states if s.status == "done" and s.result is not None]
    if not runs:
        raise ValueError(
            f"study {folder.source}: no run has finished; `{folder.command('run')}` runs it"
        )
    varied = {key: None for cell, _ in runs for key in (*cell.labels, *cell.values)}
    out = folder.report_dir / f"tidy.{form}"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tidy([r for _, r in runs], [key for key in varied if key not in NAMED], form, out)
    return f"{out}: {_describe(len(runs), len(states))}"


def _describe(num_runs: int, num_cells: int) -> str:
    missing = num_cells - num_runs
    return count_of(num_runs, "run") + (f"; {missing} more have not finished" if missing else "")
