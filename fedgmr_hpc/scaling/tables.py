"""Tables of a scaling study; memory in MB of 10^6 bytes, times as shares of the measured time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from fedgmr_hpc.reporting.statistics import Summary
from fedgmr_hpc.reporting.tables import Table
from fedgmr_hpc.runtime.timeline import CATEGORIES
from fedgmr_hpc.scaling.analysis import PointSummary, Scaling
from fedgmr_hpc.scaling.model import SERVER_STATIONS, Demand

PARTS = (*CATEGORIES, "idle")
VALUE_HEADS = {
    "strong": "ranks",
    "weak": "ranks",
    "clients-per-rank": "clients a rank",
    "density": "density",
    "bandwidth": "times the rates",
}


def make_tables(scaling: Scaling) -> list[Table]:
    """Return all tables of the report, in its order."""
    return [
        speedup_table(scaling),
        split_table(scaling),
        memory_table(scaling),
        demand_table(scaling),
        limit_table(scaling),
        rank_table(scaling),
    ]


def speedup_table(scaling: Scaling) -> Table:
    """Tabulate rates, speed-ups and efficiencies, measured and predicted."""
    heads = [VALUE_HEADS[scaling.plan.kind], "client ranks", "clients at a time", "client-rounds/s"]
    heads += ["speed-up", "efficiency", "Karp-Flatt", "predicted /s", "measured/predicted"]
    is_sweep = scaling.plan.kind not in ("strong", "weak")
    rows = [_speedup_row(p, is_sweep) + [p.bound_by] for p in scaling.points]
    few = "one run of each" if scaling.plan.repeats == 1 else f"{scaling.plan.repeats} runs of each"
    notes = [
        f"Geometric means over {few}; in brackets the 95 % interval (bootstrap, widened to "
        "Student's t, of logarithms), paired with the first line's run of the same turn.",
        "Karp-Flatt: the serial fraction that the speed-up means. Predicted: from the first "
        "line's times of cores, the bytes and the links' rates; predicted bound: the station that "
        "no order of work can relieve, or cycle where clients are too few to fill one.",
    ]
    return Table(
        "speedup", "Speed-up and efficiency", [*heads, "predicted bound"], rows, notes,
        records=[record for point in scaling.points for record in _records(point)],
    )  # fmt: skip


def _speedup_row(point: PointSummary, is_sweep: bool) -> list[str]:
    run = point.runs[0]
    return [
        f"{point.point.value:g}",
        str(run.num_workers),
        str(run.num_clients),
        _spread(point.rounds_per_s, "{:.3g}"),
        _spread(point.speedup, "{:.2f}"),
        "-" if is_sweep else _spread(point.efficiency, "{:.2f}"),
        "-" if is_sweep or math.isnan(point.serial_frac) else f"{point.serial_frac:.3f}",
        f"{point.predicted_per_s:.3g}",
        f"{point.rounds_per_s.mean / point.predicted_per_s:.2f}",
    ]


def _spread(summary: Summary, form: str) -> str:
    """Return the mean and, for several values, its interval."""
    mean, interval = form.format(summary.mean), summary.widest
    if interval is None:
        return mean
    return f"{mean} [{form.format(interval[0])}, {form.format(interval[1])}]"


def _records(point: PointSummary) -> list[dict[str, float]]:
    return [
        {"value": point.point.value, "ranks": run.num_ranks, "clients": run.num_clients,
         "repeat": repeat, "rounds": run.num_rounds, "client_rounds": run.num_updates,
         "seconds": run.seconds, "client_rounds_per_s": run.rounds_per_s}
        for repeat, run in enumerate(point.runs)
    ]  # fmt: skip


def mean_split(point: PointSummary, ranks: Sequence[int]) -> dict[str, float]:
    """Return the share of the measured time in each part, mean over ranks and repeats.

    Parts may overlap.
    """
    return {
        part: fmean(run.split[rank][part] / run.seconds for run in point.runs for rank in ranks)
        for part in PARTS
    }


def split_table(scaling: Scaling) -> Table:
    """Tabulate where the time of server and client ranks goes."""
    rows = []
    for point in scaling.points:
        workers = range(1, point.runs[0].num_ranks)
        for name, ranks in (("server", [0]), ("client ranks, mean", list(workers))):
            split = mean_split(point, ranks)
            shares = [f"{100 * split[part]:.1f}" for part in PARTS]
            rows.append([f"{point.point.value:g}", name, *shares])
    notes = [
        "Of the measured time. Parts may overlap, so a line's sum may exceed 100. The "
        "server's idle is work outside the named parts. On the wall clock client ranks wait in "
        "idle, and send is mostly the links' throttle.",
    ]
    records = [
        {"value": point.point.value, "repeat": repeat, "rank": rank, **seconds}
        for point in scaling.points
        for repeat, run in enumerate(point.runs)
        for rank, seconds in run.split.items()
    ]
    heads = [VALUE_HEADS[scaling.plan.kind], "rank", *PARTS]
    return Table("split", "Where the time goes (%)", heads, rows, notes, records=records)


def memory_table(scaling: Scaling) -> Table:
    """Tabulate the resident memory of the ranks."""
    heads = [VALUE_HEADS[scaling.plan.kind], "server at the end", "server's most"]
    heads += ["client rank, mean", "client rank, most", "all ranks"]
    rows = []
    for point in scaling.points:
        clients = [v for run in point.runs for rank, v in run.rss_bytes.items() if rank]
        values = [
            fmean(run.rss_bytes[0] for run in point.runs),
            max(max(run.server_peak_bytes, run.rss_bytes[0]) for run in point.runs),
            fmean(clients),
            max(clients),
            fmean(sum(run.rss_bytes.values()) for run in point.runs),
        ]
        rows.append([f"{point.point.value:g}", *(f"{value / 1e6:.0f}" for value in values)])
    notes = ["Resident; 1 MB is 10^6 bytes. Libraries that ranks share count in each of them."]
    return Table("memory", "Memory (MB)", heads, rows, notes)


def demand_table(scaling: Scaling) -> Table:
    """Tabulate what a client-round takes, which the prediction starts from."""
    heads = [VALUE_HEADS[scaling.plan.kind], "client core (ms)", "of it training (ms)"]
    heads += ["server core (ms)", "down (kB)", "up (kB)", "server sends (kB)", "takes in (kB)"]
    rows = [[f"{p.point.value:g}", *_demand_cells([r.demand for r in p.runs])]
            for p in scaling.points]  # fmt: skip
    notes = [
        "Means a client-round. One broadcast serves many clients, so the server sends less than "
        "they receive. Core times are elapsed: a busy machine makes them longer."
    ]
    return Table("demand", "What a client-round takes", heads, rows, notes)


def _demand_cells(demands: Sequence[Demand]) -> list[str]:
    def mean(name: str) -> float:
        return fmean(getattr(demand, name) for demand in demands)

    times = [f"{1e3 * mean(name):.2f}" for name in ("core_s", "train_s", "service_s")]
    names = ("down_bytes", "up_bytes", "server_up_bytes", "server_down_bytes")
    return times + [f"{mean(name) / 1e3:.1f}" for name in names]


def limit_table(scaling: Scaling) -> Table:
    """Tabulate where the server saturates, and what would lift that."""
    heads = ["server", "busy all the time from ranks", "at most client-rounds/s", "by"]
    shown = [s for s in scaling.simulations if s.num_ranks]
    largest = shown[0].num_ranks[-1]
    rows = [
        [s.name, _count(s.saturation.num_workers + 1), _rate(s.saturation.rounds_per_s),
         s.saturation.station, _rate(s.rounds_per_s[-1])]
        for s in shown
    ]  # fmt: skip
    notes = [
        f"From the first line's demands with {scaling.clients_per_rank} clients a rank and a core "
        "and link for every rank. Saturated: seconds of the server's busiest station "
        f"({', '.join(SERVER_STATIONS)}) a client-round x client-rounds/s that the ranks could "
        "deliver = 1. Aggregators merge the updates of their ranks and pass on one; their own "
        "limits and their effect on learning are not modelled.",
        "Rounds that wait for all clients (barrier, window) reach the limit only in the long run: "
        "nothing is served while all train.",
    ]
    heads.append(f"simulated at {largest} ranks")
    return Table("limit", "Where the server saturates, and what would lift it", heads, rows, notes)


def _count(value: float) -> str:
    return "never" if math.isinf(value) else f"{math.ceil(value):,}"


def _rate(value: float) -> str:
    return "no limit" if math.isinf(value) else f"{value:,.3g}" if value < 1e3 else f"{value:,.0f}"


def rank_table(scaling: Scaling) -> Table:
    """Tabulate threads and cores of every rank, from what it printed."""
    heads = [VALUE_HEADS[scaling.plan.kind], "rank", "host", "device", "threads", "cores"]
    rows = [
        [f"{p.point.value:g}", str(i.rank), i.host, i.device, str(i.num_threads), i.cores]
        for p in scaling.points
        for i in p.identities
    ]
    notes = ["Cores that the rank may run on: one where the node has a core for every rank."]
    return Table("ranks", "Threads and cores", heads, rows, notes)
