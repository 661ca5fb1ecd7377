"""Measure one run of a scaling study: rate, time split, memory, demands of a client-round.

Everything is taken between the end of the warm-up rounds and the last merge. The timeline's clock
starts with the server's first span, the store's `wall_s` a few milliseconds earlier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgmr_hpc.config.choices.registry import ADMISSIONS
from fedgmr_hpc.config.files import make_config
from fedgmr_hpc.config.messages import must, must_be
from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.results.series import lost_ranks
from fedgmr_hpc.runtime.rank_state import keeps_memories
from fedgmr_hpc.runtime.timeline import RankTrace, breakdown
from fedgmr_hpc.scaling.model import Demand, Rates, System
from fedgmr_hpc.storage.reader import Result

Split = Mapping[int, Mapping[str, float]]  # seconds by rank and category of timeline.CATEGORIES
WORKING = ("compute", "serialise", "merge", "evaluate")


@dataclass(frozen=True)
class Measured:
    """One run after its warm-up.

    Attributes:
        num_clients: that take part at a time.
        num_updates: client-rounds merged in `seconds`.
        rss_bytes: resident memory of each rank at the end.
        server_peak_bytes: the most the server had after any merge.
        overrun_frac: share of the client-steps that took longer than the wall clock gives them.
        num_dropped: spans that the timeline lacks, whose time counts as idle.
    """

    num_ranks: int
    num_clients: int
    num_rounds: int
    num_updates: int
    seconds: float
    split: Split
    rss_bytes: Mapping[int, int]
    server_peak_bytes: int
    num_hosts: int
    overrun_frac: float
    num_dropped: int
    demand: Demand
    config: Config
    provenance: Mapping[str, str]

    @property
    def rounds_per_s(self) -> float:
        """Client-rounds per wall second."""
        return self.num_updates / self.seconds

    @property
    def num_workers(self) -> int:
        """Client ranks."""
        return self.num_ranks - 1


def measure(result: Result, traces: Sequence[RankTrace], warmup_rounds: int) -> Measured:
    """Return the measurement of a finished run with its timeline.

    Raises:
        ValueError: It is not finished, has one rank or lost one, or has no merge after the
            warm-up.
    """
    first, last = _measured_rows(result, warmup_rounds)
    begin_s, end_s = (float(result.merges["wall_s"][row]) for row in (first, last))
    origin_s = _origin_s(traces)
    split = {t.rank: breakdown(t.spans, origin_s + begin_s, origin_s + end_s) for t in traces}
    config = make_config(result.config)
    num_updates = int(result.merges["num_merged"][first + 1 : last + 1].sum())
    seconds = end_s - begin_s
    return Measured(
        num_ranks=len(result.ranks["rank"]),
        num_clients=config.clients.sampled or config.clients.count,
        num_rounds=int(result.merges["round"][last] - result.merges["round"][first]),
        num_updates=num_updates,
        seconds=seconds,
        split=split,
        rss_bytes=_by_rank(result, "rss_bytes"),
        server_peak_bytes=int(result.merges["wall_rss_bytes"].max()),
        num_hosts=len(set(result.ranks["host"].tolist())),
        overrun_frac=float(np.mean(result.updates["wall_overrun"])),
        num_dropped=sum(trace.num_dropped for trace in traces),
        demand=_demand(result, config, split, (first, last), num_updates),
        config=config,
        provenance=result.provenance,
    )


def _by_rank(result: Result, name: str) -> dict[int, int]:
    ranks, values = result.ranks["rank"].tolist(), result.ranks[name].tolist()
    return {int(rank): int(value) for rank, value in zip(ranks, values, strict=True)}


def _measured_rows(result: Result, warmup_rounds: int) -> tuple[int, int]:
    """Return the rows of the last merge of the warm-up and of the last merge of all."""
    rounds = result.merges["round"]
    lost = lost_ranks(result)
    facts = {
        "lost ranks": (not lost, lost, "none"),
        "status": (result.status == "finished", result.status, "'finished'"),
        "ranks": (len(result.ranks["rank"]) > 1, len(result.ranks["rank"]), "2 or more"),
        "rounds": (rounds.max(initial=0) > warmup_rounds, rounds.max(initial=0),
                   f"more than the {warmup_rounds} warm-up rounds"),
    }  # fmt: skip
    for name, (is_right, got, allowed) in facts.items():
        if not is_right:
            raise ValueError(must_be(f"results {result.path}: {name}", allowed, got))
    num_warm = int(np.searchsorted(rounds, max(warmup_rounds, rounds[0]), side="right"))
    return num_warm - 1, len(rounds) - 1


def _origin_s(traces: Sequence[RankTrace]) -> float:
    """Return when the server began, on the timeline's clock."""
    server = next((trace for trace in traces if trace.rank == 0), None)
    if server is None or not len(server.spans):
        raise ValueError(must("the timeline", "have a span of rank 0"))
    return float(server.spans["begin_s"].min())


