"""The figures by which a gate judges a run, and the machine that they were measured on."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import xxhash

from fedgmr_hpc.config.identity import CELL, identity, method_label
from fedgmr_hpc.reporting.words import count_of
from fedgmr_hpc.results.series import end_s, last_tests
from fedgmr_hpc.results.stretches import stretches
from fedgmr_hpc.storage.reader import Result

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a run.

    Attributes:
        name: as tables and logs have it.
        unit: of its value; `%` is compared by its difference, the others by their ratio.
        better: which way is better.
        read: takes it from a result, NaN where it is unknown.
        is_of_machine: whether it says nothing about another machine.
    """

    name: str
    unit: str
    better: Better
    read: Callable[[Result], float]
    is_of_machine: bool = False

    def median(self, results: Iterable[Result]) -> float:
        """Return the median over repeats of a run, of which one without a value is the worst."""
        worst = math.inf if self.better == "lower" else -math.inf
        values = (self.read(each) for each in results)
        median = statistics.median(worst if math.isnan(value) else value for value in values)
        return median if math.isfinite(median) else math.nan


def _test(result: Result) -> float:
    tests = last_tests(result)
    return 100 * float(tests.mean()) if tests.size else float("nan")


def _rounds_per_s(result: Result) -> float:
    wall_s, rounds = end_s(result, "wall_s"), result.merges["round"]
    return float(rounds[-1]) / wall_s if wall_s and len(rounds) else float("nan")


def _last(column: str) -> Callable[[Result], float]:
    return lambda result: float(result.merges[column][-1:].sum())


FIGURES = (
    Figure("test accuracy", "%", "higher", _test),
    Figure("time", "s", "lower", lambda result: end_s(result, "now_s")),
    Figure("wall time", "s", "lower", lambda result: end_s(result, "wall_s"), True),
    Figure("rounds/s", "1/s", "higher", _rounds_per_s, True),
    Figure("server up", "bytes", "lower", _last("server_up_bytes")),
    Figure("server down", "bytes", "lower", _last("server_down_bytes")),
)


def machines_of(result: Result) -> list[str]:
    """Return what the speed of a run depends on besides the program, in every stretch."""
    parts = stretches(result.provenance)
    last = parts[-1].get("num_ranks")
    found = []
    for part in parts:
        cpu, cores = part.get("cpu_model", "unknown processor"), part.get("num_cores", "?")
        number = part.get("num_ranks", last)
        ranks = ranks_of(result) if number == last else count_of(int(number or 0), "rank")
        found.append(f"{cpu}, {cores} cores, {ranks}")
    return found


def ranks_of(result: Result) -> str:
    """Return how many ranks a run had, on how many hosts, and the GPUs that they computed on:
    `9 ranks on 2 hosts, H200 (cuda:0), H200 (cuda:1)`.
    """
    of_ranks = result.ranks
    ranks = count_of(len(of_ranks.get("rank", ())), "rank")
    hosts = count_of(len({*of_ranks.get("host", ())}), "host")
    pairs = zip(of_ranks.get("gpu", ()), of_ranks.get("device", ()), strict=False)
    gpus = sorted({f"{gpu} ({device})" for gpu, device in pairs if gpu})
    return ", ".join([f"{ranks} on {hosts}", *gpus])


def gpus_of(result: Result) -> list[str]:
    """Return the models of the ranks' GPUs, each once."""
    return sorted({str(name) for name in result.ranks.get("gpu", ())} - {""})


def key_of(result: Result) -> str:
    """Return all that makes a run the same as another: what differs from the defaults, as JSON."""
    return json.dumps(identity(result.config, CELL), sort_keys=True)


def case_of(result: Result) -> str:
    """Return what a run is called in a log, and 8 digits for all of its configuration:
    `fedavg on digits, seed 0, 1f6ed00c`.
    """
    config = result.config
    data = config.get("data", {}).get("name", "-")
    digits = xxhash.xxh3_64_hexdigest(key_of(result).encode())[:8]
    return f"{method_label(config)} on {data}, seed {config.get('seed', '-')}, {digits}"
