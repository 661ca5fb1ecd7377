"""The tables of what a study's methods reach: the whole model, the clients' own, differences.

The best of a column is marked, and a note names the rows that its seeds cannot tell from it: their
difference, paired by seed, has no 95 % interval below zero, which does not say that they are equal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedgmr_hpc.reporting.paired import MeanTest, mean_test
from fedgmr_hpc.reporting.statistics import window_around
from fedgmr_hpc.reporting.tables import Table
from fedgmr_hpc.results.series import Run
from fedgmr_hpc.study.measures import columns_of, rows_of, select_runs
from fedgmr_hpc.study.report.tables import Scale, seeds_of, select_column

LEGACY_NUM = 10  # evaluations on either side of T (docs/method.md#reported-accuracy)
SPREADS = {
    "sd": "standard deviation over the seeds",
    "interval": "half of Student's 95 % interval of the mean",
}
MARKED = "Bold (a star on a terminal): the best mean of the rows with all seeds."
NOT_TOLD = "Not told from it, by Student's 95 % interval of the paired differences"
BySeed = dict[int, float]
OF = {"test": "whole model", "own_mean": "own sub-models", "own_worst": "least class"}
GAP = "own_mean_minus_test"


def accuracy_table(runs: Sequence[Run], scale: Scale) -> Table:
    """Tabulate the test accuracy at the comparison time."""
    columns = columns_of(runs)
    values = {
        (row, column): _values(select_runs(runs, row, column), scale)
        for row in rows_of(runs)
        for column in columns
    }
    return _table(
        runs,
        scale,
        values,
        keys=columns,
        heads=heads_of(columns, scale),
        name="test_accuracy",
        title=f"Test accuracy (%) at T = {scale.at_s:g} s of {scale.time}",
        notes=[f"Each run: {scale.when}; a run that ended before T has no value."],
    )


def own_table(runs: Sequence[Run], scale: Scale) -> Table | None:
    """Tabulate the accuracy of the clients' own sub-models beside the whole model's.

    Each condition is a table of its own, one below the other; None where nothing was scored.
    """
    columns = columns_of(runs)
    places = [(row, column) for row in rows_of(runs) for column in columns]
    most = max((len(_values(select_runs(runs, *place), scale)) for place in places), default=0)
    parts = {each: _own_part(select_column(runs, each), scale, most) for each in columns}
    known = {column: part for column, part in parts.items() if part is not None}
    if not known:
        return None
    first, is_alone = next(iter(known.values())), len(columns) == 1
    rows = [[scale.title(c), *row] for c, part in known.items() for row in part.rows]
    starts = itertools.accumulate((len(part.rows) for part in known.values()), initial=0)
    marked = {
        (start + i, j + 1)
        for start, part in zip(starts, known.values(), strict=False)
        for i, j in part.marked
    }
    return replace(
        first,
        heads=first.heads if is_alone else ["condition", *first.heads],
        rows=first.rows if is_alone else rows,
        marked=first.marked if is_alone else marked,
        notes=first.notes if is_alone else _notes_of_all(known, scale),
        num_seeds=seeds_of(runs),
        records=[{"condition": c, **each} for c, part in known.items() for each in part.records],
    )


def _notes_of_all(parts: Mapping[str, Table], scale: Scale) -> list[str]:
    """Return the notes of all conditions once, those on the best with their condition."""
    notes = [
        f"{scale.title(column)}: {note}" if note.startswith(MARKED) else note
        for column, part in parts.items()
        for note in part.notes
    ]
    return list(dict.fromkeys(notes))


def _own_part(runs: Sequence[Run], scale: Scale, most: int) -> Table | None:
    """Tabulate the runs of one condition, of which another may have `most` seeds."""
    rows = rows_of(runs)
    found = {(row, of): _values(select_runs(runs, row), scale, of) for row in rows for of in OF}
    if not any(values for (_, of), values in found.items() if of != "test"):
        return None
    gaps = {(row, GAP): _minus(found[row, "own_mean"], found[row, "test"]) for row in rows}
    return _table(
        runs,
        scale,
        found | gaps,
        keys=[*OF, GAP],
        heads=[*OF.values(), "own - whole"],
        name="own_submodels",
        title="Test accuracy (%) of the whole model and of the clients' own sub-models at "
        f"T = {scale.at_s:g} s",
        notes=[
            f"Each run: {scale.when}. Own: the server's model cut to the density with which a "
            "client begins, mean over the clients; least class: the clients of the density that "
            "has the least (eval.submodels). Methods without sub-models send everybody the whole "
            "model. Own - whole, paired: below zero, what clients lose with their own densities."
        ],
        signed=(GAP,),
        key_name="of",
        most=most,
    )


def difference_table(runs: Sequence[Run], scale: Scale) -> Table | None:
    """Tabulate paired differences to the reference row; None without one or its runs."""
    reference = scale.reference
    if reference is None or reference not in rows_of(runs):
        return None
    columns = columns_of(runs)
    values = {
        (row, column): _paired(runs, row, reference, column, scale)
        for row in rows_of(runs)
        if row != reference
        for column in columns
    }
    return _table(
        [run for run in runs if run.row != reference],
        replace(scale, spread="interval"),
        values,
        keys=columns,
        heads=heads_of(columns, scale, "difference"),
        name="differences",
        title=f"Test accuracy minus that of {scale.title(reference)} (points) at "
        f"T = {scale.at_s:g} s",
        notes=["Paired: same seed and condition. An interval without zero: a difference at 5 %."],
        signed=columns,
    )


def legacy_table(runs: Sequence[Run], scale: Scale) -> Table | None:
    """Return the number that the release reports, or None where no run goes past T.

    See docs/method.md#reported-accuracy.
    """
    lowest = min((run.seed for run in runs), default=0)
    shown: dict[tuple[str, str], tuple[float, float]] = {}
    for run in runs:
        if run.seed == lowest:
            value = window_around(run.refresh_times_s, run.refresh_test, scale.at_s, LEGACY_NUM)
            shown[run.row, run.column] = value
    if all(math.isnan(mean) for mean, _ in shown.values()):
        return None
    columns = columns_of(runs)
    heads = heads_of(columns, scale)
    rows = [
        [scale.title(row), *(_plus_minus(shown.get((row, column))) for column in columns)]
        for row in rows_of(runs)
    ]
    return Table(
        name="legacy",
        title=f"Test accuracy (%) as the release reports it, around {scale.at_s:g} s",
        heads=["method", *heads],
        rows=rows,
        notes=[
            f"Seed {lowest} alone: mean and standard deviation over {LEGACY_NUM} evaluations "
            "before and after T; the deviation is over time, not over seeds. The release also "
            "takes the greater of two models' accuracies; only the server's is recorded here."
        ],
        num_seeds="1",
        command=scale.command,
    )


def heads_of(columns: Sequence[str], scale: Scale, alone: str = "accuracy") -> list[str]:
    """Return the heads of conditions; one condition is said in the caption."""
    return [alone] if len(columns) == 1 else [scale.title(column) for column in columns]


def _values(runs: Sequence[Run], scale: Scale, of: str = "test") -> BySeed:
    """Return the accuracy of each seed that has one, in percent."""
    found = {run.seed: 100 * run.accuracy_at(scale.at_s, scale.last, of) for run in runs}
    return {seed: value for seed, value in found.items() if math.isfinite(value)}


def _paired(runs: Sequence[Run], a: str, b: str, column: str, scale: Scale) -> BySeed:
    """Return the difference of each seed that both rows have."""
    of_a, of_b = (_values(select_runs(runs, row, column), scale) for row in (a, b))
    return _minus(of_a, of_b)


def _minus(a: BySeed, b: BySeed) -> BySeed:
    return {seed: a[seed] - b[seed] for seed in a if seed in b}


def best_rows(values: Mapping[str, BySeed]) -> list[str]:
    """Return the best of the rows with all seeds, then those not told from it."""
    seeds = {seed for each in values.values() for seed in each}
    whole = [row for row, each in values.items() if each.keys() == seeds]
    if len(whole) < 2 or len(seeds) < 2:
        return []
    best = max(whole, key=lambda row: sum(values[row].values()))
    others = [row for row in whole if row != best]
    return [best, *(row for row in others if _is_equal(_minus(values[row], values[best])))]


def _note_on_best(best: Mapping[str, Sequence[str]], scale: Scale) -> list[str]:
    """Say what is marked, and which rows are not told from it: by head, where heads are several."""
    if not any(best.values()):
        return []
    near = {head: ", ".join(map(scale.title, rows[1:])) for head, rows in best.items() if rows[1:]}
    named = list(near.values()) if len(best) == 1 else [f"{head}: {n}" for head, n in near.items()]
    return [f"{MARKED} {NOT_TOLD}: {'; '.join(named)}." if near else MARKED]


def _is_equal(differences: BySeed) -> bool:
    test = mean_test(list(differences.values()))
    return test is not None and (test.interval is None or test.interval[1] >= 0)


def _table(
    runs: Sequence[Run],
    scale: Scale,
    values: Mapping[tuple[str, str], BySeed],
    *,
    keys: Sequence[str],
    heads: Sequence[str],
    name: str,
    title: str,
    notes: Sequence[str],
    signed: Sequence[str] = (),
    key_name: str = "condition",
    most: int = 0,
) -> Table:
    """Make a table of means over seeds: rows of `runs`, columns `keys`, those `signed` unmarked.

    A value of fewer seeds than any other, or than `most`, says how many it has.
    """
    rows = rows_of(runs)
    tests = {place: mean_test(list(found.values())) for place, found in values.items()}
    most = max([most, *(test.num_values for test in tests.values() if test)])
    best = {
        key: [] if key in signed else best_rows({row: values[row, key] for row in rows})
        for key in keys
    }
    marked = {(rows.index(best[key][0]), j) for j, key in enumerate(keys, 1) if best[key]}
    by_head = {head: best[key] for head, key in zip(heads, keys, strict=True) if key not in signed}
    return Table(
        name=name,
        title=title,
        heads=["method", *heads],
        rows=[
            [
                scale.title(row),
                *(_shown(tests[row, key], scale, most, key in signed) for key in keys),
            ]
            for row in rows
        ],
        notes=[
            _spread_note(scale, most),
            *notes,
            *_note_on_best(by_head, scale),
            *_setting(scale),
        ],
        num_seeds=seeds_of(runs),
        command=scale.command,
        records=[
            {"method": row, key_name: key, **_numbers(tests[row, key])}
            for row in rows
            for key in keys
        ],
        marked=marked,
    )


def _shown(test: MeanTest | None, scale: Scale, most: int, is_signed: bool) -> str:
    if test is None:
        return "-"
    rounded = round(test.mean, 2) + 0.0  # without the sign of a zero
    mean = f"{rounded:+.2f}" if is_signed else f"{rounded:.2f}"
    spread = test.sd if scale.spread == "sd" else test.half
    scatter = "" if math.isnan(spread) else f" \u00b1 {spread:.2f}"
    return f"{mean}{scatter}{f' ({test.num_values})' * (test.num_values < most)}"


def _spread_note(scale: Scale, most: int) -> str:
    if most < 2:
        return "One seed: no spread is known." if most else "No run has a value yet."
    fewer = "in brackets the number of seeds where it is less"
    return f"Mean \u00b1 {SPREADS[scale.spread]}, n = {most}; {fewer}."


def _setting(scale: Scale) -> list[str]:
    return [f"All runs: {scale.setting}."] if scale.setting else []


def _numbers(test: MeanTest | None) -> dict[str, Any]:
    if test is None:
        return {"n": 0}
    low, high = test.interval or ("", "")
    return {"n": test.num_values, "mean": test.mean, "sd": test.sd, "low": low, "high": high}


def _plus_minus(value: tuple[float, float] | None) -> str:
    if value is None or math.isnan(value[0]):
        return "-"
    return f"{100 * value[0]:.2f} \u00b1 {100 * value[1]:.2f}"
