"""The tables of what was tuned: what every value reached, what was chosen, and what that took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedgmr_hpc.reporting.tables import Table
from fedgmr_hpc.study.labels import Labels, label_of, title_of
from fedgmr_hpc.study.report.tables import Scale
from fedgmr_hpc.study.states import ENDED
from fedgmr_hpc.study.study_file import StudyFile
from fedgmr_hpc.study.tuning import Score, Spent, States, spent_by_row


def tuning_tables(
    study: StudyFile, states: States, scores: Sequence[Score], scale: Scale
) -> list[Table]:
    """Tabulate what was chosen and what that took; no table where nothing is tuned."""
    spent = spent_by_row(states)
    if not spent:
        return []
    rows = list(dict.fromkeys(cell.row for cell, _ in states))
    tried = {cell.row for cell, state in states if cell.is_trial and state.status in ENDED}
    scores = [score for score in scores if score.row in tried]
    known = {row: spent.get(row, Spent()) for row in rows if row in tried or row not in spent}
    return [_choices(study, scores, scale), _costs(known, scale)] if tried else []


def _choices(study: StudyFile, scores: Sequence[Score], scale: Scale) -> Table:
    is_alone = len({score.column for score in scores}) == 1
    heads = [*["condition"] * (not is_alone), "method", "values", "validation %", "chosen"]
    seeds = ", ".join(map(str, study.tune_seeds))
    return Table(
        name="tuning",
        title=f"Values tried, and validation accuracy (%) at {study.tuned_at_s():g} s",
        heads=heads,
        rows=[
            [
                *[scale.title(s.column)] * (not is_alone),
                scale.title(s.row),
                _title(s.values, study),
                _percent(s.validation),
                _mark(s, scores, study),
            ]
            for s in scores
        ],
        notes=[
            "Chosen for every method and condition on validation accuracy alone: the mean of the "
            f"last {study.last} evaluations, over trials of their own (seed {seeds}), which are in "
            "no other table or figure. At the edge: a key's least or greatest value was chosen; "
            "values beyond it may be better. No value differs, or the first of several equal: "
            "the trials do not say which is better, as before a first merge or plateau."
        ],
        num_seeds=f"{len(study.tune_seeds)} ({seeds})",
        command=scale.command,
        records=[
            {
                "condition": s.column,
                "method": s.row,
                "values": _label(s.values),
                "validation_accuracy": s.validation,
                "n": s.num_trials,
                "chosen": s.is_chosen,
                "num_equal": s.num_equal,
            }
            for s in scores
        ],
    )


def _label(values: Labels) -> str:
    return label_of(values, list(values))


def _title(values: Labels, study: StudyFile) -> str:
    return title_of(values, values, study.labels)


def _mark(score: Score, scores: Sequence[Score], study: StudyFile) -> str:
    """Say whether values were chosen, whether others were as good, and which of them lie at the
    edge of what was tried.
    """
    if not score.is_chosen:
        return ""
    place = (score.row, score.column)
    tried = [other.values for other in scores if (other.row, other.column) == place]
    if score.num_equal == len(tried) > 1:
        return "yes, no value differs"
    edges = [
        _title({key: value}, study)
        for key, value in score.values.items()
        if _is_end(value, [values[key] for values in tried if key in values])
    ]
    equal = f"the first of {score.num_equal} equal"
    at_edge = f"at the edge: {', '.join(edges)}"
    return ", ".join(["yes", *[equal] * (score.num_equal > 1), *[at_edge] * bool(edges)])


def _is_end(value: Any, tried: Sequence[Any]) -> bool:
    """Tell whether a number is the least or greatest of several, beside which null may stand."""
    numbers = [each for each in tried if each is not None]
    if value is None or not all(type(each) in (int, float) for each in numbers):
        return False
    return value in (min(numbers), max(numbers)) and min(numbers) < max(numbers)


def _costs(spent: Mapping[str, Spent], scale: Scale) -> Table:
    heads = ["method", "trials", "diverged", "steps", "MB", scale.seconds, "wall s"]
    return Table(
        name="tuning_costs",
        title="What the tuning took",
        heads=heads,
        rows=[[scale.title(row), *_amounts(each)] for row, each in spent.items()],
        notes=[
            _budget({scale.title(row): each.num_trials for row, each in spent.items()}),
            "Sums over the trials; MB: 10^6 bytes on the server's links, both directions; steps: "
            "local SGD steps behind the updates delivered. Other tables leave them out.",
        ],
        command=scale.command,
        records=[{"method": row, **vars(each)} for row, each in spent.items()],
    )


def _budget(trials: Mapping[str, int]) -> str:
    """Say whether all rows had the same number of trials."""
    if len(set(trials.values())) == 1:
        return f"Every method had the same budget: {next(iter(trials.values()))} trials."
    most = max(trials.values())
    fewer = ", ".join(f"{row} {number}" for row, number in trials.items() if number < most)
    return f"The budgets differ: {most} trials, but {fewer}."


def _amounts(spent: Spent) -> list[str]:
    return [
        str(spent.num_trials),
        str(spent.num_diverged),
        f"{spent.client_steps:,.0f}",
        f"{spent.bytes / 1e6:,.0f}",
        f"{spent.virtual_s:,.0f}",
        f"{spent.wall_s:,.0f}",
    ]


def _percent(accuracy: float) -> str:
    if accuracy == -math.inf:
        return "diverged"
    return f"{100 * accuracy:.2f}" if math.isfinite(accuracy) else "-"
