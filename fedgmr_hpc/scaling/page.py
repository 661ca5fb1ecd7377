"""The report of a scaling study: scaling.md, one self-contained scaling.html, tables, figures."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from fedgmr_hpc.config.identity import method_label
from fedgmr_hpc.reporting.figures import save
from fedgmr_hpc.reporting.pages import Page, Picture, write_page
from fedgmr_hpc.reporting.tables import Table, as_text, write_tables
from fedgmr_hpc.reporting.words import count_of
from fedgmr_hpc.scaling.analysis import Scaling
from fedgmr_hpc.scaling.measure import Measured
from fedgmr_hpc.scaling.plots import draw_limit, draw_memory, draw_speedup, draw_split
from fedgmr_hpc.scaling.runs import RankIdentity, differing_keys
from fedgmr_hpc.scaling.tables import make_tables

FEW_S = 5.0  # a measured time below is too short to be trusted
SAME = ("cpu_model", "git_commit")  # of all runs, since they are compared
FACTS = ("git_commit", "version_torch", "cpu_model", "hostname", "start_utc")


def write_report(scaling: Scaling, folder: Path) -> str:
    """Write the report into a study's folder; return the tables as text and where the page is.

    Raises:
        OSError: `folder` cannot be written.
    """
    tables = make_tables(scaling)
    figures = {
        "speedup": draw_speedup(scaling),
        "split": draw_split(scaling),
        "memory": draw_memory(scaling),
        "limit": draw_limit(scaling),
    }
    pictures = {name: save(figure, folder / f"{name}.png") for name, figure in figures.items()}
    write_tables(tables, folder, latex=False)
    parts: list[Table | Picture] = []
    for table in tables:
        parts.append(table)
        if table.name in pictures:
            parts.append(Picture(f"{table.title}: figure", pictures[table.name]))
    head = headlines(scaling)
    page = write_page(Page(title(scaling), head, parts=parts), folder, "scaling")
    shown = [f"{table.title}\n{as_text(table.heads, table.rows)}\n" for table in tables[:-1]]
    return "\n".join([*shown, *head, f"report: {page}"])


def title(scaling: Scaling) -> str:
    """Say what was varied in which configuration."""
    config = scaling.points[0].runs[0].config
    kinds = {"strong": "Strong scaling", "weak": "Weak scaling"}
    kind = kinds.get(scaling.plan.kind, f"Sweep of {scaling.plan.kind}")
    method = method_label(config)
    where = f"{config.data.name}, {config.model.name}, {method}, {config.clock} clock"
    return f"{kind}: {where}"


def headlines(scaling: Scaling) -> list[str]:
    """Say what a reader must know first."""
    plan, last = scaling.plan, scaling.points[-1]
    limit = scaling.simulations[0].saturation
    lines = [
        f"{count_of(plan.repeats, 'run')} of each of {len(plan.points)} points, taken in turn; "
        f"{plan.warmup_rounds} warm-up rounds left out; one thread a rank; {_place(scaling)}."
    ]
    for name, serial_frac in (
        ("Amdahl", scaling.amdahl_frac),
        ("Gustafson", scaling.gustafson_frac),
    ):
        if not math.isnan(serial_frac):
            lines.append(
                f"{last.runs[0].num_workers} client ranks do {last.speedup.mean:.2f} times the "
                f"client-rounds per second of {scaling.points[0].runs[0].num_workers}; serial "
                f"fraction by {name}'s law {serial_frac:.3f}."
            )
    if not math.isinf(limit.num_workers):
        clients = count_of(scaling.clients_per_rank, "client")
        lines.append(
            f"The server saturates at about {math.ceil(limit.num_workers) + 1:,} ranks of "
            f"{clients} each, at {limit.rounds_per_s:.4g} client-rounds/s, by "
            f"its {limit.station.removeprefix('server ')}."
        )
    return lines + _warnings(scaling)


def _place(scaling: Scaling) -> str:
    num_hosts = max(point.runs[0].num_hosts for point in scaling.points)
    machine = f"machine of {scaling.plan.num_cores} cores"
    return machine if num_hosts == 1 else f"up to {num_hosts} hosts, started on a {machine}"


def _warnings(scaling: Scaling) -> list[str]:
    """Say what limits the worth of the numbers."""
    lines = _differing(scaling)
    mixed = [p.runs[0].num_ranks for p in scaling.points if _share_cores(p.identities)]
    if mixed:
        which = ", ".join(map(str, mixed))
        lines.append(f"Not bound to cores of their own: {which} ranks.")
    shortest_s = min(run.seconds for p in scaling.points for run in p.runs)
    if shortest_s < FEW_S:
        lines.append(
            f"The shortest run was measured for {shortest_s:.2g} s only: raise run.max_rounds."
        )
    overran = max(run.overrun_frac for p in scaling.points for run in p.runs)
    if overran > 0:
        lines.append(
            f"Up to {100 * overran:.1f} % of a run's client-steps took longer than modelled: cores "
            "were short; raise time_scale."
        )
    dropped = sum(run.num_dropped for p in scaling.points for run in p.runs)
    if dropped:
        lines.append(
            f"{count_of(dropped, 'span')} were dropped and count as idle, so that shares of the "
            "time, core times and predictions are wrong: lower run.max_rounds."
        )
    facts = scaling.points[0].runs[0].provenance
    known = "; ".join(f"{key} {facts[key]}" for key in FACTS if facts.get(key))
    overrides = shlex.join(scaling.plan.overrides) or "without overrides"
    return [
        *lines,
        f"Configuration {' and '.join(scaling.plan.sources) or 'digits'}, {overrides}; {known}.",
    ]


def _differing(scaling: Scaling) -> list[str]:
    """Say what else than the point differs between runs that are compared.

    A rank that is bound knows of one core only, so the number counts among the runs of a point.
    """
    runs = [run for point in scaling.points for run in point.runs]
    parts = [_several(key, runs) for key in SAME]
    for point in scaling.points:
        first, *others = point.runs
        parts += [_several("num_cores", point.runs)]
        parts += [key for other in others for key in differing_keys(first.config, other.config)]
    named = "; ".join(dict.fromkeys(filter(None, parts)))
    return [f"Not all runs are alike, so that ratios mislead: {named}."] if named else []


def _several(key: str, runs: Sequence[Measured]) -> str:
    """Return a fact with its values where runs have several."""
    values = sorted({run.provenance[key] for run in runs if run.provenance.get(key)})
    return f"{key} {' and '.join(values)}" if len(values) > 1 else ""


def _share_cores(identities: Sequence[RankIdentity]) -> bool:
    """Tell whether two ranks of a host may run on the same core."""
    cores = [(each.host, core) for each in identities for core in each.cores.split()]
    return len(set(cores)) < len(cores)
