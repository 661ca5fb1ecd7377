"""What a reader of a study's report must know first: what all runs share, and what is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from fedgmr_hpc.config.choices.section import Mark
from fedgmr_hpc.config.identity import flat, identity
from fedgmr_hpc.config.messages import shown
from fedgmr_hpc.reporting.words import count_of, short_key
from fedgmr_hpc.results.series import Run, quarantined
from fedgmr_hpc.results.stretches import stretches, values_of
from fedgmr_hpc.study.cells import Cell
from fedgmr_hpc.study.report.tables import Scale
from fedgmr_hpc.study.states import ENDED
from fedgmr_hpc.study.study_file import StudyFile
from fedgmr_hpc.study.tuning import Score, States

SETTING = {
    "data.name": "data {}",
    "model.name": "model {}",
    "clients.count": "{} clients",
    "clients.level": "heterogeneity {}",
    "data.partition": "partition {}",
}
SAID = {*SETTING, "method", "seed", "run.max_time_s", "eval.every_s", "eval.submodels"}
OF: tuple[Mark, ...] = ("run",)


def setting_of(study: StudyFile, cells: Sequence[Cell]) -> str:
    """Say in words what data, model and clients all cells share, and what was tuned."""
    values = [flat(cell.config.model_dump(mode="json")) for cell in cells]
    shared = {key: values[0][key] for key in SETTING if len({v[key] for v in values}) == 1}
    parts = [
        study.labels[value] if value in study.labels else SETTING[key].format(value)
        for key, value in shared.items()
    ]
    return ", ".join([*parts, *_tuned(study, cells)])


def _tuned(study: StudyFile, cells: Sequence[Cell]) -> list[str]:
    numbers = {len(cell.tuning.candidates) for cell in cells if cell.tuning}
    if not numbers:
        return []
    keys = " and ".join(study.labels.get(key, short_key(key)) for key in study.tune)
    few, most = min(numbers), max(numbers)
    budget = f"{few}" if few == most else f"{few} to {most}"
    return [f"{keys} tuned on validation in {budget} trials a method"]


def settings_note(study: StudyFile, cells: Sequence[Cell]) -> list[str]:
    """List the keys, beyond those in words, that all cells share and that differ from defaults."""
    values = [flat(cell.config.model_dump(mode="json")) for cell in cells]
    counted = {key for cell in cells for key in identity(cell.config, OF)}
    shared = [
        f"{key} {shown(values[0].get(key))}"
        for key in sorted(counted - {*SAID, *study.tune})
        if all(each.get(key) == values[0].get(key) for each in values)
    ]
    return [f"All runs, beyond the defaults: {', '.join(shared)}."] if shared else []


def head_of(
    states: States, runs: Sequence[Run], scores: Sequence[Score], scale: Scale
) -> list[str]:
    """Return the lead, and a line for all that limits the worth of what follows."""
    trials = [state.status in ENDED for cell, state in states if cell.is_trial]
    of_trials = f", {sum(trials)} of {len(trials)} trials" if trials else ""
    lead = (
        f"{len(runs)} of {len(states) - len(trials)} cells finished{of_trials}; accuracies are the "
        f"{scale.when} of {scale.time}, on the test set, which decides nothing during a run."
    )
    limits = [*_early_ends(runs, scale), *quarantine_lines(states, scale)]
    origins = [*data_lines(states, scale), *commit_lines(states)]
    return [lead, *missing_lines(states, scale), *limits, *tie_lines(scores, scale), *origins]


def missing_lines(states: States, scale: Scale) -> list[str]:
    """Return a line for each reason why cells are in no table, with their rows."""
    groups: dict[tuple[bool, str], States] = {}
    for cell, state in states:
        if state.status not in ENDED:
            why = f"failed: {state.error}" if state.status == "failed" else state.status
            groups.setdefault((cell.is_trial, why), []).append((cell, state))
    return [
        f"Not in the tables: {count_of(len(found), 'trial' if is_trial else 'cell')} {why}: "
        f"{_rows(found, states, scale)}"
        for (is_trial, why), found in groups.items()
    ]


def _rows(found: States, states: States, scale: Scale) -> str:
    """Name rows with how many of their cells, or trials, are meant, where it is not all."""
    is_trial = found[0][0].is_trial
    planned = [cell.row for cell, _ in states if cell.is_trial == is_trial]
    rows = [cell.row for cell, _ in found]
    if len(rows) == len(planned):
        return "all"
    return ", ".join(
        f"{scale.title(row)}{_share(rows.count(row), planned.count(row))}"
        for row in dict.fromkeys(rows)
    )


def _share(number: int, planned: int) -> str:
    return "" if number == planned else f" ({number} of {planned})"


def _early_ends(runs: Sequence[Run], scale: Scale) -> list[str]:
    short = [run for run in runs if not run.covers(scale.at_s)]
    if not short:
        return []
    ends = [run.times_s[-1] if len(run.times_s) else 0.0 for run in short]
    rows = ", ".join(dict.fromkeys(scale.title(run.row) for run in short))
    until = f"{min(ends):g} s" if min(ends) == max(ends) else f"{min(ends):g} to {max(ends):g} s"
    return [f"No value at T: {count_of(len(short), 'run')} ended at {until}: {rows}"]


def quarantine_lines(states: States, scale: Scale) -> list[str]:
    """Name the rows of cells that went on without some of their clients."""
    found = [
        (cell, state)
        for cell, state in states
        if not cell.is_trial and state.result is not None and quarantined(state.result)
    ]
    if not found:
        return []
    what = f"{count_of(len(found), 'cell')} went on without clients in quarantine"
    return [f"Other clients than planned: {what}: {_rows(found, states, scale)}"]


def tie_lines(scores: Sequence[Score], scale: Scale) -> list[str]:
    """Name the rows whose values no trial has told apart."""
    tied = [score for score in scores if score.is_chosen and score.num_equal > 1]
    if not tied:
        return []
    rows = ", ".join(dict.fromkeys(scale.title(score.row) for score in tied))
    return [f"Tuned values that are the first of equally good ones, see the table of them: {rows}"]


def data_lines(states: States, scale: Scale) -> list[str]:
    """Name the cells whose data are not those of most others of their data configuration."""
    groups = _by_data(states).values()
    return [line for found in groups for line in _other_data(found, scale)]


def _by_data(states: States) -> dict[str, list[tuple[str, Cell]]]:
    """Return the fingerprints of cells, and the cells, by all that these must depend on.

    A fingerprint is of the data set; only of a partition from a file does it tell who has what,
    which the split for validation makes depend on the seed.
    """
    groups: dict[str, list[tuple[str, Cell]]] = {}
    for cell, state in states:
        if state.result is None:
            continue
        own = {k: v for k, v in identity(cell.config, OF).items() if k.startswith("data.")}
        is_of_seed = cell.config.data.partition == "file"
        of = json.dumps([own, cell.seed if is_of_seed else None], sort_keys=True)
        for fingerprint in sorted(values_of(state.result.provenance, "data_xxh3")):
            groups.setdefault(of, []).append((fingerprint, cell))
    return groups


def _other_data(found: Sequence[tuple[str, Cell]], scale: Scale) -> list[str]:
    """Name the cells of each fingerprint but the most frequent one."""
    (usual, _), *others = Counter(fingerprint for fingerprint, _ in found).most_common()
    lines = []
    for fingerprint, number in others:
        cells = [cell for each, cell in found if each == fingerprint]
        rows = ", ".join(dict.fromkeys(f"{scale.title(c.row)} (seed {c.seed})" for c in cells))
        what = f"{count_of(number, 'run')} trained on data with fingerprint {fingerprint}"
        lines.append(
            f"Pooled, but of other data: {what}, others of the same data.* on {usual}: {rows}"
        )
    return lines


def commit_lines(states: States) -> list[str]:
    """Say how many commits have computed the cells, in all stretches of their runs."""
    results = [state.result for _, state in states if state.result is not None]
    parts = (part for result in results for part in stretches(result.provenance))
    commits = {part.get("git_commit", "") for part in parts}
    several = f"The cells come from {len(commits)} commits, see the last table."
    return [several] * (len(commits) > 1)
