"""Analyse a scaling study: measured speed-up and efficiency, and what the capacity model predicts.

The model starts from the first point, and says where the server saturates at numbers of ranks that
were not run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from fedgmr_hpc.config.messages import must_be
from fedgmr_hpc.reporting.statistics import Summary, summarize
from fedgmr_hpc.runtime.timeline import read_timeline
from fedgmr_hpc.scaling.measure import Measured, make_system, measure
from fedgmr_hpc.scaling.model import (
    Demand,
    Saturation,
    System,
    fit_amdahl,
    fit_gustafson,
    karp_flatt,
    saturation,
    throughput_bound,
    variants,
)
from fedgmr_hpc.scaling.runs import Plan, Point, RankIdentity, read_identities, run_path
from fedgmr_hpc.scaling.simulation import simulate
from fedgmr_hpc.storage.reader import read_result
from fedgmr_hpc.storage.run_files import output_path, timeline_path

MAX_SIMULATED_RANKS = 4096
MAX_SIMULATED_CLIENTS = 20_000


@dataclass(frozen=True)
class PointSummary:
    """A point over its repeats.

    Speed-up and efficiency are relative to the first point of the same repeat; `predicted_per_s`
    follows from the first point's demands.
    """

    point: Point
    runs: tuple[Measured, ...]
    identities: tuple[RankIdentity, ...]
    q: float  # client ranks over those of the first point
    rounds_per_s: Summary
    speedup: Summary
    efficiency: Summary
    serial_frac: float  # of Karp and Flatt
    predicted_per_s: float
    bound_by: str


@dataclass(frozen=True)
class Simulation:
    """One variant of the measured system at many ranks of one clients-per-rank."""

    name: str
    num_ranks: tuple[int, ...]
    rounds_per_s: tuple[float, ...]
    saturation: Saturation


@dataclass(frozen=True)
class Scaling:
    """The content of a report."""

    plan: Plan
    points: tuple[PointSummary, ...]
    amdahl_frac: float  # NaN where it is no strong scaling
    gustafson_frac: float  # NaN where it is no weak scaling
    clients_per_rank: int  # of the simulations
    simulations: tuple[Simulation, ...]


def analyse(plan: Plan, folder: Path) -> Scaling:
    """Read all runs of a study, and predict what it did not run.

    Raises:
        ValueError: A result or timeline is missing, unfinished or too short.
    """
    runs = [_measure_point(plan, point, folder) for point in plan.points]
    base = runs[0]
    points = tuple(
        _summarize(plan, point, measured, base, read_identities(_output(folder, point)))
        for point, measured in zip(plan.points, runs, strict=True)
    )
    qs, speedups = [p.q for p in points], [p.speedup.mean for p in points]
    per_rank = max(1, round(base[0].num_clients / base[0].num_workers))
    if plan.kind == "strong":
        per_rank = max(1, round(runs[-1][0].num_clients / runs[-1][0].num_workers))
    return Scaling(
        plan=plan,
        points=points,
        amdahl_frac=fit_amdahl(qs, speedups) if plan.kind == "strong" else float("nan"),
        gustafson_frac=fit_gustafson(qs, speedups) if plan.kind == "weak" else float("nan"),
        clients_per_rank=per_rank,
        simulations=tuple(_simulate_variants(make_system(base[0]), per_rank)),
    )


def _measure_point(plan: Plan, point: Point, folder: Path) -> tuple[Measured, ...]:
    paths = [run_path(folder, point, repeat) for repeat in range(plan.repeats)]
    return tuple(
        measure(read_result(path), read_timeline(timeline_path(path)), plan.warmup_rounds)
        for path in paths
    )


def _output(folder: Path, point: Point) -> Path:
    return output_path(run_path(folder, point, 0))


def _summarize(
    plan: Plan,
    point: Point,
    runs: Sequence[Measured],
    base: Sequence[Measured],
    identities: Sequence[RankIdentity],
) -> PointSummary:
    q = runs[0].num_workers / base[0].num_workers
    speedups = [run.rounds_per_s / b.rounds_per_s for run, b in zip(runs, base, strict=True)]
    speedup = ratio_summary(speedups)
    system = _predicted_system(plan, runs[0], base)
    return PointSummary(
        point=point,
        runs=tuple(runs),
        identities=tuple(identities),
        q=q,
        rounds_per_s=ratio_summary([run.rounds_per_s for run in runs]),
        speedup=speedup,
        efficiency=ratio_summary([each / q for each in speedups]),
        serial_frac=karp_flatt(speedup.mean, q),
        predicted_per_s=simulate(system, runs[0].num_workers, runs[0].num_clients).rounds_per_s,
        bound_by=throughput_bound(system, runs[0].num_workers, runs[0].num_clients).by,
    )


def ratio_summary(values: Sequence[float]) -> Summary:
    """Return the geometric mean of rates or ratios above 0, with intervals of their logarithms.

    Raises:
        ValueError: There is none.
    """
    logs = summarize([math.log(value) for value in values])
    if logs is None:
        raise ValueError(must_be("rates", "given"))
    return Summary(
        num_values=len(values),
        mean=math.exp(logs.mean),
        minimum=min(values),
        maximum=max(values),
        bootstrap=_exponentials(logs.bootstrap),
        student=_exponentials(logs.student),
    )


def _exponentials(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def _predicted_system(plan: Plan, run: Measured, base: Sequence[Measured]) -> System:
    """Return a run's links and bytes with the core times of the first point, mean over repeats.

    Ranks of a strong or weak study move the first point's bytes; a sweep changes the bytes itself.
    """
    source = run if plan.kind not in ("strong", "weak") else base[0]
    demand = _mean_cores(source, base)
    return make_system(run, demand, plan.num_cores if run.num_hosts == 1 else 0)


def _mean_cores(source: Measured, base: Sequence[Measured]) -> Demand:
    """Return a run's demand with the mean core times of `base`."""
    names = ("core_s", "service_s", "merge_s", "train_s")
    means = {name: fmean(getattr(each.demand, name) for each in base) for name in names}
    return replace(source.demand, **means)


def _simulate_variants(system: System, per_rank: int) -> list[Simulation]:
    largest = max(1, min(MAX_SIMULATED_RANKS, MAX_SIMULATED_CLIENTS // per_rank))
    workers = [2**i for i in range(largest.bit_length())]
    return [
        Simulation(
            name=name,
            num_ranks=tuple(n + 1 for n in workers),
            rounds_per_s=tuple(simulate(each, n, n * per_rank).rounds_per_s for n in workers),
            saturation=saturation(each, per_rank),
        )
        for name, each in variants(system).items()
    ]
