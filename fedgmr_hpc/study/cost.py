"""Estimate how long cells will take, from what their methods' results have taken.

A pace is measured for each method, since their rounds differ: wall seconds and virtual seconds of
one round. A cell runs to `run.max_rounds` or `run.max_time_s`, whichever comes first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.results.series import end_s
from fedgmr_hpc.storage.reader import Result
from fedgmr_hpc.study.cells import Cell

START_S = 4.0  # a process, its imports and its data


@dataclass(frozen=True)
class Pace:
    """What one round takes, in wall and in virtual seconds."""

    wall_s: float
    virtual_s: float


def pace_of(result: Result) -> Pace | None:
    """Return the mean pace of a run from its first merge on; None before its second round."""
    merges = result.merges
    rounds = int(merges["round"][-1] - merges["round"][0]) if len(merges["round"]) else 0
    if not rounds:
        return None
    wall_s, now_s = (end_s(result, name) - float(merges[name][0]) for name in ("wall_s", "now_s"))
    return Pace(wall_s / rounds, now_s / rounds)


def mean_paces(runs: Iterable[tuple[str, Result]]) -> dict[str, Pace]:
    """Return the mean pace of each method over pairs (method, result)."""
    found: dict[str, list[Pace]] = {}
    for method, result in runs:
        if pace := pace_of(result):
            found.setdefault(method, []).append(pace)
    return {
        method: Pace(fmean(p.wall_s for p in paces), fmean(p.virtual_s for p in paces))
        for method, paces in found.items()
    }


def cell_wall_s(config: Config, paces: Mapping[str, Pace]) -> float:
    """Return the wall seconds of a whole cell; a method without a pace gets the mean one."""
    pace = paces.get(config.method) or _mean(paces.values())
    rounds = float(config.run.max_rounds)
    if config.run.max_time_s is not None and pace.virtual_s > 0:
        rounds = min(rounds, config.run.max_time_s / pace.virtual_s)
    return START_S + rounds * pace.wall_s


def remaining_s(
    cells: Sequence[tuple[Cell, float]], paces: Mapping[str, Pace], max_parallel: int
) -> float:
    """Return the wall seconds until all (cell, share done) have ended; NaN without any pace."""
    if not paces:
        return math.nan
    each = [cell_wall_s(cell.config, paces) * (1 - part) for cell, part in cells]
    return max(max(each, default=0.0), sum(each) / max_parallel)


def _mean(paces: Iterable[Pace]) -> Pace:
    known = list(paces)
    return Pace(fmean(p.wall_s for p in known), fmean(p.virtual_s for p in known))
