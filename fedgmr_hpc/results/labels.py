"""What runs are called beside each other, how they look in figures, and in which order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from fedgmr_hpc.config.choices.named_content import FILE_OF
from fedgmr_hpc.config.identity import Keys, flat, marks, method_label
from fedgmr_hpc.config.methods import AXES
from fedgmr_hpc.config.rules import is_used
from fedgmr_hpc.reporting.palette import Style, styles_of
from fedgmr_hpc.reporting.statistics import is_by
from fedgmr_hpc.reporting.words import part_of
from fedgmr_hpc.results.series import Run, Values
from fedgmr_hpc.results.tidy import varied_keys
from fedgmr_hpc.storage.reader import Result

MAX_KEYS = 3


def names_of(results: Sequence[Result]) -> list[str]:
    """Return what each run is called: its label, with its file where label and seed are shared,
    and with its folder where the file's name is shared, too.
    """
    names = labels_of([result.config for result in results])
    for parts in ([r.path.stem for r in results], [r.path.parent for r in results]):
        runs = [(name, r.config.get("seed")) for name, r in zip(names, results, strict=True)]
        names = [
            f"{name}: {part}" if runs.count(run) > 1 else name
            for name, run, part in zip(names, runs, parts, strict=True)
        ]
    return names


def labels_of(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what each run is called: all that makes it another one, but for its seed.

    A key of local training or of another axis is left out where all runs of a method have the same
    value: methods are tuned one by one, and their names say enough. Of more than MAX_KEYS keys
    those are left out that tell no more runs apart.

    Args:
        configs: nested values, as result files keep them.
    """
    known = marks()
    keys = [key for key in varied_keys(configs) if known.get(key, "run") == "run"]
    values = [flat(config) for config in configs]
    methods = [method_label(config, but=keys) for config in configs]
    labels = []
    for method, own in zip(methods, values, strict=True):
        same = [other for name, other in zip(methods, values, strict=True) if name == method]
        told = [key for key in keys if _differs(key, values if _is_of_the_task(key) else same)]
        told = [key for key in told if is_used(key, own)]
        told = told if len(told) <= MAX_KEYS else _enough(told, values)
        labels.append(", ".join([method, *(_part(key, own, values) for key in told)]))
    return labels


def _part(key: str, own: Keys, values: Sequence[Keys]) -> str:
    """Return a key's value in a label; in place of a digest the file that it is of, and the digest
    too where one name stands for several contents.
    """
    if key not in FILE_OF or own.get(key) is None:
        return part_of(key, own.get(key))
    name, digest = part_of(FILE_OF[key], own.get(FILE_OF[key])), own[key]
    contents = {
        each.get(key) for each in values if part_of(FILE_OF[key], each.get(FILE_OF[key])) == name
    }
    return name if len(contents) == 1 else f"{name} {digest[:6]}"


def _enough(keys: Sequence[str], values: Sequence[Keys]) -> list[str]:
    """Return keys, words first, that tell as many runs apart as all of them."""
    chosen: list[str] = []
    for key in sorted(keys, key=lambda key: not isinstance(values[0].get(key), str)):
        if _num_groups([*chosen, key], values) > _num_groups(chosen, values):
            chosen.append(key)
    return chosen


def _num_groups(keys: Sequence[str], values: Sequence[Keys]) -> int:
    return len({json.dumps([each.get(key) for key in keys]) for each in values})


def _is_of_the_task(key: str) -> bool:
    return key.partition(".")[0] not in AXES


def _differs(key: str, values: Sequence[Mapping[str, Any]]) -> bool:
    return any(each.get(key) != values[0].get(key) for each in values)


@dataclass(frozen=True)
class Rows:
    """What figures of the same runs have in common.

    Args:
        order: rows, in that of legends.
        styles: of every row.
        names: what a row is called where that is not the row itself.
        at_s: the comparison time, if there is one.
        last: evaluations up to it whose mean is compared.
    """

    order: Sequence[str]
    styles: Mapping[str, Style]
    names: Mapping[str, str] = field(default_factory=dict)
    at_s: float | None = None
    last: int = 1

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        at_s: float | None = None,
        last: int = 1,
        names: Mapping[str, str] | None = None,
    ) -> Rows:
        """Return the rows of runs: styled in their order, and named from the best one on."""
        styles = styles_of(run.row for run in runs)
        scores: dict[str, list[float]] = {row: [] for row in styles}
        for run in runs:
            scores[run.row].append(score_of(run, run.test, at_s, last))
        known = {row: [s for s in each if not math.isnan(s)] for row, each in scores.items()}
        means = {row: fmean(each) if each else -1.0 for row, each in known.items()}
        order = sorted(styles, key=lambda row: -round(means[row], 9))
        return cls(order, styles, names or {}, at_s, last)

    def name(self, row: str) -> str:
        """Return what a row is called."""
        return self.names.get(row, row)


def score_of(run: Run, values: Values, at_s: float | None, last: int) -> float:
    """Return the mean of the last values up to `at_s`, or up to the end; NaN where none is, or
    where the run ended before.
    """
    if at_s is not None and not run.covers(at_s):
        return np.nan
    known = np.isfinite(values) & is_by(run.times_s, np.inf if at_s is None else at_s)
    return float(values[known][-last:].mean()) if known.any() else np.nan