def _demand(
    result: Result, config: Config, split: Split, rows: tuple[int, int], num_updates: int
) -> Demand:
    """Return means over the measured client-rounds; links take time on the wall clock only."""
    first, last = rows
    merges, updates = result.merges, result.updates
    versions = merges["version"]
    chosen = (updates["version"] > versions[first]) & (updates["version"] <= versions[last])
    server = [
        float(merges[f"server_{way}_bytes"][last] - merges[f"server_{way}_bytes"][first])
        for way in ("up", "down")
    ]
    clients = [seconds for rank, seconds in split.items() if rank != 0]
    return Demand(
        core_s=_busy_s(clients, config) / num_updates,
        service_s=_awake_s(split[0]) / num_updates,
        merge_s=split[0].get("merge", 0.0) / num_updates,
        train_s=sum(each["compute"] for each in clients) / num_updates,
        down_bytes=float(updates["down_bytes"][chosen].mean()),
        up_bytes=float(updates["up_bytes"][chosen].mean()),
        server_up_bytes=server[0] / num_updates,
        server_down_bytes=server[1] / num_updates,
        **_modelled(updates, chosen, config),
    )


def _busy_s(clients: Sequence[Mapping[str, float]], config: Config) -> float:
    """Return the time of the client ranks' cores.

    On the virtual clock a rank works whenever it does not wait; on the wall clock its transfers
    run beside the work.
    """
    if config.clock == "virtual":
        return sum(_awake_s(each) for each in clients)
    return sum(each[name] for each in clients for name in WORKING)


def _awake_s(seconds: Mapping[str, float]) -> float:
    """Return the seconds that are not waiting; categories of the server do not overlap."""
    return sum(value for name, value in seconds.items() if name != "wait")


def _modelled(updates: Mapping[str, Any], chosen: Any, config: Config) -> dict[str, float]:
    """Return delays that the wall clock makes real, in wall seconds; none on the virtual clock."""
    links, scale = config.links, config.time_scale
    if config.clock == "virtual":
        return {}
    shares = np.array(config.clients.bandwidth_shares())[updates["client"][chosen]]
    slack_s = config.admission.slack_s if config.admission.kind == "window" else 0.0
    down_s = updates["down_bytes"][chosen] / (links.client_down_bytes_per_s * shares)
    up_s = updates["up_bytes"][chosen] / (links.client_up_bytes_per_s * shares)
    return {
        "own_down_s": scale * (float(down_s.mean()) + links.latency_s),
        "own_up_s": scale * (float(up_s.mean()) + links.latency_s),
        "delay_s": scale * links.compute_s,
        "round_s": scale * (links.merge_s + slack_s),
    }


def make_system(measured: Measured, demand: Demand | None = None, num_cores: int = 0) -> System:
    """Return the capacity model of a run.

    Args:
        demand: That of another run, in place of its own.
        num_cores: Shared by all ranks; 0 where each has a core of its own.
    """
    config = measured.config
    is_wall = config.clock == "wall"
    return System(
        demand=measured.demand if demand is None else demand,
        rates=_rates(config) if is_wall else Rates(),
        is_synchronous=ADMISSIONS[config.admission.kind].counts == "merges",
        is_placed=is_wall or keeps_memories(config),
        num_cores=num_cores or None,
    )


def _rates(config: Config) -> Rates:
    """Return the rates of the ranks' and the server's links in bytes per wall second."""
    links, scale = config.links, config.time_scale
    rates = {
        "rank_down": links.rank_down_bytes_per_s,
        "rank_up": links.rank_up_bytes_per_s,
        "server_up": links.server_up_bytes_per_s,
        "server_down": links.server_down_bytes_per_s,
    }
    return Rates(**{k: math.inf if v is None else v / scale for k, v in rates.items()})
