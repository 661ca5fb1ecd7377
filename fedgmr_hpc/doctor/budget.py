"""What a run will take in time, memory and disk, against what there is: findings of `doctor`.

Pure functions of the configuration and of what the ranks measured; figures: estimate.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import median, median_low
from typing import Any

from fedgmr_hpc.config.schema import Config
from fedgmr_hpc.doctor import estimate
from fedgmr_hpc.doctor.estimate import RankSpeed
from fedgmr_hpc.doctor.findings import Answers, Finding, State, judge_errors, megabytes, name_ranks
from fedgmr_hpc.doctor.probes import NO_DATA
from fedgmr_hpc.models import Layout
from fedgmr_hpc.reporting.words import count_of, describe_s

SLOW_STEP = 1.5  # times the median
TIGHT_FRAC = 0.8  # of what is free: an estimate is no promise


def judge_time(
    config: Config,
    layout: Layout,
    answers: Answers,
    places: Answers,
    num_ranks: int,
    left_s: float | None,
) -> Finding:
    """Judge how long a run takes, and which rank computes slowly.

    Args:
        left_s: until the scheduler ends the job; None for no limit.
    """
    answers = {rank: facts for rank, facts in answers.items() if facts.get("error") != NO_DATA}
    if not answers:
        return Finding("time", "warn", "not measured: no rank has data to train on")
    if failed := judge_errors("time", answers, places):
        return failed
    paces = {
        rank: RankSpeed(tuple(facts["densities"]), tuple(facts["train_s"]), facts["sample_s"])
        for rank, facts in answers.items()
    }
    facts = next(iter(answers.values()))
    num_prunable, num_dense = layout.num_prunable, layout.num_weights - layout.num_prunable
    least_s = estimate.round_s(config, num_prunable, num_dense)
    rounds = estimate.num_rounds(config, least_s)
    looks = estimate.num_looks(config, rounds, least_s)
    sizes = facts["num_samples"], facts["num_scored"], facts["num_tested"]
    busy_s = estimate.compute_s(config, list(paces.values()), rounds, *sizes, looks)
    run_s = estimate.whole_run_s(config, busy_s, rounds, least_s)
    usual_s = median(pace.train_s[1] for pace in paces.values())
    text = (
        f"at most about {describe_s(run_s)}: up to {rounds:,} rounds of "
        f"{estimate.num_active(config)} clients, {1e3 * usual_s:,.0f} ms of training each, on "
        f"{count_of(len(paces), 'rank')}"
    )
    warnings = [
        *_slow_steps(paces, places),
        *_short_limit(run_s, left_s),
        *_short_scale(config, paces, num_ranks),
    ]
    if not warnings:
        left = "" if left_s is None else f"; {describe_s(left_s)} of the job are left"
        return Finding("time", "ok", text + left)
    texts, advice = zip(*warnings, strict=True)
    return Finding("time", "warn", "; ".join([*texts, text]), "; ".join(advice))


def _slow_steps(paces: Mapping[int, RankSpeed], places: Answers) -> list[tuple[str, str]]:
    usual_s = median_low(pace.train_s[1] for pace in paces.values())
    slow = {
        r: p.train_s[1] / usual_s for r, p in paces.items() if p.train_s[1] > SLOW_STEP * usual_s
    }
    if not slow:
        return []
    text = (
        f"slow to compute: {name_ranks(slow, places)} ({max(slow.values()):.1f} times the median)"
    )
    return [
        (text, "see what else runs there, its clock rate and its cores; or leave that host out")
    ]


def _short_limit(run_s: float, left_s: float | None) -> list[tuple[str, str]]:
    if left_s is None or left_s >= run_s:
        return []
    advice = "ask for more time, or let the job checkpoint and requeue (docs/clusters.md)"
    return [(f"the job ends in {describe_s(left_s)}", advice)]


def _short_scale(
    config: Config, paces: Mapping[int, RankSpeed], num_ranks: int
) -> list[tuple[str, str]]:
    if config.clock == "virtual":
        return []
    least = estimate.least_time_scale(config, paces, num_ranks)
    if config.time_scale >= least:
        return []
    text = f"client-steps may overrun: time_scale {config.time_scale:g} is below {least:.2g}"
    return [(text, f"time_scale={least:.2g}, more ranks, or a longer links.compute_s")]


def judge_memory(
    config: Config, num_weights: int, answers: Answers, places: Answers, is_alone: bool
) -> Finding:
    """Judge what the ranks of each host will still take, against what it has left.

    Args:
        is_alone: one process is server and clients.
    """
    if failed := judge_errors("memory", answers, places):
        return failed
    need, free = Counter[str](), dict[str, int]()
    num_workers = max(1, len(answers) - 1)
    for rank, facts in answers.items():
        host = places[rank]["host"]
        free[host] = min(free.get(host, facts["free_bytes"]), facts["free_bytes"])
        if rank == 0:
            need[host] += estimate.server_bytes(config, num_weights)
        if rank > 0 or is_alone:
            grows = max(0, facts["peak_bytes"] - facts["rss_bytes"])
            need[host] += grows + estimate.worker_bytes(config, num_weights, num_workers)
    host = max(need, key=lambda host: need[host] / max(1, free[host]))
    text = f"{host} needs about {megabytes(need[host])} more, {megabytes(free[host])} are free"
    advice = "fewer ranks a host, more memory for the job, or fewer clients at a time"
    return Finding("memory", _room_state(need[host], free[host]), text, advice)


def judge_disk(config: Config, layout: Layout, facts: Mapping[str, Any]) -> Finding:
    """Judge what results and checkpoints take, against what is free there."""
    if "error" in facts:
        return Finding("disk", "warn", "not known, see results")
    num_dense = layout.num_weights - layout.num_prunable
    rounds = estimate.num_rounds(config, estimate.round_s(config, layout.num_prunable, num_dense))
    need = estimate.disk_bytes(config, layout.num_weights, rounds)
    free = megabytes(facts["free_bytes"])
    text = f"up to {megabytes(need)} of results and checkpoints, {free} are free"
    advice = "another results.path, or make room"
    return Finding("disk", _room_state(need, facts["free_bytes"]), text, advice)


def _room_state(need: float, free: float) -> State:
    return "FAIL" if need > free else "warn" if need > TIGHT_FRAC * free else "ok"
