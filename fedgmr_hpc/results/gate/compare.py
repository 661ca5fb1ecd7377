"""Runs against a baseline: what has become worse, and what has changed that must not.

Two runs are of one pair where all that makes up a run is the same: the configuration, its limits
and the seed (config/identity.py). Repeats count by their median. Performance may be worse by a
tolerance; wall times are judged only on the same machine. On the virtual clock, the same models of
processor and GPU and the same libraries (SAME) the program owes the same bits, whatever its speed,
so that every dataset that differs is told, better or not; of GPUs it does with
`train.deterministic` alone. All stretches of a run that was resumed count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.reporting.words import count_of
from fedgmr_hpc.results.gate.figures import (
    FIGURES,
    Figure,
    gpus_of,
    key_of,
    machines_of,
)
from fedgmr_hpc.results.stretches import course_of, values_of
from fedgmr_hpc.results.watch import find_files
from fedgmr_hpc.storage.reader import (
    Result,
    deterministic_columns,
    differing_columns,
    read_result,
)

TOLERANCE_FRAC, POINTS = 0.1, 1.0
# Of provenance, what bits depend on beside the program; files that do not say it are older.
SAME = ("cpu_model", "cpu_capability", "version_torch", "version_numpy", "kernels")


@dataclass(frozen=True, slots=True)
class Limits:
    """By how much a figure may be worse: a share of the value before, points of an accuracy."""

    tolerance_frac: float = TOLERANCE_FRAC
    points: float = POINTS

    def of(self, figure: Figure) -> float:
        """Return the limit of a figure."""
        return self.points if figure.unit == "%" else self.tolerance_frac


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of a pair; `is_judged` is False where another machine has measured it."""

    figure: Figure
    before: float
    now: float
    limit: float
    is_judged: bool

    @property
    def change(self) -> float:
        """By how much it is more: points of an accuracy, else a share; NaN where unknown."""
        if self.figure.unit == "%":
            return self.now - self.before
        if self.before == self.now:
            return 0.0
        return self.now / self.before - 1 if self.before else math.inf

    @property
    def is_worse(self) -> bool:
        """Whether it is judged, and worse by more than its limit or no longer known."""
        if not self.is_judged or math.isnan(self.before):
            return False
        worse_by = self.change if self.figure.better == "lower" else -self.change
        return not worse_by <= self.limit


@dataclass(frozen=True, slots=True)
class Pair:
    """Repeats of one run, now and before.

    Attributes:
        is_exact: whether the bits are owed.
        changed: the datasets whose bits have changed though they are owed.
        differing: in words, what differs that bits depend on, so that they are not owed.
    """

    now: list[Result]
    before: list[Result]
    figures: list[Compared]
    is_exact: bool
    changed: list[str]
    differing: list[str]

    @property
    def name(self) -> str:
        """The name of the run's file, the first of now."""
        return self.now[0].path.stem


@dataclass(frozen=True, slots=True)
class Verdict:
    """All pairs, the runs of the baseline that are gone, and the new ones."""

    pairs: list[Pair]
    gone: list[Result]
    new: list[Result]
    limits: Limits

    def worse(self) -> Iterator[tuple[Pair, Compared]]:
        """Return the figures that are worse by more than their limit."""
        return ((pair, each) for pair in self.pairs for each in pair.figures if each.is_worse)

    @property
    def is_passed(self) -> bool:
        """Whether nothing is worse, changed or gone."""
        return not (any(self.worse()) or any(pair.changed for pair in self.pairs) or self.gone)


def read_runs(words: Sequence[str]) -> list[Result]:
    """Return the runs that words name: files, patterns, or folders of them.

    Raises:
        ValueError: a word names nothing, or a file cannot be read or has not finished.
    """
    runs = [read_result(path) for path in find_files(words)]
    for run in runs:
        if run.status != "finished":
            raise ValueError(must_be(f"results {run.path}: status", "'finished'", run.status))
    return runs


def compare_runs(now: Sequence[Result], before: Sequence[Result], limits: Limits) -> Verdict:
    """Compare finished runs with those of a baseline.

    Raises:
        ValueError: no two are of one configuration and seed.
    """
    found, known = _by_identity(now), _by_identity(before)
    pairs = [_pair(found[key], known[key], limits) for key in found if key in known]
    if not pairs:
        need = "name a run of the same configuration and seed as one of the results"
        raise ValueError(must("--baseline", need, found=count_of(len(before), "other run")))
    gone = [each for key in known if key not in found for each in known[key]]
    new = [each for key in found if key not in known for each in found[key]]
    return Verdict(pairs, gone, new, limits)


def _by_identity(results: Iterable[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[key_of(result)].append(result)
    return groups


def _pair(now: list[Result], before: list[Result], limits: Limits) -> Pair:
    is_one_machine = len({m for each in (*now, *before) for m in machines_of(each)}) == 1
    figures = [
        Compared(
            figure,
            figure.median(before),
            figure.median(now),
            limits.of(figure),
            is_one_machine or not figure.is_of_machine,
        )
        for figure in FIGURES
    ]
    repeats = _repeats(now[0])
    differing = _differing(now, before) if repeats else []
    is_exact = repeats and not differing
    changed = {name for each in now for name in _changed(before[0], each)} if is_exact else set()
    return Pair(now, before, figures, is_exact, sorted(changed), differing)


def _repeats(result: Result) -> bool:
    """Return whether a run has the same bits each time, on one machine."""
    config = result.config
    is_exact = not gpus_of(result) or config.get("train", {}).get("deterministic", True)
    return config.get("clock", "virtual") == "virtual" and bool(is_exact)


def _differing(now: Sequence[Result], before: Sequence[Result]) -> list[str]:
    """Say what bits depend on that is not one for all stretches of all runs."""
    runs = [*now, *before]
    found = [
        f"{key} {_courses(now, key)}, before {_courses(before, key)}"
        for key in SAME
        if len({v for run in runs for v in values_of(run.provenance, key)} - {""}) > 1
    ]
    if len({tuple(gpus_of(run)) for run in runs}) > 1:
        texts = (joined(" and ".join(gpus_of(r)) or "none" for r in each) for each in (now, before))
        found.append("GPUs {}, before {}".format(*texts))
    return found


def _courses(runs: Sequence[Result], key: str) -> str:
    return joined(course_of(run.provenance, key, "unknown") for run in runs)


def joined(texts: Iterable[str]) -> str:
    """Return different texts of repeats, each once."""
    return " or ".join(dict.fromkeys(texts))


def _changed(before: Result, now: Result) -> list[str]:
    """Return the datasets that differ; those that only one file has came with a version."""
    both = deterministic_columns(before).keys() & deterministic_columns(now).keys()
    return [name for name in differing_columns(before, now) if name in both]
